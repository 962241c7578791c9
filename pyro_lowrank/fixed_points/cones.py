"""Where many hyperplanes meet in one point: the linear regions around it are cones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.arrangement import Arrangement, Signs
from pyro_lowrank.fixed_points.network import Array, Network
from pyro_lowrank.fixed_points.regions import Pieces

MOST_VERTICES = 500_000
"""Cones are told from so many vertices of a plane that cuts them, at most."""


def cones(normals: Array) -> Iterator[Signs] | None:
    """Return the sign vectors of the cells of hyperplanes through the origin, or None if they are too many to count.

    A cell is a cone, so it meets one of two parallel planes on either side of the origin, on which the hyperplanes form
    an arrangement of one dimension less; the cells on the one are those on the other turned round. A cone that meets
    both comes twice.

    Args:
        normals: `hyperplanes x dimensions`, none of them zero.

    Example::

        >>> signs = np.concatenate(list(cones(np.eye(2))))
        >>> sorted(set(map(tuple, signs.tolist())))
        [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    """
    count, dimensions = normals.shape
    if math.comb(count, dimensions - 1) > MOST_VERTICES:
        return None
    return _cones(normals)


def _cones(normals: Array) -> Iterator[Signs]:
    count, dimensions = normals.shape
    if not count:
        yield np.zeros((1, 0), dtype=np.int8)
        return
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    if dimensions == 1:
        side = np.sign(normals).T.astype(np.int8)
        yield np.concatenate([side, (-side).astype(np.int8)])
        return
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))[0]
    up, across = turn[:, 0], turn[:, 1:]
    for signs in Arrangement(normals @ across, -normals @ up, generator).cells():
        yield signs
        yield (-signs).astype(np.int8)


def regions_around(network: Network, first: NDArray[np.int64], last: NDArray[np.int64]) -> Iterator[Pieces] | None:
    """Return the linear regions around the point in which all knots that are passed meet, or None if they do not.

    Args:
        network: of piecewise-linear units, pruned.
        first: piece of each unit before its knots, `units`.
        last: piece after them, `units`.
    """
    passed = (np.arange(network.knots.shape[1]) >= first[:, None]) & (np.arange(network.knots.shape[1]) < last[:, None])
    units, which = np.nonzero(passed)
    normals, offsets = network.weights[units], network.knots[units, which]
    point = np.linalg.lstsq(normals, offsets, rcond=None)[0]
    room = 4 * network.rank * np.finfo(float).eps * (np.abs(normals) @ np.abs(point) + np.abs(offsets))
    if (np.abs(normals @ point - offsets) > room).any():
        return None
    every = cones(normals)
    return None if every is None else _pieces(every, first, passed)


def _pieces(every: Iterator[Signs], first: NDArray[np.int64], passed: NDArray[np.bool_]) -> Iterator[Pieces]:
    which = np.nonzero(passed)[1]
    for signs in every:
        pieces = np.repeat(first[None], len(signs), 0).astype(np.int64)
        for knot in range(passed.shape[1]):
            pieces[:, passed[:, knot]] += signs[:, which == knot] > 0
        yield pieces
