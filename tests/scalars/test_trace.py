"""Functions of numbers as users write them, traced, differentiated and run on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from pyro_lowrank.scalars.derivative import derivative
from pyro_lowrank.scalars.expression import ZERO, make, name, number, replace
from pyro_lowrank.scalars.torch_code import on_tensors
from pyro_lowrank.scalars.trace import log_rising, traced
from tests.builders import assert_close


def _softplus(x: Any) -> Any:
    return math.log(1 + math.exp(x))


def _zero_inflated(y: Any, x: Any, gate: Any) -> Any:
    rate = _softplus(x)
    if y == 0:
        return math.log(gate + (1 - gate) * math.exp(-rate))
    return math.log(1 - gate) + y * math.log(rate) - rate - math.lgamma(y + 1)


def _of_numpy(y: Any, x: Any, a: Any) -> Any:
    return special.gammaln(y + 1 / a) - np.log(np.maximum(x, 0.3)) * y - np.tanh(x) ** 3 + np.where(x > 1, x, x * x)


def _of_torch(y: Any, x: Any, a: Any) -> Any:
    held = torch.clamp(x, min=-1.0, max=1.5)
    return functional.softplus(held) * y - torch.lgamma(a + x.exp()) + torch.where(y > 1, x.sigmoid(), torch.sqrt(a))


def _of_python(y: Any, x: Any, a: Any) -> Any:
    far = abs(y - x) / a
    return -min(far, 3) - max(x, y) ** 0.5 if x > 0.2 else -(far**2) + (math.erf(x) if y > 2 else math.cos(x))


def _of_rising(y: Any, x: Any, a: Any) -> Any:
    return log_rising(math.exp(x) + a, y) + math.expm1(-a) * math.sin(x) + math.log1p(a * x * x) - 2**x


FUNCTIONS: list[Callable[..., Any]] = [_zero_inflated, _of_numpy, _of_torch, _of_python, _of_rising]


def _by_torch(function: Callable[..., Any], y: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """The function written again for tensors."""
    log_rate = functional.softplus(x).log()
    return {
        _zero_inflated: lambda: torch.where(
            y == 0,
            torch.log(a + (1 - a) * torch.exp(-functional.softplus(x))),
            torch.log(1 - a) + y * log_rate - functional.softplus(x) - torch.lgamma(y + 1),
        ),
        _of_numpy: lambda: (
            torch.lgamma(y + 1 / a) - x.clamp(min=0.3).log() * y - x.tanh() ** 3 + torch.where(x > 1, x, x * x)
        ),
        _of_torch: lambda: (
            functional.softplus(x.clamp(-1.0, 1.5)) * y
            - torch.lgamma(a + x.exp())
            + torch.where(y > 1, x.sigmoid(), a.sqrt())
        ),
        _of_python: lambda: torch.where(
            x > 0.2,
            -((y - x).abs() / a).clamp(max=3) - torch.maximum(x, y).sqrt(),
            -(((y - x).abs() / a) ** 2) + torch.where(y > 2, x.erf(), x.cos()),
        ),
        _of_rising: lambda: (
            torch.lgamma(x.exp() + a + y)
            - torch.lgamma(x.exp() + a)
            + torch.expm1(-a) * x.sin()
            + torch.log1p(a * x * x)
            - 2**x
        ),
    }[function]()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_and_derivatives_are_those_of_torch(function: Callable[..., Any]) -> None:
    (expression,) = traced(function, ["y", "x", "a"])
    by = [name(each) for each in ("y", "x", "a")]
    first = [derivative(expression, each) for each in by]
    second = derivative(first[1], by[1])
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(0.0, 5.0, dtype=torch.float64).repeat(40).requires_grad_()
    x = (2 * torch.randn(200, generator=generator, dtype=torch.float64)).requires_grad_()
    a = (0.05 + 0.9 * torch.rand(200, generator=generator, dtype=torch.float64)).requires_grad_()
    expected = _by_torch(function, y, x, a)
    if function is _of_python:
        # Its root needs both above zero in the branch where it stands.
        assert expected.isfinite().all()
    slopes = torch.autograd.grad(expected.sum(), (y, x, a), create_graph=True, materialize_grads=True)
    (bend,) = torch.autograd.grad(slopes[1].sum(), x, materialize_grads=True)
    found = on_tensors([expression, *first, second], ["y", "x", "a"])(y.detach(), x.detach(), a.detach())
    for value, target in zip(found, (expected, *slopes, bend), strict=True):
        finite = target.isfinite()
        assert finite.float().mean() > 0.5
        torch.testing.assert_close(value.expand(200)[finite], target.detach()[finite], rtol=1e-9, atol=1e-9)
        assert value.isfinite().all()


def test_naive_forms_become_stable_ones(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)

    def naive(y: Any, x: Any) -> tuple[Any, ...]:
        probability = 1 / (1 + math.exp(-x))
        return math.log(1 + math.exp(x)), math.log(math.log1p(math.exp(x))), math.log(probability), 1 - probability

    total, log_total, log_probability, rest = on_tensors(traced(naive, ["y", "x"], results=4), ["y", "x"])(x, x)
    assert_close(total, functional.softplus(x))
    assert_close(
        log_total,
        torch.tensor([-1e4, -100.0, math.log(math.log(2)), math.log(100.0), math.log(1e4)], dtype=torch.float64),
    )
    assert_close(log_probability, functional.logsigmoid(x))
    assert_close(rest, torch.sigmoid(-x))


def test_equal_parts_are_one_part() -> None:
    x, y = name("x"), name("y")
    assert make("exp", make("add", x, y)) is make("exp", make("add", x, y))
    assert make("multiply", make("where", make("less", x, y), ZERO, number(1.0)), y) is make(
        "where", make("less", x, y), ZERO, y
    )
    assert replace(make("divide", x, y), {x: ZERO}) is ZERO


def _line_of(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno + 1


def _asks(y: Any, x: Any) -> Any:
    return float(x)


def _loops(y: Any, x: Any) -> Any:
    return sum(x for _ in range(int(y)))


def _unknown(y: Any, x: Any) -> Any:
    return math.floor(x)


def _unknown_of_numpy(y: Any, x: Any) -> Any:
    return np.arccosh(x)


def _unknown_of_torch(y: Any, x: Any) -> Any:
    return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_asks, "a number is asked for, which is not known yet"),
        (_loops, "a number is asked for"),
        (_unknown, "math.floor cannot be traced; known are absolute, clamp"),
        (_unknown_of_numpy, "numpy's arccosh cannot be traced"),
        (_unknown_of_torch, "bessel_j0 cannot be traced"),
    ],
)
def test_what_cannot_be_traced_is_told_with_its_line(function: Callable[..., Any], reason: str) -> None:
    pattern = rf"`{function.__name__}` \(.*test_trace.py, line {_line_of(function)}\) cannot be traced: .*{reason}"
    with pytest.raises(TypeError, match=pattern):
        traced(function, ["y", "x"])


def test_too_many_ways_and_other_numbers_of_results_are_refused() -> None:
    def branches(y: Any, x: Any) -> Any:
        for threshold in range(100):
            if x < threshold:
                return x
        return y

    with pytest.raises(TypeError, match="branches in more than 64 ways"):
        traced(branches, ["y", "x"])
    with pytest.raises(TypeError, match="2 numbers were expected, got 1"):
        traced(lambda y: y, ["y"], results=2)
    with pytest.raises(TypeError, match="a number was expected, got"):
        traced(lambda y: [y], ["y"])


def test_a_function_is_traced_without_being_changed() -> None:
    before = _zero_inflated.__globals__["math"]
    traced(_zero_inflated, ["y", "x", "gate"])
    assert _zero_inflated.__globals__["math"] is before is math
    assert _zero_inflated(0.0, 0.3, 0.2) == pytest.approx(math.log(0.2 + 0.8 * math.exp(-_softplus(0.3))))
