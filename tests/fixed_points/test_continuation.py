"""Branches are followed to where they end, which is where the theory puts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points.continuation import Continuation, continuation
from tests.fixed_points.networks import bistable

TANH: dict[str, Any] = {"activation": "tanh", "method": "search", "num_starts": 60}


def one_unit(inputs: list[float]) -> Continuation:
    """Fixed points of z = 2 tanh(z + I)."""
    return continuation(0.0, [[1.0]], [[2.0]], [0.0], input_currents=np.array(inputs)[:, None], **TANH)


@pytest.mark.parametrize("inputs", [[0.0, 0.5, 1.0], [0.0, 1.0], [0.2, 0.53, 0.54]])
def test_a_fold_is_where_the_slope_is_one(inputs: list[float]) -> None:
    # 2 sech(z + I)^2 = 1: z = -sqrt(2), I = sqrt(2) - arctanh(1 / sqrt(2)).
    fold = 2**0.5 - np.arctanh(2**-0.5)
    path = one_unit(inputs)
    assert [len(result) for result in path.results] == [3] * (len(inputs) - 1) + [1]
    assert [event.kind for event in path.events] == ["vanishes", "vanishes"]
    assert {event.before for event in path.events} == {"attractor", "repeller"}
    for event in path.events:
        low, high = inputs[event.step], inputs[event.step + 1]
        assert low + event.fraction * (high - low) == pytest.approx(fold, abs=1e-4)
        np.testing.assert_allclose(event.point, -(2**0.5), atol=0.01)
    # The third goes on, on one branch.
    steps, points = path.branch(int(path.branches[-1][0]))
    assert steps.tolist() == list(range(len(inputs)))
    assert (np.diff(points[:, 0]) > 0).all()
    assert "attractor vanishes at (-1.41" in str(path)


def test_backwards_what_vanished_appears() -> None:
    forward, backward = one_unit([0.0, 0.5, 1.0]), one_unit([1.0, 0.5, 0.0])
    assert [event.kind for event in backward.events] == ["appears", "appears"]
    there = sorted(event.step + event.fraction for event in forward.events)
    back = sorted(2 - (event.step + event.fraction) for event in backward.events)
    np.testing.assert_allclose(there, back, atol=1e-3)
    assert {event.after for event in backward.events} == {"attractor", "repeller"}


def test_a_flip_changes_stability() -> None:
    # At zero, z' is about -2.8 sigmoid(I) z: the input makes it overshoot.
    left, right = np.array([[1.0], [-1.0]]), np.array([[-1.4, 1.4]])
    inputs = np.array([[-2.0, -2.0], [-1.0, -1.0], [3.0, 3.0]])
    path = continuation(0.0, left, right, np.zeros(2), "softplus", input_currents=inputs, method="search")
    (event,) = [event for event in path.events if event.kind == "changes"]
    assert (event.step, event.before, event.after) == (1, "attractor", "repeller")
    np.testing.assert_allclose(event.point, 0, atol=1e-9)


def test_across_knots_a_branch_goes_on() -> None:
    # One fixed point, which the input moves over the knots of ten units.
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(10, 2)), 0.05 * rng.normal(size=(2, 10))
    inputs = np.linspace(-4, 4, 5)[:, None] * rng.normal(size=10)
    path = continuation(0.5, left, right, rng.normal(size=10), method="enumerate", input_currents=inputs)
    assert [len(result) for result in path.results] == [1] * 5
    assert not path.events
    assert all(branches.tolist() == [0] for branches in path.branches)
    assert (path.results[0].pieces != path.results[-1].pieces).sum() > 3


@pytest.mark.parametrize("seed", [0, 1, 17, 89])
def test_every_branch_begins_and_ends_with_an_event(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, units = 1 + seed % 3, 24
    left, bias = rng.normal(size=(units, rank)), np.abs(rng.normal(size=units))
    weights = left * rng.uniform(-0.2, 1.0, size=(units, 1)) + 0.5 * rng.normal(size=left.shape)
    inputs = np.linspace(0, 3, 6)[:, None] * rng.normal(size=units)
    path = continuation(0.9, left, 4 / units * weights.T, bias, "clipped_relu", input_currents=inputs)
    begin = {event.branch: event.step + 1 for event in path.events if event.kind == "appears"}
    end = {event.branch: event.step for event in path.events if event.kind == "vanishes"}
    for number in range(max(branches.max() for branches in path.branches) + 1):
        steps, _ = path.branch(number)
        assert steps.tolist() == list(range(begin.get(number, 0), end.get(number, 5) + 1))


def test_branches_that_stay_keep_their_numbers() -> None:
    decay, left, right, bias = bistable(2)
    inputs = np.linspace(0, 0.3, 4)[:, None] * np.ones(4)
    path = continuation(decay, left, right, bias, method="enumerate", input_currents=inputs)
    assert not path.events
    for branches in path.branches:
        assert sorted(branches.tolist()) == list(range(9))
    for number in range(9):
        _, points = path.branch(number)
        assert np.abs(np.diff(points, axis=0)).max() < 0.5


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more inputs, inputs x units"):
        continuation(*bistable(1), input_currents=np.zeros(2))
    with pytest.raises(ValueError, match="`input_current` must have shape 2"):
        continuation(*bistable(1), input_currents=np.zeros((3, 5)))
