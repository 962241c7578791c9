"""The index of a zero that lies on knots, where det(I - J) has more than one sign."""

from __future__ import annotations

import numpy as np

from pyro_lowrank.fixed_points.arrangement import Arrangement
from pyro_lowrank.fixed_points.network import Array, Network, from_units
from pyro_lowrank.fixed_points.regions import AffinePieces, Collection

MOST_UNITS = 40


def index_at(network: Network, point: Array, error: float) -> int | None:
    r"""Return the index of an isolated zero of a piecewise-linear network, which is how often it counts in the sum.

    Away from all knots the index is sign det(I - J). Else it is the degree of the map's piecewise-linear cone at the
    zero: with signs, how often the cone takes a value drawn at random.

    Args:
        network: of piecewise-linear units, pruned.
        point: the zero, `rank`.
        error: how far it may be from the true one.

    Returns:
        The index, or None if the cone is singular on a side, or more than `MOST_UNITS` units are at a knot.
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
    if count > MOST_UNITS:
        return None
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
    """Return how often, with signs, a piecewise-linear network's map takes a value; None if a region is singular."""
    pieces = AffinePieces(network)
    zeros = Collection()
    knots = network.knots.shape[1]
    if network.units * knots == 0:
        chunks = iter([np.zeros((1, network.units), dtype=np.int64)])
    else:
        normals = np.repeat(network.weights, knots, 0)
        cells = Arrangement(normals, network.knots.ravel(), np.random.default_rng(0)).cells()
        chunks = ((signs > 0).reshape(len(signs), network.units, knots).sum(2, dtype=np.int64) for signs in cells)
    for chunk in chunks:
        solved = pieces.solve(chunk, target)
        if not solved.signs.all():
            return None
        for row in np.flatnonzero(solved.inside):
            zeros.add(solved.points[row], float(solved.errors[row]), int(solved.signs[row]))
    return zeros.index_sum()
