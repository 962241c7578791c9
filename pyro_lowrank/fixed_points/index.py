"""The index of a zero that lies on knots, where det(I - J) has more than one sign."""

from __future__ import annotations

import numpy as np

from pyro_lowrank.fixed_points.cones import regions_around
from pyro_lowrank.fixed_points.network import Array, Network, from_units
from pyro_lowrank.fixed_points.regions import AffinePieces, Collection


def index_at(network: Network, point: Array, error: float) -> int | None:
    r"""Return the index of an isolated zero of a piecewise-linear network, which is how often it counts in the sum.

    Away from all knots the index is sign det(I - J). Else it is the degree of the map's piecewise-linear cone at the
    zero: with signs, how often the cone takes a value drawn at random.

    Args:
        network: of piecewise-linear units, pruned.
        point: the zero, `rank`.
        error: how far it may be from the true one.

    Returns:
        The index, or None if the cone is singular on a side, or has too many sides.
    """
    x = point @ network.weights.T
    room = error * np.linalg.norm(network.weights, axis=1) + 1e-14 * np.abs(x)
    first = (network.knots < (x - room)[:, None]).sum(1)
    last = (network.knots <= (x + room)[:, None]).sum(1)
    unit = np.arange(network.units)
    before, after = network.slopes[unit, first], network.slopes[unit, last]
    bends = before != after
    affine = network.affine + (network.outputs * np.where(bends, 0.0, before)[:, None]).T @ network.weights
    count = int(bends.sum())
    if not count:
        return int(np.sign(np.linalg.det(-affine)))
    cone = from_units(
        affine,
        np.zeros(network.rank),
        network.weights[bends],
        network.outputs[bends],
        intercepts=np.zeros((count, 2)),
        knots=np.zeros((count, 1)),
        slopes=np.stack([before[bends], after[bends]], 1),
    )
    return degree(cone, np.random.default_rng(1).normal(size=network.rank))


def degree(network: Network, target: Array) -> int | None:
    """Return how often, with signs, a cone takes a value; None if a side is singular, or there are too many sides."""
    every = regions_around(network, np.zeros(network.units, dtype=np.int64), np.ones(network.units, dtype=np.int64))
    if every is None:
        return None
    pieces, zeros = AffinePieces(network), Collection()
    for chunk in every:
        solved = pieces.solve(chunk, target)
        if not solved.signs.all():
            return None
        for row in np.flatnonzero(solved.inside):
            zeros.add(solved.points[row], float(solved.errors[row]), int(solved.signs[row]))
    return zeros.index_sum()
