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
    # The slope at zero is -1 where the sigmoid is 1 / 2.8.
    assert -1 + 4 * event.fraction == pytest.approx(-np.log(1.8), abs=1e-6)
    np.testing.assert_allclose(event.point, 0, atol=1e-9)


def kinds(path: Continuation) -> list[tuple[str, str | None, str | None]]:
    return [(event.kind, event.before, event.after) for event in path.events]


def pair(gain: float, inputs: list[float]) -> Continuation:
    """Fixed points of z = z / 2 + gain (tanh(z + I) + tanh(z - I)): symmetric, so that branches meet at zero."""
    currents = np.array(inputs)[:, None] * np.ones(2)
    return continuation(0.5, [[1.0], [-1.0]], [[gain, -gain]], np.zeros(2), "tanh", input_currents=currents)


def test_a_pitchfork_changes_stability_and_two_points_appear() -> None:
    # At zero the slope is 1/2 + 0.6 sech(I)^2, which is 1 at sech(I)^2 = 5 / 6.
    at = np.arccosh((6 / 5) ** 0.5)
    path = pair(0.3, [0.8, 0.3])
    assert kinds(path) == [
        ("changes", "attractor", "repeller"),
        ("appears", None, "attractor"),
        ("appears", None, "attractor"),
    ]
    for event in path.events:
        assert 0.8 - 0.5 * event.fraction == pytest.approx(at, abs=1e-4)
        np.testing.assert_allclose(event.point, 0, atol=0.01)
    assert path.branch(0)[1].ravel() == pytest.approx([0, 0], abs=1e-9)
    backward = pair(0.3, [0.3, 0.8])
    assert sorted(kinds(backward)) == sorted(
        [("changes", "repeller", "attractor"), ("vanishes", "attractor", None), ("vanishes", "attractor", None)]
    )


@pytest.mark.parametrize("inputs", [[2.0, 0.0], [2.0, 0.1], [2.0, 1.5, 1.0, 0.5, 0.0]])
def test_branches_between_two_inputs_are_seen(inputs: list[float]) -> None:
    # Two folds, each of an attractor and a repeller; the repellers then end at zero, at neither of the inputs.
    currents = np.array(inputs)[:, None] * np.ones(2)
    path = continuation(0.0, [[1.0], [-1.0]], [[1.2, -1.2]], np.zeros(2), "tanh", input_currents=currents)
    assert len(path.results[0]) == 1
    assert len(path.results[-1]) == 3
    assert sorted(kinds(path), key=str) == sorted(
        [("appears", None, "attractor")] * 2
        + [("appears", None, "repeller")] * 2
        + [("vanishes", "repeller", None)] * 2
        + [("changes", "attractor", "repeller")],
        key=str,
    )
    # At zero the slope is 2.4 sech(I)^2.
    change = next(event for event in path.events if event.kind == "changes")
    strengths = np.interp(change.step + change.fraction, np.arange(len(inputs)), inputs)
    assert strengths == pytest.approx(np.arccosh(2.4**0.5), abs=1e-4)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (2.0, [("vanishes", "attractor", None), ("vanishes", "repeller", None)]),
        (0.3, []),
        (-3.0, [("changes", "attractor", "repeller")]),
    ],
)
def test_collisions_with_a_knot(weight: float, expected: list[tuple[str, str | None, str | None]]) -> None:
    # z = z / 2 + weight max(z + I, 0): the fixed point at 0 meets the knot at I = 0.
    path = continuation(0.5, [[1.0]], [[weight]], [0.0], input_currents=[[-1.0], [1.0]])
    assert kinds(path) == expected
    for event in path.events:
        assert event.fraction == pytest.approx(0.5, abs=1e-5)
        np.testing.assert_allclose(event.point, 0, atol=1e-4)


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


@pytest.mark.parametrize("seed", [*(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1)), 17, 89])
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
