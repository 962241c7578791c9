"""The index of a zero that lies on knots, where det(I - J) has more than one sign."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.cones import regions_around
from pyro_lowrank.fixed_points.exact import Exact, ExactFlat, Sides
from pyro_lowrank.fixed_points.network import Array

_TRIES = 5


def index_at(exact: Exact, sides: Sides, until: float = np.inf) -> int | None:
    r"""Return the index of an isolated zero that lies on knots, which is how often it counts in the sum.

    It is the degree of the map's piecewise-linear cone at the zero: with signs, how often the cone takes a value drawn
    at random. Nothing is rounded, so a value is taken inside of a side or it is not.

    Args:
        exact: the network.
        sides: the pieces that the zero touches.
        until: by `time.monotonic`, when to give up.

    Returns:
        The index, or None if the cone has too many sides, or time is over.
    """
    bends = exact.bends(sides)
    generator = np.random.default_rng(1)
    for _ in range(_TRIES):
        value = generator.integers(-(2**40), 2**40, size=len(exact.scale)).astype(np.float64)
        index = _degree(exact, sides, bends, value, until)
        if index is not None or time.monotonic() > until:
            return index
    return None


def _degree(exact: Exact, sides: Sides, bends: NDArray[np.bool_], value: Array, until: float) -> int | None:
    """Return how often, with signs, the cone takes a value; None if it takes it between sides, or cannot be told."""
    every = regions_around(exact, sides.first, np.where(bends, sides.last, sides.first), is_point=True)
    total, seen = 0, set[bytes]()
    for chunk in every or ():
        for pieces in chunk:
            if pieces.tobytes() in seen:
                continue
            seen.add(pieces.tobytes())
            taken = exact.solve(pieces, value=value)
            if isinstance(taken, ExactFlat) or time.monotonic() > until:
                return None
            if taken is None:
                continue
            signs = exact.along(taken[0])[bends] * np.where(pieces[bends] == sides.first[bends], -1, 1)
            if (signs > 0).all():
                total += taken[1]
            elif (signs >= 0).all():
                return None
    return None if every is None else total
