"""Functions of tensors from expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_lowrank.scalars.expression import Expression, parts

# Below this, softplus(x) and exp(x) agree to float64 precision in the log.
_SMALLEST_SOFTPLUS = -40.0


def log_softplus(x: Tensor) -> Tensor:
    """Return log(softplus(x)) without underflow: x itself where softplus(x) would vanish.

    Example::

        >>> log_softplus(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([-1.0000e+03, -3.6651e-01,  6.9078e+00])
    """
    # Where softplus(x) vanishes its log, which is not taken, would have a NaN gradient.
    smallest = torch.finfo(x.dtype).tiny
    return torch.where(x < _SMALLEST_SOFTPLUS, x, functional.softplus(x).clamp(min=smallest).log())


def _exp(x: Tensor) -> Tensor:
    # Saturated, as in compiled loops: infinity times zero would be NaN.
    return x.clamp(max=math.log(torch.finfo(x.dtype).max) - 0.1).exp()


def _log_softplus_slope(x: Tensor) -> Tensor:
    return (functional.logsigmoid(x) - log_softplus(x)).exp()


def _log_rising(x: Tensor, n: Tensor) -> Tensor:
    """Return lgamma(x + n) - lgamma(x), in double: the difference of two large numbers."""
    start = x.double()
    return (torch.lgamma(start + n.double()) - torch.lgamma(start)).to(torch.result_type(x, n))


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{each: getattr(torch, each) for each in ("expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "sign")},
    **{each: getattr(torch, each) for each in ("lgamma", "digamma", "erf", "absolute", "sin", "cos", "where")},
    "exp": _exp,
    "trigamma": lambda x: torch.polygamma(1, x),
    "softplus": functional.softplus,
    "log_softplus": log_softplus,
    "log_softplus_slope": _log_softplus_slope,
    "log_rising": _log_rising,
}
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "less_equal": "<=", "equal": "=="}
_LOGICAL = {"and": "&", "or": "|"}


def variable(name: str) -> str:
    """Return what a name is called in code, where it must be no function's nor that of a step of the computation."""
    return f"v_{name}"


def lines_of(
    expressions: Sequence[Expression], write: Callable[[Expression, list[str]], str]
) -> tuple[list[str], list[str]]:
    """Return lines of code that compute what expressions share, and what each is called after them.

    Args:
        expressions: what is computed.
        write: how a part is written, of what its arguments are called.
    """
    called: dict[Expression, str] = {}
    lines: list[str] = []
    for each in parts(*expressions):
        if each.operation == "name":
            called[each] = variable(str(each.content))
            continue
        written = write(each, [called[argument] for argument in each.arguments])
        if each.operation == "number":
            called[each] = written
        else:
            called[each] = f"t{len(lines)}"
            lines.append(f"{called[each]} = {written}")
    return lines, [called[each] for each in expressions]


def function_of(source_name: str, arguments: Sequence[str], lines: Sequence[str], result: str, names: Any) -> Any:
    """Return the function with these lines of code."""
    body = "".join(f"    {line}\n" for line in [*lines, f"return {result}"])
    namespace = dict(names)
    header = f"def {source_name}({', '.join(map(variable, arguments))}):\n"
    exec(compile(f"{header}{body}", f"<{source_name}>", "exec"), namespace)
    return namespace[source_name]


def _write(each: Expression, arguments: list[str]) -> str:
    if each.operation == "number":
        value = float(each.content)
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if each.operation in _SIGNS:
        return f"{arguments[0]} {_SIGNS[each.operation]} {arguments[1]}"
    if each.operation in _LOGICAL:
        return f"{arguments[0]} {_LOGICAL[each.operation]} {arguments[1]}"
    if each.operation == "not":
        return f"~{arguments[0]}"
    if each.operation == "negative":
        return f"-{arguments[0]}"
    numbers = [argument.operation == "number" for argument in each.arguments]
    if each.operation != "where" and any(numbers):
        # Functions of torch want tensors.
        arguments = [
            f"torch.tensor({text}, dtype=like.dtype, device=like.device)" if is_number else text
            for text, is_number in zip(arguments, numbers, strict=True)
        ]
    return f"{each.operation}({', '.join(arguments)})"


def on_tensors(expressions: Sequence[Expression], arguments: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the function of tensors, which broadcast, whose values the expressions are.

    Numbers among the results are returned as tensors without dims.

    Args:
        expressions: the results.
        arguments: names in their order.

    Example::

        >>> from pyro_lowrank.scalars.expression import make, name
        >>> x = name("x")
        >>> on_tensors([make("exp", x), x], ["x"])(torch.zeros(2))
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    lines, results = lines_of(expressions, _write)
    written = [
        f"torch.tensor({text}, dtype=like.dtype, device=like.device)" if each.operation == "number" else text
        for each, text in zip(expressions, results, strict=True)
    ]
    names = {**_FUNCTIONS, "torch": torch}
    lines = [f"like = {variable(arguments[0])}", *lines]
    found: Callable[..., tuple[Tensor, ...]] = function_of(
        "traced", arguments, lines, "(" + "".join(f"{each}, " for each in written) + ")", names
    )
    return found
