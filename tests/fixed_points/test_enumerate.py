"""Enumeration finds what brute force finds, however the hyperplanes lie."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_lowrank.fixed_points.arrangement import ENTRIES, Arrangement
from pyro_lowrank.fixed_points.enumerate import enumerate_regions
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from pyro_lowrank.fixed_points.options import Options
from tests.fixed_points.networks import ACTIVATIONS, bistable, bistable_points, random_networks
from tests.oracles.brute_force import brute_force, same_points


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_same_fixed_points_as_brute_force(name: str) -> None:
    total = 0
    for network in random_networks(name, 100):
        expected, found = brute_force(network), enumerate_regions(network)
        assert same_points(found.points, expected.points)
        assert found.complete
        assert expected.index_sum in (None, found.index_sum)
        assert found.index_sum == found.expected_index_sum
        total += len(expected.points)
    assert total > 60, "there must be something to miss"


def grid_network(seed: int) -> LatentMap:
    """A network whose hyperplanes are parallel, coincident and concurrent: small whole numbers everywhere."""
    rng = np.random.default_rng(seed)
    rank, units = int(rng.integers(1, 4)), int(rng.integers(1, 8))
    left = rng.integers(-1, 2, size=(units, rank)).astype(float)
    bias = rng.integers(-1, 2, size=units).astype(float)
    # Not whole numbers: no region is singular.
    return build_network(rng.uniform(0.2, 0.9, rank), left, rng.normal(size=(rank, units)), bias)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_parallel_coincident_and_concurrent_hyperplanes(seed: int) -> None:
    network = grid_network(seed)
    expected, found = brute_force(network), enumerate_regions(network)
    assert not len(expected.singular)
    assert same_points(found.points, expected.points)
    assert found.complete
    assert found.expected_index_sum in (None, found.index_sum)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_latents_that_do_not_touch(rank: int) -> None:
    found = enumerate_regions(build_network(*bistable(rank)))
    assert same_points(found.points, bistable_points(rank))
    assert found.complete
    assert found.index_sum == found.expected_index_sum == 1


def test_figure_8_of_the_paper(shared_data: Path) -> None:
    with np.load(shared_data / "teacher_reach_rnn.npz", allow_pickle=False) as d:
        network = build_network(float(d["decay"]), d["U"], d["V"], -d["b_rec"])
    found = enumerate_regions(network)
    assert len(found.points) == 17
    assert found.complete
    assert found.solves == 3601
    assert np.abs(network.value(found.points)).max() < 1e-12


def cells(normals: Array, offsets: Array, seed: int = 0) -> Array:
    """All sign vectors."""
    return np.concatenate(list(Arrangement(normals, offsets, np.random.default_rng(seed)).cells()))


@pytest.mark.parametrize(("count", "dimensions"), [(30, 1), (30, 2), (12, 3), (8, 4), (3, 4)])
def test_every_cell_once_in_general_position(count: int, dimensions: int) -> None:
    rng = np.random.default_rng(count)
    found = cells(rng.normal(size=(count, dimensions)), rng.normal(size=count))
    assert len(found) == len(np.unique(found, axis=0)) == sum(comb(count, k) for k in range(dimensions + 1))


@pytest.mark.parametrize(("count", "dimensions"), [(30, 2), (12, 3), (8, 4)])
def test_cells_of_hyperplanes_through_one_point(count: int, dimensions: int) -> None:
    rng = np.random.default_rng(count)
    # Of few digits, so that products are exact.
    normals, point = (np.round(2**20 * rng.normal(size=shape)) for shape in ((count, dimensions), dimensions))
    expected = 2 * sum(comb(count - 1, k) for k in range(dimensions))
    for place in (0 * point, point):
        assert len(np.unique(cells(normals, normals @ place), axis=0)) == expected
    # Off by a last place each they do not meet, and leave many cells that are very thin.
    near = np.nextafter(normals @ point, rng.choice([-np.inf, np.inf], size=count))
    assert len(np.unique(cells(normals, near), axis=0)) == sum(comb(count, k) for k in range(dimensions + 1))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_no_sampled_cell_is_missing(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    for seed in range(60):
        normals = rng.integers(-1, 2, size=(7, dimensions)).astype(float)
        normals = normals[normals.any(1)]
        offsets = rng.integers(-1, 2, size=len(normals)).astype(float)
        z = rng.normal(size=(5000, dimensions)) * rng.choice([0.3, 1.0, 3.0, 30.0], size=(5000, 1))
        sampled = {tuple(row) for row in np.where(z @ normals.T > offsets, 1, -1).tolist()}
        assert sampled <= {tuple(row) for row in cells(normals, offsets, seed).tolist()}


@pytest.mark.parametrize("exponent", [-6, 0, 3])
def test_any_scale_of_weights_and_nearly_parallel_hyperplanes(exponent: int) -> None:
    proved = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rank, units, scale = int(rng.integers(1, 4)), int(rng.integers(2, 8)), 10.0**exponent
        left, bias = rng.normal(size=(units, rank)), rng.normal(size=units)
        left[1] = left[0] + 10.0 ** -rng.integers(3, 17) * rng.normal(size=rank)
        bias[1] = bias[0]
        network = build_network(0.7, left * scale, rng.normal(size=(rank, units)) / scale, bias)
        expected, found = brute_force(network), enumerate_regions(network)
        assert same_points(found.points * scale, expected.points * scale)
        proved += found.complete
        if found.complete:
            assert found.index_sum == found.expected_index_sum
    assert proved > 20


def test_regions_come_in_a_stream_of_bounded_pieces() -> None:
    rng = np.random.default_rng(0)
    sizes = [len(signs) for signs in Arrangement(rng.normal(size=(60, 3)), rng.normal(size=60), rng).cells()]
    assert sum(sizes) == sum(comb(60, k) for k in range(4))
    assert max(sizes) * 60 <= ENTRIES
    assert len(sizes) > 2


def test_points_a_millionth_apart_are_two() -> None:
    # The function rises over its knot and comes back: two zeros around a knot, 1e-6 apart.
    gap = 1e-6
    network = build_network(0.0, [[1.0], [1.0]], [[0.5, 2.0]], [0.0, 1.0], constant=[0.5 - gap / 4])
    found = enumerate_regions(network)
    expected = brute_force(network)
    assert same_points(found.points, expected.points, tolerance=1e-9)
    assert len(found.points) == 2
    assert 1e-7 < np.ptp(found.points) < 1e-5
    assert found.index_sum == found.expected_index_sum == 0


def test_none_at_all() -> None:
    found = enumerate_regions(build_network(0.5, [[1.0]], [[1.0]], [0.0], constant=[1.0]))
    assert len(found.points) == 0
    assert found.complete
    assert found.index_sum == found.expected_index_sum == 0


def test_a_fixed_point_on_knots_counts_once() -> None:
    network = build_network(0.5, np.eye(3), 0.3 * np.eye(3), np.zeros(3))
    found = enumerate_regions(network)
    np.testing.assert_allclose(found.points, np.zeros((1, 3)), atol=1e-12)
    assert found.index_sum == found.expected_index_sum == 1


def test_a_fold_on_a_knot_has_index_zero() -> None:
    # 2 relu(z) - z = abs(z): zero at the knot, and never below.
    found = enumerate_regions(build_network(0.0, [[1.0]], [[2.0]], [0.0]))
    assert found.points.tolist() == [[0.0]]
    assert found.index_sum == found.expected_index_sum == 0


def test_lines_and_planes_of_fixed_points() -> None:
    line = enumerate_regions(build_network(0.5, np.eye(2), np.diag([0.5, 0.2]), [1.0, 1.0], constant=[0.5, 0.5]))
    (piece,) = line.sets
    assert len(line.points) == 0
    assert not piece.is_bounded
    np.testing.assert_allclose(np.abs(piece.directions), [[1.0, 0.0]], atol=1e-12)
    assert line.index_sum is None
    # A bounded line: slope 1 in between two knots.
    network = build_network(0.0, [[1.0], [1.0]], [[1.0, -1.0]], [0.0, 2.0])
    segment = enumerate_regions(network)
    (piece,) = segment.sets
    assert piece.is_bounded
    np.testing.assert_allclose(np.sort(piece.vertices.ravel()), [0.0, 2.0], atol=1e-12)
    assert len(segment.points) == 0, "the ends of the line are not isolated"
    plane = enumerate_regions(
        build_network(0.0, np.eye(2)[[0, 0, 1, 1]], np.kron(np.eye(2), [[1.0, -1.0]]), [0, 2, 0, 2])
    )
    (piece,) = plane.sets
    assert piece.directions.shape == (2, 2)
    assert same_points(piece.vertices, np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]]))


def test_a_line_through_several_regions_is_one() -> None:
    # A third unit bends the map across the line, not along it.
    left = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    right = np.array([[1.0, -1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.0, 0.3]])
    found = enumerate_regions(build_network(0.0, left, right, [0.0, 2.0, 0.0, 1.0, 5.0]))
    (piece,) = found.sets
    np.testing.assert_allclose(np.sort(piece.vertices[:, 0]), [0.0, 2.0], atol=1e-9)


def test_budgets_and_interrupts_leave_what_was_found() -> None:
    network = build_network(*bistable(3))
    part = enumerate_regions(network, Options(max_boxes=10))
    assert part.boxes == 10
    assert not part.complete

    def stop(count: int, known: int) -> None:
        raise KeyboardInterrupt

    stopped = enumerate_regions(network, Options(progress=stop))
    assert stopped.interrupted
    assert not stopped.complete
    assert stopped.boxes > 0


def test_smooth_units_have_no_regions() -> None:
    with pytest.raises(ValueError, match="method='certified' or 'search'"):
        enumerate_regions(build_network(0.5, [[1.0]], [[1.0]], [0.0], "tanh"))
