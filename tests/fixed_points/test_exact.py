"""A list that is said to be complete is what exact fractions say, whatever the scale, and however nearly singular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points
from pyro_lowrank.fixed_points.network import Array
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
    units = int(rng.integers(1, {"relu": 6, "clipped_relu": 4, "identity": 4}[activation]))
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
    corners = (piece.vertices - piece.vertices[0]) / size
    away = (point - piece.vertices[0]) / size
    scale = max(np.abs(corners).max(), np.abs(piece.vertices / size).max() * 1e-6)
    t = np.linalg.lstsq(corners[1:].T / scale, away / scale, rcond=1e-9)[0]
    if np.abs(corners[1:].T @ t - away).max() > 1e-6 * max(scale, np.abs(away).max()):
        return False
    return len(corners) != 2 or not piece.is_bounded or bool(-1e-6 <= t[0] <= 1 + 1e-6)


def check(seeds: range) -> int:
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


def test_a_thousand_networks_against_fractions() -> None:
    assert check(range(1000)) > 900


@pytest.mark.slow
def test_ten_thousand_networks_against_fractions() -> None:
    assert check(range(1000, 11_000)) > 9000
