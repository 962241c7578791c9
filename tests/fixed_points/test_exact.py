"""A list that is said to be complete is what exact fractions say, whatever the scale, and however nearly singular."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points
from pyro_lowrank.fixed_points.certified import certify
from pyro_lowrank.fixed_points.check import checked
from pyro_lowrank.fixed_points.network import Array, build_network
from tests.oracles.exact_regions import ExactZeros, exact_zeros

METHODS = ("certified", "enumerate")
both = pytest.mark.parametrize("method", METHODS)


def drawn(seed: int) -> tuple[dict[str, Any], Array]:
    """A small network, nearly singular, of any scale, with doubled and cancelling units, or with lines of zeros.

    Returns:
        Its weights, and the size of each latent.
    """
    rng = np.random.default_rng(seed)
    rank, activation = 1 + seed % 3, ("relu", "relu", "clipped_relu", "identity")[int(rng.integers(4))]
    units = int(rng.integers(1, {"relu": 5, "clipped_relu": 3, "identity": 4}[activation]))
    whole = bool(rng.integers(2))
    draw = (lambda *shape: rng.integers(-2, 3, size=shape) / 2.0) if whole else (lambda *shape: rng.normal(size=shape))
    left, right, bias, constant = draw(units, rank), draw(rank, units), draw(units), draw(rank)
    decay = float(rng.choice([0.5, 0.9, 1.0, 1 - 10.0 ** rng.uniform(-12, -1)])) if rng.integers(3) else 0.5
    kind = int(rng.integers(6))
    if kind == 0:
        # Doubled units, at knots that coincide or nearly.
        left[-1], bias[-1] = left[0], bias[0] * (1 + rng.choice([0.0, 1e-15, 1e-9]))
    elif kind == 1:
        # Units that cancel: what they do is bounded, or nothing.
        left[-1], right[:, -1] = left[0], -right[:, 0]
    elif kind == 2:
        # What a latent keeps adds up to one where some units are on.
        left[:, 0], right[0], left[0, 0], right[0, 0] = 0.0, 0.0, 1.0, 1 - decay
    elif kind == 3:
        bias[:], constant[:] = 0.0, 0.0
    elif kind == 4:
        constant[:] = 0.0
    current = draw(units) if rng.integers(2) else np.zeros(units)
    # Latents of one size or several; and currents of any, with the knots.
    size = 10.0 ** (rng.integers(-30, 31) + rng.integers(-3, 4, size=rank) * int(rng.integers(2)))
    if rng.integers(3) == 0:
        size = 2.0 ** rng.integers(-40, 41, size=rank)
    other = 10.0 ** rng.integers(-10, 11)
    weights = {"decay": decay, "left": left / size * other, "right": (right.T * size).T / other, "bias": bias * other}
    weights |= {"activation": activation, "input_current": current * other, "constant": constant * size}
    return weights, size


def agrees(result: FixedPoints, expected: ExactZeros, size: Array) -> bool:
    """Whether each point there is has a point of the list near it, none else is there, and sets are where they are."""
    exact = np.array([[float(x) for x in z] for z in expected.points]).reshape(-1, len(size))
    if len(exact) != len(result.points) or bool(expected.continua) != bool(result.sets):
        return False
    for points, others in ((exact, result.points), (result.points, exact)):
        for z in points:
            room = 1e-6 * np.abs(z / size).max() + 1e-300
            if not (np.abs((others - z) / size).max(1) <= room).any():
                return False
    for z, dimensions in expected.continua:
        point = np.array([float(x) for x in z])
        if not any(len(piece.directions) >= dimensions and lies_on(point, piece, size) for piece in result.sets):
            return False
    return True


def lies_on(point: Array, piece: Any, size: Array) -> bool:
    """Whether a point is on the flat that a piece spans, and, on a line, between its ends."""
    if not piece.is_bounded:
        # It is cut somewhere, perhaps before the point.
        return True
    corners = (piece.vertices - piece.vertices[0]) / size
    away = (point - piece.vertices[0]) / size
    scale = max(np.abs(corners).max(), np.abs(piece.vertices / size).max() * 1e-6)
    t = np.linalg.lstsq(corners[1:].T / scale, away / scale, rcond=1e-9)[0]
    if np.abs(corners[1:].T @ t - away).max() > 1e-6 * max(scale, np.abs(away).max()):
        return False
    return len(corners) != 2 or bool(-1e-6 <= t[0] <= 1 + 1e-6)


def check(seeds: Iterable[int]) -> int:
    """Return how many lists are complete; each of them must be right, and none else wrong about what it holds."""
    complete = 0
    for seed in seeds:
        weights, size = drawn(seed)
        arguments = (weights[name] for name in ("decay", "left", "right", "bias", "activation"))
        expected = exact_zeros(*arguments, weights["input_current"], weights["constant"])
        result = find_fixed_points(**weights, method=METHODS[seed // 3 % 2], max_seconds=20)
        complete += result.certificate.complete
        assert not result.certificate.complete or agrees(result, expected, size), seed
    return complete


def test_hundreds_of_networks_against_fractions() -> None:
    assert check(range(300)) > 270


@pytest.mark.parametrize("seed", [3050, 4192, 4432, 4495, 5503, 5945, 6734])
def test_networks_that_were_hard(seed: int) -> None:
    """Wedges of zeros far from all knots, and latents of very different sizes."""
    weights, size = drawn(seed)
    arguments = (weights[name] for name in ("decay", "left", "right", "bias", "activation"))
    expected = exact_zeros(*arguments, weights["input_current"], weights["constant"])
    assert agrees(find_fixed_points(**weights, method="enumerate"), expected, size)


@pytest.mark.slow
def test_ten_thousand_networks_against_fractions() -> None:
    assert check(range(300, 11_000)) > 9630


@both
def test_where_the_map_is_nearly_singular_there_are_no_false_points(method: str) -> None:
    weights: dict[str, Any] = {"decay": 1 - 1e-8, "left": [[0.3, 0.2]], "right": [[0.2], [-0.6]], "bias": [0.6]}
    result = find_fixed_points(**weights, constant=[-0.7, 0.2], method=method)
    (expected,) = exact_zeros(
        weights["decay"],
        np.array(weights["left"]),
        np.array(weights["right"]),
        np.array([0.6]),
        "relu",
        None,
        [-0.7, 0.2],
    ).points
    assert result.certificate.complete
    assert result.certificate.index_sum == result.certificate.expected_index_sum == 1
    np.testing.assert_allclose(result.points, [[float(x) for x in expected]], rtol=1e-12)


@both
@pytest.mark.parametrize("exponent", [0, -13, -14, -15, -30, 30])
def test_points_of_any_scale_are_told_apart(method: str, exponent: int) -> None:
    s = 10.0**exponent
    result = find_fixed_points(0.5, [[1], [1]], [[2, -2]], [s, 2 * s], method=method)
    assert result.certificate.complete
    np.testing.assert_allclose(result.points.ravel(), [0, 4 * s / 3, 4 * s], rtol=1e-12)


@both
@pytest.mark.parametrize("s", [1e-14, 1e-25])
def test_latents_may_differ_in_scale(method: str, s: float) -> None:
    left, right = np.repeat(np.eye(2), 2, 0), np.kron(np.eye(2), [[2.0, -2.0]])
    result = find_fixed_points(0.5, left, right, [1, 2, s, 2 * s], method=method)
    assert result.certificate.complete
    assert len(result) == 9
    for latent, size in enumerate((1.0, s)):
        expected = np.repeat([0, 4 * size / 3, 4 * size], 3)
        np.testing.assert_allclose(np.sort(result.points[:, latent]), expected, rtol=1e-12)


@both
def test_points_within_one_last_place_are_told_apart(method: str) -> None:
    """A zigzag through the diagonal at 1, and a few last places after it; in doubles it is a touch."""
    gap = 2.0**-50
    result = find_fixed_points(0.0, [[1.0]] * 3, [[3.0, -4.0, 1.5]], [1, 1 + gap, 1 + 4 * gap], constant=[1.0])
    assert result.certificate.complete
    assert result.certificate.index_sum == result.certificate.expected_index_sum
    np.testing.assert_array_equal(result.points, [[1.0], [1 + 2 * gap]])


@both
@pytest.mark.parametrize(("far", "gap"), [(1e3, 1e-4), (1e6, 1e-6), (1e12, 1e-12)])
def test_a_point_beside_a_line_is_kept(method: str, far: float, gap: float) -> None:
    result = find_fixed_points(0, [[1]] * 3, [[1, 1, -2]], [-far, 0, gap / 2], "relu", constant=[-far], method=method)
    (piece,) = result.sets
    assert result.certificate.complete
    np.testing.assert_allclose(np.sort(piece.vertices.ravel()), [-far, 0], rtol=1e-12)
    np.testing.assert_allclose(result.points, [[gap]], rtol=1e-9)


@both
def test_lines_very_near_each_other_are_two(method: str) -> None:
    # The first latent is kept on [0, 1]; the second has three zeros, two of them closer than a millionth.
    left = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    right = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]])
    result = find_fixed_points([0.0, 0.5], left, right, [0.0, 1.0, 1e-10, 2e-10], method=method)
    assert result.certificate.complete
    assert [piece.component for piece in result.sets] == [0, 1, 2]
    np.testing.assert_allclose([piece.point[1] for piece in result.sets], [0, 4e-10 / 3, 4e-10], rtol=1e-9)


@both
@pytest.mark.parametrize("s", [1e-70, 1e70, 1.0])
def test_determinants_may_be_smaller_and_larger_than_doubles(method: str, s: float) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 3))
    result = find_fixed_points(1.0, s * np.eye(3), s * weights, np.zeros(3), "identity", method=method)
    assert result.certificate.complete
    np.testing.assert_array_equal(result.points, np.zeros((1, 3)))
    assert result.certificate.index_sum == np.sign(np.linalg.det(-weights))


@both
def test_what_the_last_places_of_weights_decide_is_left_open(method: str) -> None:
    # 0.9 + 0.1 is not 1 in doubles, so there is a zero, at 4e15, which says nothing about the network.
    result = find_fixed_points(0.9, [[1.0]], [[0.1]], [0.0], "identity", constant=[-0.1], method=method)
    assert len(result) == 0
    assert not result.certificate.complete


def test_an_index_sum_that_cannot_be_withdraws_completeness() -> None:
    network = build_network(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0])
    found = certify(network)
    assert found.complete
    assert checked(network, found, np.ones(1)).complete
    wrong = (
        replace(found, points=found.points[:2], index_sum=0),
        replace(found, points=found.points + 1e-9),
        replace(found, points=found.points * 1e9, index_sum=None),
    )
    for other in wrong:
        assert not checked(network, other, np.ones(1)).complete


@both
def test_weights_are_taken_as_they_came(method: str) -> None:
    """Decay less one, and bias less current, are rounded in the network, not in what is decided."""
    decay, bias, current = 0.3, np.array([1e8 + 0.3]), np.array([1e8 + 1 / 3])
    constant = np.array([-1e-9])
    result = find_fixed_points(decay, [[1.0]], [[0.7]], bias, "relu", current, constant, method=method)
    expected = exact_zeros(decay, np.ones((1, 1)), np.array([[0.7]]), bias, "relu", current, constant)
    assert not result.certificate.complete or agrees(result, expected, np.ones(1))
