"""Stability, Jacobians and residuals are what differences and simulations say; bad input is refused at once."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from tests.fixed_points.networks import bistable, bistable_points
from tests.oracles.brute_force import same_points

ACTIVATIONS = ["relu", "clipped_relu", "tanh", "softplus"]


def weights(seed: int, rank: int = 2, units: int = 20) -> tuple[float, Array, Array, Array]:
    """Decay, left, right and bias of a random network with a few fixed points."""
    rng = np.random.default_rng(seed)
    gain = 2.0 / units**0.5
    return 0.8, rng.normal(size=(units, rank)), gain * rng.normal(size=(rank, units)), rng.normal(size=units)


def step(network: LatentMap, z: Array) -> Array:
    """One step of the map F."""
    return z + network.value(z)


def method_for(activation: str) -> str:
    """A method that works without a proof."""
    return "search" if activation in ("tanh", "softplus") else "enumerate"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_eigenvalues_are_those_of_finite_differences(activation: str) -> None:
    total = 0
    for seed in range(10):
        network = build_network(*weights(seed), activation)
        result = find_fixed_points(*weights(seed), activation, method=method_for(activation), num_starts=100)
        for z, eigenvalues, on_knot in zip(result.points, result.eigenvalues, result.on_knot, strict=True):
            if on_knot.any():
                continue
            eps = 1e-6
            columns = [(step(network, z + d) - step(network, z - d)) / (2 * eps) for d in eps * np.eye(2)]
            expected = np.linalg.eigvals(np.array(columns).T)
            expected = expected[np.argsort(-np.abs(expected), kind="stable")]
            np.testing.assert_allclose(np.abs(eigenvalues), np.abs(expected), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(eigenvalues.sum(), expected.sum(), rtol=1e-6, atol=1e-7)
            total += 1
    assert total >= 8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stability_is_what_a_simulation_shows(activation: str) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for seed in range(20):
        network = build_network(*weights(seed), activation)
        result = find_fixed_points(*weights(seed), activation, method=method_for(activation), num_starts=100)
        for index, z in enumerate(result.points):
            start = z + 1e-7 * rng.normal(size=(20, 2))
            now = start
            for _ in range(4000):
                now = step(network, now)
                away = np.linalg.norm(now - z, axis=1)
                if (away > 1e-4).any() or (away < 1e-11).all():
                    break
            label = result.stability[index]
            seen.add(str(label))
            if label == "attractor":
                assert (away < 1e-6).all()
            elif label in ("saddle", "repeller"):
                assert (away > 1e-5).any()
    assert {"attractor", "saddle"} <= seen


def test_labels_of_linear_maps() -> None:
    cases: dict[str, tuple[Array, str]] = {
        "attractor": (np.diag([0.5, 0.3]), "attractor, node"),
        "repeller": (np.diag([2.0, -1.5]), "repeller, node"),
        "saddle": (np.diag([2.0, 0.5]), "saddle, 1 unstable, node"),
        "marginal": (np.array([[0.0, -1.0], [1.0, 0.0]]), "marginal, 0 unstable, spiral"),
    }
    for label, (matrix, words) in cases.items():
        result = find_fixed_points(matrix, np.eye(2), np.zeros((2, 2)), np.zeros(2), method="enumerate")
        assert result.stability.tolist() == [label]
        assert result.describe(0) == words
    spiral = np.array([[0.5, -0.5], [0.5, 0.5]])
    assert find_fixed_points(spiral, np.eye(2), np.zeros((2, 2)), np.zeros(2), method="enumerate").is_spiral.all()
    saddle = find_fixed_points(np.diag([2.0, 3.0, 0.1]), np.eye(3), np.zeros((3, 3)), np.zeros(3), method="enumerate")
    assert saddle.num_unstable.tolist() == [2]


def test_points_on_a_knot_are_labelled_boundary() -> None:
    result = find_fixed_points(0.5, np.eye(2), 0.3 * np.eye(2), np.zeros(2), method="enumerate")
    assert result.stability.tolist() == ["boundary"]
    assert result.on_knot.tolist() == [[True, True]]
    assert result.describe(0) == "boundary, 2 units at a knot"


@pytest.mark.parametrize("method", ["certified", "enumerate", "search"])
def test_every_method_finds_all_of_a_known_network(method: str) -> None:
    for rank in (1, 2, 3):
        result = find_fixed_points(*bistable(rank), method=method)
        assert same_points(result.points, bistable_points(rank))
        stable = np.isin(result.points.round(6), [0.0, 4.0]).all(1)
        np.testing.assert_array_equal(result.stability == "attractor", stable)
        np.testing.assert_array_equal(result.num_unstable, (result.points.round(3) == 1.333).sum(1))
        assert result.certificate.method == method
        assert result.certificate.complete == (method != "search")
        assert result.certificate.index_sum == 1
        assert result.residuals.max() < 1e-12


def test_active_units_and_pieces() -> None:
    result = find_fixed_points(*bistable(1), method="enumerate")
    np.testing.assert_allclose(result.points.ravel(), [0, 4 / 3, 4])
    assert result.active.tolist() == [[False, False], [True, False], [True, True]]
    assert result.pieces.tolist() == [[0, 0], [1, 0], [1, 1]]


def test_a_result_reads_as_a_table() -> None:
    result = find_fixed_points(*bistable(2), method="enumerate")
    text = str(result)
    assert text.startswith("FixedPoints: 9 isolated (4 attractor, 4 saddle, 1 repeller), 0 sets")
    assert "complete: there are no others; index sum 1 (expected 1)" in text
    assert text.count("attractor, node") == 4
    assert len(text.splitlines()) == 4 + 9
    many = find_fixed_points(*bistable(4), method="enumerate")
    assert "... and 41 more" in str(many)
    stopped = find_fixed_points(*bistable(2), method="enumerate", max_boxes=3)
    assert "not complete: there may be others" in str(stopped)
    line = find_fixed_points(0.0, [[1.0], [1.0]], [[1.0, -1.0]], [0.0, 2.0], method="enumerate")
    assert "set 1: line from (" in str(line)


def test_the_certificate_tells_its_margin() -> None:
    result = find_fixed_points(*weights(0), "clipped_relu")
    margin, searched = result.certificate.margin, result.certificate.searched
    assert margin is not None
    assert searched is not None
    assert 1e-16 < margin < 1e-11
    assert result.residuals.max() <= margin
    for corner in (searched[0], searched[1]):
        assert (result.network.error(corner) <= margin).all()
    assert f"rounding errors of up to {margin:.1e} are allowed for" in str(result)
    assert find_fixed_points(*weights(0), "clipped_relu", method="enumerate").certificate.margin is None


def test_columns_for_a_data_frame() -> None:
    result = find_fixed_points(*bistable(2), method="enumerate")
    columns = result.to_dict()
    assert {len(column) for column in columns.values()} == {9}
    assert {column.ndim for column in columns.values()} == {1}
    np.testing.assert_array_equal(columns["z2"], result.points[:, 1])
    assert columns["stability"].tolist() == result.stability.tolist()
    assert columns["num_active"].max() == 4


def test_an_empty_result_has_its_shapes() -> None:
    result = find_fixed_points(0.5, [[1.0, 0.0]], [[1.0], [0.0]], [0.0], constant=[1.0, 0.0], method="enumerate")
    assert result.points.shape == result.eigenvalues.shape == (0, 2)
    assert result.active.shape == (0, 1)
    assert len(result) == len(result.stability) == 0
    assert result.certificate.open_boxes.shape == (0, 2, 2)
    assert "0 isolated, 0 sets" in str(result)


def test_results_are_frozen() -> None:
    result = find_fixed_points(*bistable(1), method="enumerate")
    assert isinstance(result, FixedPoints)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.points = np.zeros((0, 1))  # type: ignore[misc]


@pytest.mark.parametrize("method", ["certified", "enumerate", "search"])
def test_an_interrupt_returns_what_is_known(method: str) -> None:
    rng = np.random.default_rng(0)
    arguments = (0.9, rng.normal(size=(40, 3)), rng.normal(size=(3, 40)), rng.normal(size=40))

    def stop(count: int, known: int) -> None:
        raise KeyboardInterrupt

    result = find_fixed_points(*arguments, method=method, progress=stop)
    assert result.certificate.interrupted
    assert not result.certificate.complete
    assert "interrupted: there may be others" in str(result)


GOOD: dict[str, Any] = {"decay": 0.5, "left": np.ones((3, 2)), "right": np.ones((2, 3)), "bias": np.zeros(3)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"left": np.full((3, 2), np.nan)}, "`left` holds NaN"),
        ({"bias": np.array([0.0, np.inf, 0.0])}, "`bias` holds NaN or infinite"),
        ({"right": np.ones((3, 2))}, r"`right` must have shape 2 x 3, got \(3, 2\)"),
        ({"bias": np.zeros(2)}, "`bias` must have shape 3"),
        ({"decay": np.full(3, 0.5)}, "`decay` must have shape 2"),
        ({"decay": np.nan}, "`decay` holds NaN"),
        ({"input_current": np.zeros(2)}, "`input_current` must have shape 3"),
        ({"activation": "gelu"}, "`activation` must be one of 'relu'"),
        ({"left": np.full((3, 2), 1e80)}, "between 1e-75 and 1e\\+75: change its units"),
        ({"right": np.full((2, 3), 1e-80)}, "between 1e-75 and 1e\\+75: change its units"),
        ({"method": "guess"}, "`method` must be one of 'certified', 'enumerate', 'search', got 'guess'"),
        ({"max_boxes": 0}, "`max_boxes` must be at least 1"),
        ({"max_seconds": 0.0}, "`max_seconds` must be finite and above zero"),
        ({"threads": 0}, "`threads` must be at least 1"),
        ({"num_starts": 0}, "`num_starts` must be at least 1"),
        ({"activation": "tanh", "method": "enumerate"}, "Only piecewise-linear units"),
    ],
)
def test_bad_input_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_fixed_points(**{**GOOD, **bad})


def test_what_is_no_array_of_numbers_is_refused() -> None:
    for bad in ("weights", [[1.0], [2.0, 3.0]], np.ones((3, 2)) * 1j):
        with pytest.raises(TypeError, match="`left` must be an array of numbers"):
            find_fixed_points(**{**GOOD, "left": bad})
    with pytest.raises(TypeError, match="`decay` must be an array of numbers, got str"):
        find_fixed_points(**{**GOOD, "decay": "slow"})
    with pytest.raises(TypeError, match="must be a name or a PiecewiseLinear, whose bounds on an interval are known"):
        find_fixed_points(**GOOD, activation=np.tanh)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`max_boxes` must be an integer"):
        find_fixed_points(**GOOD, max_boxes=2.5)  # type: ignore[arg-type]


def test_arrays_of_any_layout_are_taken_and_left_alone() -> None:
    decay, left, right, bias = weights(3)
    expected = find_fixed_points(decay, left, right, bias).points
    frozen = left.copy()
    frozen.setflags(write=False)
    for other in (np.asfortranarray(left), np.repeat(left, 2, 0)[::2], frozen, left.tolist(), left.astype(object)):
        result = find_fixed_points(decay, other, right, bias)
        np.testing.assert_array_equal(result.points, expected)
    left[:] = 0.0
    np.testing.assert_allclose(result.step(result.points), result.points, atol=1e-9)


def test_networks_may_be_analysed_side_by_side() -> None:
    networks = [(0.9, *weights(seed, rank=3, units=60)[1:]) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: find_fixed_points(*one, "clipped_relu").points, networks))
    for points, one in zip(together, networks, strict=True):
        assert same_points(points, find_fixed_points(*one, "clipped_relu").points)


def test_single_precision_weights_give_the_same() -> None:
    double = weights(3)
    single = tuple(np.asarray(part, dtype=np.float32) for part in double)
    a = find_fixed_points(*double, method="enumerate")
    b = find_fixed_points(*single, method="enumerate")
    np.testing.assert_allclose(a.points, b.points, rtol=1e-4, atol=1e-4)
    assert b.points.dtype == np.float64
