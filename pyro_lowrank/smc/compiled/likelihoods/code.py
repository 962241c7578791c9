"""Functions of numbers, for the compiled loops, from the expressions of a density."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_lowrank.dynamics.compiled.arithmetic import alike, scalar
from pyro_lowrank.scalars.expression import ZERO, Expression, make, name, names_in, parts, replace
from pyro_lowrank.scalars.torch_code import function_of, lines_of, variable
from pyro_lowrank.smc.compiled.likelihoods.functions import FUNCTIONS

Function = Callable[..., Any]

_NAMES: Mapping[str, Any] = {
    **{f"number_{called}": function for called, function in FUNCTIONS.items()},
    "alike": alike,
}
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "less_equal": "<=", "equal": "=="}


@dataclass(frozen=True)
class Split:
    """Expressions as functions of numbers: what a feature and its parameters say, then the rest, particle by particle.

    Attributes:
        prepare: of (y, *parameters), a tuple of numbers.
        finish: of (eta, *prepared), the values of the expressions, a tuple.
    """

    prepare: Function
    finish: Function


def split(expressions: Sequence[Expression], parameters: Sequence[str]) -> Split:
    """Return the functions that compute expressions of `y`, `eta` and parameters."""
    once, rest = hoisted(expressions, lambda names: "eta" not in names, "_known")
    known = [f"_known{i}" for i in range(len(once))]
    return Split(
        _compiled("prepare", ["y", *parameters], once),
        _compiled("finish", ["eta", *known], rest),
    )


def hoisted(
    expressions: Sequence[Expression], is_known: Callable[[frozenset[str]], bool], prefix: str
) -> tuple[list[Expression], list[Expression]]:
    """Return the largest parts of expressions that depend on known names alone, and the expressions of these.

    Args:
        expressions: to be split.
        is_known: of the names that a part depends on, whether it is known first.
        prefix: of the names that the parts get, as in `_known0`.
    """
    found: dict[Expression, Expression] = {}
    seen: set[Expression] = set()

    def visit(each: Expression) -> None:
        if each in seen or each.operation == "number":
            return
        seen.add(each)
        if not each.is_condition and is_known(names_in(each)):
            found[each] = name(f"{prefix}{len(found)}")
            return
        for argument in each.arguments:
            visit(argument)

    for each in expressions:
        visit(each)
    return list(found), [replace(each, found) for each in expressions]


def _compiled(called: str, arguments: Sequence[str], results: Sequence[Expression]) -> Function:
    like = variable(arguments[0])
    constants: dict[str, Any] = {}

    def write(each: Expression, texts: list[str]) -> str:
        if each.operation == "number":
            return _constant(float(each.content), like, constants)
        if each.operation in _SIGNS:
            return f"{texts[0]} {_SIGNS[each.operation]} {texts[1]}"
        if each.operation in ("and", "or"):
            return f"{texts[0]} {each.operation} {texts[1]}"
        if each.operation == "not":
            return f"not {texts[0]}"
        if each.operation == "negative":
            return f"-{texts[0]}"
        if each.operation == "where":
            # Both sides are there already: a compiler does not vectorise branches around logarithms.
            return f"{texts[1]} if {texts[0]} else {texts[2]}"
        return f"number_{each.operation}({', '.join(texts)})"

    lines, texts = lines_of(results, write)
    # Numbers of float32, which both types hold, take the type of what they stand beside; alone they have to be told.
    result = "(" + "".join(f"alike({like}, {text}), " for text in texts) + ")"
    needed = {f"number_{each.operation}" for each in parts(*results)} | {"alike"}
    names = {key: value for key, value in _NAMES.items() if key in needed}
    made: Function = scalar(function_of(called, arguments, lines, result, {**names, **constants}))
    return made


def _constant(value: float, like: str, constants: dict[str, Any]) -> str:
    if math.isfinite(value) and float(np.float32(value)) != value:
        return f"alike({like}, {value!r})"
    for known, constant in constants.items():
        if repr(float(constant)) == repr(value):
            return known
    called = f"number{len(constants)}"
    constants[called] = np.float32(value)
    return called


def at_zero(expression: Expression) -> Expression:
    """Return an expression where y is zero.

    Example::

        >>> y, x = name("y"), name("x")
        >>> at_zero(make("where", make("equal", y, ZERO), make("exp", x), make("multiply", y, x)))
        exp(x)
    """
    return replace(expression, {name("y"): ZERO})


def elsewhere(expression: Expression) -> Expression:
    """Return an expression where y is not zero."""
    return replace(expression, {make("equal", name("y"), ZERO): ZERO, make("equal", ZERO, name("y")): ZERO})
