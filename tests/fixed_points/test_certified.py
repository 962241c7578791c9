"""The certified method against brute force and known answers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pyro_lowrank.fixed_points import certified as module
from pyro_lowrank.fixed_points.certified import certify
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from pyro_lowrank.fixed_points.options import Options
from tests.fixed_points.networks import ACTIVATIONS, bistable, bistable_points, random_networks
from tests.oracles.brute_force import brute_force, same_points

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_finds_what_brute_force_finds(name: str, threads: int) -> None:
    for network in random_networks(name, 30, seed=10 + threads):
        found, expected = certify(network, Options(threads=threads)), brute_force(network)
        assert same_points(found.points, expected.points)
        assert found.complete
        if found.expected_index_sum is not None and not found.sets:
            assert found.index_sum == found.expected_index_sum


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_bistable_latents_have_three_points_each(rank: int) -> None:
    found = certify(build_network(*bistable(rank)))
    assert found.complete
    assert found.index_sum == 1
    assert same_points(found.points, bistable_points(rank))


def tanh_pair(gain: float) -> LatentMap:
    return build_network(0.5, np.eye(2), gain * np.eye(2), np.zeros(2), "tanh")


def test_tanh_latents_that_do_not_touch() -> None:
    """z = z / 2 + tanh(z) has the zeros of tanh(z) = z / 2: 0 and, to 15 digits, +-1.9150080481545375."""
    found = certify(tanh_pair(1.0))
    values = (-1.9150080481545375, 0.0, 1.9150080481545375)
    assert found.complete
    assert found.index_sum == 1
    assert same_points(found.points, np.array(list(itertools.product(values, values))), tolerance=1e-12)


def test_tanh_network_has_an_attractor_and_no_others_where_it_contracts() -> None:
    found = certify(tanh_pair(0.4))
    assert found.complete
    assert same_points(found.points, np.zeros((1, 2)), tolerance=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_smooth_networks_hold_what_newton_finds_from_many_starts(activation: str, rank: int) -> None:
    rng = np.random.default_rng(rank)
    for _ in range(5):
        network = build_network(
            0.8, rng.normal(size=(8, rank)), rng.normal(size=(rank, 8)), rng.normal(size=8), activation
        )
        found = certify(network)
        assert found.complete
        assert (np.abs(network.value(found.points)) <= 1e-11 * (1 + np.abs(found.points))).all()
        for start in 5 * rng.normal(size=(80, rank)):
            zero = module.newton(network, start)
            if zero is not None:
                assert np.abs(found.points - zero).max(1).min() < 1e-8 * (1 + np.abs(zero).max())


def test_points_on_knots_are_found_once() -> None:
    """F(z) = max(z, 0) / 2 has its zero on the knot; so has every unit at a kink of both signs of slope."""
    found = certify(build_network(0.0, np.eye(3), 0.5 * np.eye(3), np.zeros(3)))
    assert found.complete
    assert found.index_sum == 1
    assert same_points(found.points, np.zeros((1, 3)))


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_points_that_nearly_touch_are_told_apart(gap: float) -> None:
    """A zigzag through the diagonal at 0, 1.5 gap and 2.5 gap."""
    left = np.array([[1.0], [1.0], [1.0]])
    network = build_network(0.0, left, [[3.0, -4.0, 1.5]], [gap, 2 * gap, 5 * gap])
    found, expected = certify(network), brute_force(network, tolerance=1e-14)
    assert found.complete
    assert len(found.points) == len(expected.points) == 3
    np.testing.assert_allclose(np.sort(found.points.ravel()), [0, 1.5 * gap, 2.5 * gap], rtol=1e-12, atol=1e-15)


def test_parallel_coincident_and_concurrent_hyperplanes() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        left = np.repeat(rng.normal(size=(3, 2)), 2, 0)
        bias = np.concatenate([np.zeros(4), rng.normal(size=2)])
        network = build_network(0.7, left, rng.normal(size=(2, 6)), bias)
        found = certify(network)
        assert found.complete
        assert same_points(found.points, brute_force(network).points)


def test_a_line_of_fixed_points_is_one_set() -> None:
    """The first latent keeps what it holds between 0 and 1, and is driven out of the interval's ends into it."""
    left = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    right = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    network = build_network(0.0, left, right, [0.0, 1.0, 1.0])
    found = certify(network)
    assert found.complete
    assert found.points.shape == (0, 2)
    (segment,) = found.sets
    assert segment.is_bounded
    np.testing.assert_allclose(segment.vertices[np.argsort(segment.vertices[:, 0])], [[0, 0], [1, 0]], atol=1e-9)


def test_a_plane_of_fixed_points_is_one_set() -> None:
    left = np.repeat(np.eye(2), 2, 0)
    found = certify(build_network(0.0, left, np.kron(np.eye(2), [[1.0, -1.0]]), [0.0, 1.0, 0.0, 1.0]))
    assert found.complete
    (square,) = found.sets
    assert len(square.directions) == 2
    assert same_points(square.vertices, np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]))


def test_none_at_all() -> None:
    """F(z) = z / 2 + abs(z) + 1 lies above z everywhere."""
    found = certify(build_network(0.5, [[1.0], [-1.0]], [[1.0, 1.0]], [0.0, 0.0], constant=[1.0]))
    assert found.points.shape == (0, 1)
    assert found.complete
    assert found.index_sum == 0


def test_where_the_map_at_infinity_has_a_zero_nothing_is_claimed() -> None:
    """z = z far to the left, so fixed points may lie arbitrarily far out: the list cannot be called complete."""
    found = certify(build_network(1.0, [[1.0]], [[1.0]], [2.0]))
    assert not found.complete
    assert found.searched is not None
    assert len(found.sets) == 1
    assert not found.sets[0].is_bounded


def hard() -> LatentMap:
    rng = np.random.default_rng(0)
    return build_network(0.9, rng.normal(size=(300, 5)), 0.1 * rng.normal(size=(5, 300)), rng.normal(size=300))


@pytest.mark.parametrize("budget", [{"max_boxes": 300}, {"max_seconds": 0.01}])
def test_a_spent_budget_leaves_open_boxes_that_hold_what_is_missing(budget: dict[str, float]) -> None:
    found = certify(hard(), Options(**budget))  # type: ignore[arg-type]
    assert not found.complete
    assert len(found.open_boxes)
    network = build_network(*bistable(3))
    full, part = certify(network), certify(network, Options(max_boxes=5))
    for point in full.points:
        is_open = ((part.open_boxes[:, 0] <= point) & (point <= part.open_boxes[:, 1])).all(1).any()
        assert is_open or np.abs(part.points - point).max(1).min() < 1e-9


def test_an_interrupt_keeps_what_was_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stop_later(boxes: int, zeros: int) -> None:
        calls.append(boxes)
        if len(calls) == 3:
            raise KeyboardInterrupt

    found = certify(hard(), Options(progress=stop_later))
    assert found.interrupted
    assert not found.complete
    assert len(found.open_boxes)
    assert found.boxes == calls[-1]


def test_threads_change_nothing_but_the_time() -> None:
    networks = [build_network(*bistable(3)), next(iter(random_networks("bounded", 1, seed=3)))]
    for network in networks:
        one, two = certify(network, Options(threads=1)), certify(network, Options(threads=2))
        assert same_points(one.points, two.points, tolerance=1e-12)
        assert one.complete == two.complete


def teacher(name: str) -> tuple[float, Array, Array, Array]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} beside the checkout")
    with np.load(path) as weights:
        return float(weights["decay"]), weights["U"], weights["V"], -weights["b_rec"]


@pytest.mark.parametrize("name", ["teacher_reach_rnn.npz", "teacher_reach_rnn_128.npz"])
def test_trained_teachers_have_seventeen_points(name: str) -> None:
    network = build_network(*teacher(name))
    found = certify(network)
    assert found.complete
    assert len(found.points) == 17
    assert found.solves <= 400
    assert (np.abs(network.value(found.points)) <= network.error(found.points)).all()
