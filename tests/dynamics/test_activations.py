from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.piecewise import PiecewiseLinear
from tests.builders import assert_close

FORMULAS: dict[str, Callable[[float, float], float]] = {
    "relu": lambda x, h: max(x - h, 0.0),
    "clipped_relu": lambda x, h: max(x + h, 0.0) - max(x, 0.0),
    "tanh": lambda x, h: math.tanh(x - h),
    "softplus": lambda x, h: math.log1p(math.exp(x - h)),
    "identity": lambda x, h: x - h,
}

DECLARED = {
    "relu": PiecewiseLinear(knots=(0.0,), slopes=(0.0, 1.0)),
    "clipped_relu": PiecewiseLinear(knots=(0.0, 0.0), slopes=(0.0, 1.0, 0.0), bias_gains=(-1.0, 0.0)),
    "identity": PiecewiseLinear(knots=(), slopes=(1.0,)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_follow_their_formulas_per_unit(name: str, dtype: torch.dtype) -> None:
    currents, bias = 2 * torch.randn(7, 2, 5, dtype=dtype), torch.linspace(-1.5, 1.5, 5, dtype=dtype)
    expected = torch.tensor(
        [[[FORMULAS[name](float(x), float(h)) for x, h in zip(row, bias, strict=True)] for row in rows]
         for rows in currents],
        dtype=dtype,
    )  # fmt: skip
    assert_close(activation(name)(currents, bias), expected)


@pytest.mark.parametrize("name", DECLARED)
def test_declared_knots_equal_the_built_in_in_value_and_gradient(name: str, dtype: torch.dtype) -> None:
    currents = (3 * torch.randn(200, 6, dtype=dtype)).requires_grad_()
    bias = torch.linspace(-1.5, 1.5, 6, dtype=dtype).requires_grad_()
    weight = torch.randn(200, 6, dtype=dtype)
    results = []
    for function in (activation(name), activation(DECLARED[name])):
        rates = function(currents, bias)
        results.append((rates, *torch.autograd.grad((weight * rates).sum(), (currents, bias))))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_a_declaration_of_many_knots_interpolates_linearly(dtype: torch.dtype) -> None:
    knots, slopes = torch.tensor([-1.0, 0.5, 2.0], dtype=dtype), torch.tensor([0.0, 1.0, -0.5, 0.25], dtype=dtype)
    function = activation(PiecewiseLinear(knots=tuple(knots.tolist()), slopes=tuple(slopes.tolist())))
    x, h = torch.linspace(-4.0, 5.0, 91, dtype=dtype), torch.tensor(0.3, dtype=dtype)
    # Integrate the slopes from the first knot on.
    expected = []
    for point in (x - h).tolist():
        edges = [-1.0, *[k for k in knots.tolist()[1:] if k < point], max(point, -1.0)]
        steps = zip(edges, edges[1:], slopes.tolist()[1:], strict=False)
        expected.append(sum(slope * (right - left) for left, right, slope in steps))
    assert_close(function(x, h), torch.tensor(expected, dtype=dtype))


def test_an_activation_of_ones_own_is_taken_as_it_is() -> None:
    own = Activation("square", lambda x, h: (x - h).square())
    assert activation(own) is own


def test_a_misspelt_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="`activation` must be one of 'relu', 'clipped_relu', .* got 'Relu'"):
        activation("Relu")
