"""Blocks of particles side by side: each quantity a row of numbers, one for each particle.

Rows are `WIDTH` numbers long and lie one after another in one array. As many numbers of each as there are particles,
rounded up to whole vectors, are worked on: the lanes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_lowrank.compilation import compiled

WIDTH, _VECTOR = 64, 16


class Block(NamedTuple):
    """Particles that are worked on side by side.

    Attributes:
        start: the first of them.
        size: how many there are.
        lanes: how many lanes are worked on.
    """

    start: Any
    size: Any
    lanes: Any


@compiled(inline=True, allocates=False, inner=True)
def at(row: Any, lane: Any) -> Any:
    """Return the place of a lane of a row, unsigned: an index that could be negative would be tested, lane by lane."""
    return np.uintp(row * WIDTH + lane)


@compiled(inline=True, allocates=False, inner=True)
def lanes_of(size: Any) -> Any:
    """Return how many lanes are worked on for so many particles."""
    return (size + _VECTOR - 1) // _VECTOR * _VECTOR
