"""Networks that once took too long, or were given up: concurrent knots, few units, rings, dead latents, odd scales."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.fixed_points import find_fixed_points, fixed_points_of
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from tests.fixed_points.networks import BOUNDED, THREE_PIECES
from tests.oracles.brute_force import brute_force, same_points

ACTIVATIONS = {"relu": 8, "clipped_relu": 5, "three_pieces": 5, "bounded": 4, "identity": 8}
SHAPES = {"three_pieces": THREE_PIECES, "bounded": BOUNDED}


def odd_network(seed: int) -> tuple[LatentMap, float]:
    """A small network with one oddity: repeated units, whole numbers, weights of another scale, zeros, no bias."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(ACTIVATIONS)))
    rank, units = int(rng.integers(1, 5)), int(rng.integers(1, ACTIVATIONS[name] + 1))
    left, right, bias = rng.normal(size=(units, rank)), rng.normal(size=(rank, units)), rng.normal(size=units)
    scale, oddity = 1.0, seed % 6
    if oddity == 0:
        left = left[rng.integers(units, size=units)]
    elif oddity == 1:
        left, bias = rng.integers(-1, 2, size=left.shape).astype(float), np.round(bias)
    elif oddity == 2:
        # Latents of another size: the fixed points scale with them.
        scale = 10.0 ** rng.integers(-6, 7)
        left, right = left / scale, right * scale
    elif oddity == 3:
        # Currents of another size, the knots as well.
        factor = 10.0 ** rng.integers(-6, 7)
        left, right, bias = left * factor, right / factor, bias * factor
    elif oddity == 4:
        left[:, rng.integers(rank)], right[rng.integers(rank)] = 0.0, 0.0
    else:
        bias[:] = 0.0
    decay = rng.choice([0.0, 0.5, 0.9, 1.3, -0.5]) if rng.integers(2) else rng.uniform(0.1, 1.2, rank)
    return build_network(decay, left, right, bias, SHAPES.get(name, name)), scale


def check(seeds: range) -> None:
    for seed in seeds:
        network, scale = odd_network(seed)
        expected = brute_force(network, tolerance=1e-10 * min(scale, 1.0))
        if len(expected.singular):
            continue
        searched = fixed_points_of(network, method="search", num_starts=100).points / scale
        away = np.linalg.norm(searched[:, None] - expected.points / scale, axis=-1)
        near = away < 1e-7 * (1 + np.abs(searched).max(initial=0))
        assert (near.sum(1) == 1).all(), f"a false one, {seed}"
        assert (near.sum(0) <= 1).all(), f"one twice, {seed}"
        for method in ("certified", "enumerate"):
            result = fixed_points_of(network, method=method, max_seconds=20)
            assert result.certificate.complete, (seed, method)
            assert same_points(result.points / scale, expected.points / scale), (seed, method)
            if None not in (result.certificate.index_sum, result.certificate.expected_index_sum):
                assert result.certificate.index_sum == result.certificate.expected_index_sum, (seed, method)


def test_odd_networks() -> None:
    check(range(50))


@pytest.mark.slow
def test_thousands_of_odd_networks() -> None:
    check(range(50, 6000))


@pytest.mark.parametrize(("units", "rank"), [(8, 3), (20, 2), (100, 2), (60, 3)])
def test_without_biases_all_knots_meet_in_the_origin(units: int, rank: int) -> None:
    rng = np.random.default_rng(units)
    left, right = rng.normal(size=(units, rank)), 0.3 / units * rng.normal(size=(rank, units))
    result = find_fixed_points(0.9, left, right, np.zeros(units), "relu")
    assert result.certificate.complete
    np.testing.assert_array_equal(result.points, np.zeros((1, rank)))
    assert result.stability.tolist() == ["boundary"]
    assert result.certificate.index_sum == result.certificate.expected_index_sum


def test_many_knots_meet_away_from_the_origin() -> None:
    # 40 relu units bend at (1, 2), a fixed point, and a bistable pair makes others.
    rng = np.random.default_rng(3)
    left = rng.normal(size=(40, 2))
    right = 0.2 / 40 * rng.normal(size=(2, 40))
    place = np.array([1.0, 2.0])
    result = find_fixed_points(0.5, left, right, left @ place, "relu", constant=0.5 * place)
    assert result.certificate.complete
    assert np.linalg.norm(result.points - place, axis=1).min() < 1e-12
    assert result.certificate.index_sum == result.certificate.expected_index_sum


def test_clipped_units_without_bias_do_nothing() -> None:
    rng = np.random.default_rng(0)
    result = find_fixed_points(0.9, rng.normal(size=(100, 3)), rng.normal(size=(3, 100)), np.zeros(100), "clipped_relu")
    assert result.certificate.complete
    np.testing.assert_array_equal(result.points, np.zeros((1, 3)))
    assert result.stability.tolist() == ["attractor"]


def tanh_ring(units: int) -> tuple[float, Array, Array, Array, str]:
    """Units whose weights lie evenly on a circle: the more, the nearer to a continuous ring of fixed points."""
    angles = 2 * np.pi * np.arange(units) / units
    left = np.column_stack([np.cos(angles), np.sin(angles)])
    return 0.5, left, 2 / units * left.T, np.zeros(units), "tanh"


@pytest.mark.parametrize("units", [8, 16])
def test_a_ring_of_tanh_units_has_two_points_per_unit(units: int) -> None:
    result = find_fixed_points(*tanh_ring(units))
    assert result.certificate.complete
    kinds = result.stability.tolist()
    assert (kinds.count("attractor"), kinds.count("saddle"), kinds.count("repeller")) == (units, units, 1)


@pytest.mark.slow
def test_a_ring_that_is_continuous_to_rounding_is_left_open() -> None:
    result = find_fixed_points(*tanh_ring(64))
    assert not result.certificate.complete
    assert len(result) == 1, "the repeller in the middle is isolated"
    boxes = result.certificate.open_boxes
    ring = np.array([3.0, 0.0])
    for _ in range(2000):
        ring = result.step(ring)
    for turn in np.linspace(0, 2 * np.pi, 50):
        point = np.linalg.norm(ring) * np.array([np.cos(turn), np.sin(turn)])
        np.testing.assert_allclose(result.step(point), point, atol=1e-14)
        assert ((boxes[:, 0] - 1e-9 <= point) & (point <= boxes[:, 1] + 1e-9)).all(1).any()


def test_a_latent_that_keeps_what_it_holds_is_left_open() -> None:
    # z1 stays where it is: a line of fixed points that smooth units cannot be told to be one.
    result = find_fixed_points([1.0, 0.5], np.eye(2), np.diag([0.0, 1.0]), np.zeros(2), "tanh")
    assert not result.certificate.complete
    assert result.certificate.seconds < 60
    boxes = result.certificate.open_boxes
    for z1 in (-100.0, 0.3, 500.0):
        for z2 in (-1.9150080481545375, 0.0, 1.9150080481545375):
            assert ((boxes[:, 0] <= [z1, z2]) & ([z1, z2] <= boxes[:, 1])).all(1).any()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_unbounded_units_have_a_degree_too(activation: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    left, right = rng.normal(size=(30, rank)), rng.normal(size=(rank, 30)) * rng.choice([0.05, 0.3, 1.0])
    result = find_fixed_points(0.8, left, right, rng.normal(size=30), activation)
    assert result.certificate.complete
    assert result.certificate.expected_index_sum is not None
    assert result.certificate.index_sum == result.certificate.expected_index_sum


def test_where_time_runs_out_what_a_search_finds_in_open_boxes_is_there() -> None:
    rng = np.random.default_rng(0)
    left, bias = rng.normal(size=(512, 6)), np.abs(rng.normal(size=512))
    right = 4 / 512 * (left * rng.uniform(-0.2, 1.0, size=(512, 1)) + 0.5 * rng.normal(size=left.shape)).T
    result = find_fixed_points(0.9, left, right, bias, "clipped_relu", max_seconds=2)
    assert not result.certificate.complete
    assert result.certificate.seconds < 6
    assert len(result) >= 1
    np.testing.assert_allclose(result.step(result.points), result.points, atol=1e-12)
    boxes = result.certificate.open_boxes[:, None]
    inside = ((boxes[:, :, 0] <= result.points) & (result.points <= boxes[:, :, 1])).all(-1).any(0)
    assert inside.any()
    tanh = find_fixed_points(0.9, left[:128], 4 * right[:, :128], bias[:128], "tanh", max_seconds=2)
    assert tanh.certificate.complete or len(tanh) >= 1
