"""A search finds no false fixed points, and on small networks nearly all true ones."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.fixed_points.network import build_network
from pyro_lowrank.fixed_points.options import Options
from pyro_lowrank.fixed_points.search import search
from tests.fixed_points.networks import ACTIVATIONS, bistable, bistable_points, random_networks
from tests.oracles.brute_force import brute_force, same_points


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_no_false_ones_and_hardly_any_missing(name: str, constrained: bool) -> None:
    total = missing = 0
    for network in random_networks(name, 40, seed=1):
        expected = brute_force(network).points
        found = search(network, Options(num_starts=300, constrained=constrained, seed=2))
        assert not found.complete
        total += len(expected)
        missing += len(expected) - len(found.points)
        # Every point that was found is one of brute force's, and none twice.
        near = np.linalg.norm(found.points[:, None] - expected[None], axis=-1) < 1e-7
        assert (near.sum(1) == 1).all()
        assert (near.sum(0) <= 1).all()
    assert total > 40
    assert missing <= 0.05 * total


def test_the_same_seed_finds_the_same() -> None:
    network = build_network(*bistable(4))
    first, again = (search(network, Options(num_starts=20, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first.points, again.points)
    assert first.solves == again.solves


def test_all_of_a_product_of_latents() -> None:
    found = search(build_network(*bistable(4)))
    assert same_points(found.points, bistable_points(4))
    assert found.index_sum == 1


def test_budgets() -> None:
    rng = np.random.default_rng(0)
    network = build_network(0.9, rng.normal(size=(40, 3)), rng.normal(size=(3, 40)), rng.normal(size=40))
    assert search(network, Options(max_boxes=37)).boxes == 37
    few = search(network, Options(num_starts=1))
    assert 1 <= few.boxes < 100
    assert few.solves == few.boxes + 1

    def stop(count: int, known: int) -> None:
        raise KeyboardInterrupt

    assert search(network, Options(progress=stop)).interrupted


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_smooth_units_by_newtons_method(activation: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        rank, units = int(rng.integers(1, 4)), 12
        network = build_network(
            0.8, rng.normal(size=(units, rank)), rng.normal(size=(rank, units)), rng.normal(size=units), activation
        )
        found = search(network, Options(num_starts=200))
        assert np.abs(network.value(found.points)).max(initial=0) < 1e-11
        distances = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1)
        assert (distances + np.eye(len(distances)) > 1e-8).all()
        if activation == "tanh":
            # Nothing that counts was missed: the indices add up to the degree.
            assert found.index_sum == found.expected_index_sum == 1


def test_three_fixed_points_of_one_tanh_unit() -> None:
    found = search(build_network(0.0, [[1.0]], [[2.0]], [0.0], "tanh"), Options(num_starts=50))
    np.testing.assert_allclose(np.sort(found.points.ravel()), [-1.9150080481545, 0.0, 1.9150080481545], atol=1e-12)


def test_lines_are_found_too() -> None:
    found = search(build_network(0.0, [[1.0], [1.0]], [[1.0, -1.0]], [0.0, 2.0]))
    (piece,) = found.sets
    np.testing.assert_allclose(np.sort(piece.vertices.ravel()), [0.0, 2.0], atol=1e-12)
    assert len(found.points) == 0


def test_a_network_without_units() -> None:
    found = search(build_network(0.5, np.zeros((1, 2)), np.zeros((2, 1)), [0.0], constant=[1.0, 2.0]))
    np.testing.assert_allclose(found.points, [[2.0, 4.0]])
