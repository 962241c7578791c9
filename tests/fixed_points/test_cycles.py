"""Cycles are those of brute force, each once, and their multipliers say what a simulation does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points.cycles import Cycles, find_cycles, unroll
from pyro_lowrank.fixed_points.network import Array, build_network
from tests.oracles.brute_force import brute_force

NEGATIVE: dict[str, Any] = {"decay": 0.0, "left": [[1.0]], "right": [[-2.0]], "bias": [0.0], "activation": "tanh"}


def weights(seed: int, rank: int = 2, units: int = 4) -> tuple[Any, ...]:
    """Weights of a network that turns, so that it has cycles."""
    rng = np.random.default_rng(seed)
    return 0.0, rng.normal(size=(units, rank)), 2.5 * rng.normal(size=(rank, units)), rng.normal(size=units)


def cycles_by_brute_force(arguments: tuple[Any, ...], activation: str, order: int) -> Array:
    """Zeros of the unrolled network that do not close earlier, from all of their points, `orbits x order x rank`."""
    network = build_network(*arguments, activation)
    orbits = brute_force(unroll(network, order)).points.reshape(-1, order, network.rank)
    keep = [min(np.abs(np.roll(o, s, 0) - o).max() for s in range(1, order)) > 1e-6 for o in orbits]
    return orbits[np.array(keep, dtype=bool)]


@pytest.mark.parametrize(("activation", "order"), [("relu", 2), ("relu", 3), ("clipped_relu", 2)])
def test_the_cycles_of_brute_force(activation: str, order: int) -> None:
    total = 0
    for seed in range(8, 15):
        arguments = weights(seed, units=3)
        expected = cycles_by_brute_force(arguments, activation, order)
        for method in ("certified", "enumerate", "search"):
            cycles = find_cycles(*arguments, activation, order=order, method=method)
            turned = [np.roll(cycle, shift, axis=0) for cycle in cycles.points for shift in range(order)]
            assert len(turned) == len(expected), (seed, method)
            for orbit in turned:
                assert np.abs(expected - orbit).max((1, 2)).min() < 1e-7, (seed, method)
        total += len(expected) // order
    assert total >= 3


def simulate(cycles: Cycles, network: Any, index: int) -> float:
    """Distance after many rounds from a start near a cycle."""
    z = cycles.points[index, 0] + 1e-6
    for _ in range(200 * cycles.order):
        z = np.clip(z + network.value(z), -1e6, 1e6)
    return float(np.linalg.norm(z - cycles.points[index, 0]))


def test_multipliers_are_derivatives_of_the_whole_round_and_decide_stability() -> None:
    seen = set()
    for seed in range(30):
        arguments = weights(seed, units=6)
        network = build_network(*arguments, "tanh")
        cycles = find_cycles(*arguments, "tanh", order=2, method="search", num_starts=60)
        for index, (cycle, multipliers) in enumerate(zip(cycles.points, cycles.multipliers, strict=True)):
            for z, after in pairwise([*cycle, cycle[0]]):
                np.testing.assert_allclose(z + network.value(z), after, atol=1e-9)

            eps = 1e-6
            ends = []
            for sign in (1, -1):
                once = cycle[0] + sign * eps * np.eye(2)
                twice = once + network.value(once)
                ends.append(twice + network.value(twice))
            columns = (ends[0] - ends[1]) / (2 * eps)
            expected = np.linalg.eigvals(columns.T)
            np.testing.assert_allclose(np.sort(np.abs(multipliers)), np.sort(np.abs(expected)), rtol=1e-4, atol=1e-5)
            label = str(cycles.stability[index])
            seen.add(label)
            if np.abs(np.abs(multipliers) - 1).min() > 0.1:
                away = simulate(cycles, network, index)
                assert (away < 1e-6) == (label == "attractor")
    assert {"attractor", "saddle"} <= seen


@pytest.mark.parametrize("method", ["certified", "search"])
def test_a_unit_that_flips(method: str) -> None:
    cycles = find_cycles(**NEGATIVE, order=2, method=method)
    np.testing.assert_allclose(cycles.points.ravel(), [-1.9150080481545, 1.9150080481545], atol=1e-10)
    assert cycles.stability.tolist() == ["attractor"]
    assert cycles.residuals.max() < 1e-12
    assert "Cycles of order 2: 1" in str(cycles)
    assert cycles.certificate.complete == (method == "certified")


def test_fixed_points_and_shorter_cycles_are_left_out() -> None:
    assert len(find_cycles(**NEGATIVE, order=1, method="search")) == 1
    assert len(find_cycles(**NEGATIVE, order=3, method="search")) == 0
    assert len(find_cycles(**NEGATIVE, order=4, method="search")) == 0


def test_small_orders_are_certified_unless_told_otherwise() -> None:
    assert find_cycles(**NEGATIVE, order=2).certificate.method == "certified"
    assert find_cycles(**NEGATIVE, order=7, num_starts=20).certificate.method == "search"


def test_a_line_of_cycles_is_a_set() -> None:
    # z' = -z wherever the unit is on its middle piece: every point but 0 is on a cycle of order 2.
    cycles = find_cycles(0.0, [[1.0]], [[-1.0]], [0.0], "identity", order=2, method="enumerate")
    assert len(cycles) == 0
    (piece,) = cycles.sets
    np.testing.assert_allclose(np.abs(piece.directions), [[0.5**0.5, 0.5**0.5]], atol=1e-9)


def test_bad_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="`order` must be at least 1"):
        find_cycles(**NEGATIVE, order=0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cycles_of_any_scale_are_told_apart(scale: float) -> None:
    """z' = -3 z between two knots and flat beyond them goes to and fro between the two flat ends."""
    weights = 0.0, [[1.0], [1.0]], [[-3.0, 3.0]], [-scale, scale]
    cycles = find_cycles(*weights, constant=[3 * scale], order=2)
    assert cycles.certificate.complete
    np.testing.assert_allclose(cycles.points.ravel() / scale, [-3.0, 3.0], rtol=1e-12)
