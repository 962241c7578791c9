"""The last check of a list that is said to be complete."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import Array, LatentMap
from pyro_lowrank.fixed_points.rounding import rounding

_ROOM = 16
"""A fixed point leaves this many times the rounding error of the map at most, or comes of as many last places of it."""


def checked(network: LatentMap, found: Found, scale: Array) -> Found:
    """Return what was found, no longer complete if that cannot be true.

    Of a complete list every point is a zero of the map up to its rounding error and lies in the box that was searched,
    and the indices add up to the degree.

    Args:
        network: whose zeros they are.
        found: as a method returns it.
        scale: size that a latent is likely to have, `rank`.
    """
    if not found.complete:
        return found
    points = found.points.reshape(-1, network.rank)
    with np.errstate(all="ignore"):
        # The last places of a point's largest latent are those of the others too.
        places = scale * np.abs(points / scale).max(1, initial=0)[:, None] * rounding(_ROOM)
        steep = network.error_slope / rounding(network.units + 3 * network.rank + 16)
        margin = _ROOM * network.error(points) + places @ steep.T
        are_zeros = bool((np.abs(network.value(points)) <= margin).all())
    sums = {found.index_sum, found.expected_index_sum} - {None}
    box = found.searched
    # Doubles nearest to a point on the border of a box may lie on its other side.
    low, high = (-np.inf, np.inf) if box is None else (np.nextafter(box[0], -np.inf), np.nextafter(box[1], np.inf))
    are_within = bool(((low <= points) & (points <= high)).all())
    return found if are_zeros and are_within and len(sums) < 2 else replace(found, complete=False)
