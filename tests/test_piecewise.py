from __future__ import annotations

import math

import pytest

from pyro_lowrank.piecewise import CLIPPED_RELU, IDENTITY, RELU, PiecewiseLinear, named_piecewise


def value(shape: PiecewiseLinear, x: float, h: float) -> float:
    """The sum of hinges of the class's docstring."""
    hinges = sum(change * max(x - knot - gain * h, 0.0) for change, knot, gain in shape.hinges)
    return shape.slopes[0] * (x - h) + hinges


@pytest.mark.parametrize("h", [-1.5, 0.0, 0.7])
def test_the_built_in_hinges_add_up_to_the_formulas_of_the_activations(h: float) -> None:
    for x in (-3.0, -1.5, -0.7, 0.0, 0.3, 0.7, 1.5, 4.0):
        assert math.isclose(value(RELU, x, h), max(x - h, 0), abs_tol=1e-15)
        assert math.isclose(value(CLIPPED_RELU, x, h), max(x + h, 0) - max(x, 0), abs_tol=1e-15)
        assert math.isclose(value(IDENTITY, x, h), x - h, abs_tol=1e-15)


def test_slopes_between_knots_are_the_declared_ones() -> None:
    knots, slopes = (-1.0, 0.5, 2.0), (0.1, 1.0, -0.5, 0.0)
    shape = PiecewiseLinear(knots=knots, slopes=slopes)
    h, step = 0.3, 1e-3
    for inside, slope in zip((-2.0, 0.0, 1.0, 3.0), slopes, strict=True):
        x = inside + h
        assert math.isclose((value(shape, x + step, h) - value(shape, x, h)) / step, slope, abs_tol=1e-9)


def test_only_flat_ends_are_bounded() -> None:
    assert [shape.is_bounded for shape in (RELU, CLIPPED_RELU, IDENTITY)] == [False, True, False]
    assert PiecewiseLinear(knots=(-1.0, 1.0), slopes=(0.0, 0.5, 0.0)).is_bounded
    assert not PiecewiseLinear(knots=(0.0,), slopes=(0.1, 0.0)).is_bounded


def test_numbers_become_tuples_of_floats_so_that_equal_declarations_are_equal() -> None:
    shape = PiecewiseLinear(knots=[0], slopes=[0, 1], name="relu")  # type: ignore[arg-type]
    assert shape == RELU
    assert hash(shape) == hash(RELU)
    assert shape.gains == (1.0,)


def test_knots_of_different_gains_may_coincide_as_their_order_depends_on_the_bias() -> None:
    assert PiecewiseLinear(knots=(0.0, 0.0), slopes=(0.0, 1.0, 0.0), bias_gains=(-1.0, 0.0)).hinges == (
        (1.0, 0.0, -1.0),
        (-1.0, 0.0, 0.0),
    )


@pytest.mark.parametrize(
    ("knots", "slopes", "gains", "message"),
    [
        ((0.0,), (1.0,), None, "`slopes` must be one more than `knots`.* got 1 knots, 1 slopes and 1 gains"),
        ((0.0,), (0.0, 1.0), (1.0, 1.0), "`bias_gains` as many, got 1 knots, 2 slopes and 2 gains"),
        ((1.0, 0.0), (0.0, 1.0, 0.0), None, r"`knots` must increase, got \(1.0, 0.0\)"),
        ((0.0, 0.0), (0.0, 1.0, 0.0), None, r"`knots` must increase, got \(0.0, 0.0\)"),
        ((0.0,), (0.0, math.inf), None, "must be finite, got"),
        ((math.nan,), (0.0, 1.0), None, "must be finite, got"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(
    knots: tuple[float, ...], slopes: tuple[float, ...], gains: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear(knots=knots, slopes=slopes, bias_gains=gains)


def test_names_find_the_built_in_shapes_and_no_others() -> None:
    assert [named_piecewise(name) for name in ("relu", "clipped_relu", "identity")] == [RELU, CLIPPED_RELU, IDENTITY]
    with pytest.raises(ValueError, match="`activation` must be one of 'relu', 'clipped_relu', 'identity', got 'tanh'"):
        named_piecewise("tanh")
