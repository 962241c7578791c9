"""Small networks to look for fixed points in: random ones, and ones whose fixed points are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyro_lowrank.fixed_points import read_weights
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from pyro_lowrank.piecewise import PiecewiseLinear

THREE_PIECES = PiecewiseLinear(knots=(-0.5, 0.7), slopes=(0.2, 1.5, -0.3), name="three_pieces")
BOUNDED = PiecewiseLinear(knots=(-1.0, 0.0, 1.0), slopes=(0.0, 0.5, 2.0, 0.0), name="bounded")
ACTIVATIONS: dict[str, tuple[str | PiecewiseLinear, int]] = {
    "relu": ("relu", 10),
    "clipped_relu": ("clipped_relu", 6),
    "three_pieces": (THREE_PIECES, 6),
    "bounded": (BOUNDED, 5),
}
"""Activations and the most units that brute force is quick for."""


def random_networks(name: str, count: int, *, seed: int = 0) -> Iterator[LatentMap]:
    """Networks of ranks 1 to 4, fewer units than latents too, with and without input, contracting and expanding."""
    rng = np.random.default_rng(seed)
    activation, most = ACTIVATIONS[name]
    for index in range(count):
        rank, units = 1 + index % 4, int(rng.integers(1, most + 1))
        decay = rng.choice([0.5, 0.9, 1.3]) if index % 3 else rng.uniform(0.2, 0.9, rank)
        gain = rng.choice([0.3, 1.0, 3.0])
        yield build_network(
            decay,
            rng.normal(size=(units, rank)),
            gain * rng.normal(size=(rank, units)),
            rng.normal(size=units),
            activation,
            rng.normal(size=units) if index % 2 else None,
        )


def bistable(rank: int) -> tuple[float, Array, Array, Array]:
    """Decay, left, right and bias of latents that do not touch: each has fixed points at 0, 4/3 and 4."""
    left = np.repeat(np.eye(rank), 2, axis=0)
    right = np.kron(np.eye(rank), [[2.0, -2.0]])
    return 0.5, left, right, np.tile([1.0, 2.0], rank)


def bistable_points(rank: int) -> Array:
    """The 3^rank fixed points of `bistable`."""
    grid = np.meshgrid(*[[0.0, 4 / 3, 4.0]] * rank, indexing="ij")
    return np.stack([axis.ravel() for axis in grid], -1)


def ring_network(seed: int = 55, units: int = 60) -> tuple[float, Array, Array, Array, str]:
    """Decay, left, right, bias and activation of a network like that of the paper's Figure 8, which is drawn.

    Two thirds of the relu units excite the direction that excites them, the others, with a higher threshold, inhibit
    it. All lie nearly evenly on a circle, so that the states do: 8 attractors, 8 saddles and a repeller for seed 55.
    """
    rng = np.random.default_rng(seed)
    excite = 2 * units // 3
    inhibit = units - excite
    turns = np.concatenate([np.arange(excite) / excite, np.arange(inhibit) / inhibit])
    angles = 2 * np.pi * (turns + 0.004 * rng.normal(size=units))
    left = np.column_stack([np.cos(angles), np.sin(angles)])
    gain = np.concatenate([np.full(excite, 0.3 / excite), np.full(inhibit, -0.6 / inhibit)])
    gain = gain * rng.uniform(0.95, 1.05, units)
    bias = np.concatenate([np.full(excite, -0.1), np.full(inhibit, 1.0)]) + 0.03 * rng.normal(size=units)
    return 0.9, left, gain * left.T, bias, "relu"


TRAINED = Path(__file__).parent / "trained"


def trained_networks(rank: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and weights of the trained networks of 512 clipped relu units that lie beside this file."""
    for path in sorted(TRAINED.glob(f"rank{rank}_*.npz")):
        yield path.stem, read_weights(path)
