"""Where many hyperplanes meet in one point: the linear regions around it are cones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.arrangement import Arrangement, Hyperplanes, Signs
from pyro_lowrank.fixed_points.exact import Exact, Objects, reduced_rows
from pyro_lowrank.fixed_points.regions import Pieces

MOST_VERTICES = 500_000
"""Cones are told from so many vertices of a plane that cuts them, at most."""

MOST_CROSSINGS = 5_000
"""Regions near a point that hyperplanes pass, but not all through it, are told from so many vertices, at most."""


def cones(normals: Objects) -> Iterator[Signs] | None:
    """Return the sign vectors of the cells of hyperplanes through the origin, or None if they are too many to count.

    A cell is a cone, so it meets one of two parallel planes on either side of the origin, on which the hyperplanes form
    an arrangement of one dimension less; the cells on the one are those on the other turned round. A cone that meets
    both comes twice.

    Args:
        normals: `hyperplanes x dimensions`, none of them zero, in whole numbers.

    Example::

        >>> signs = np.concatenate(list(cones(np.eye(2, dtype=int).astype(object))))
        >>> sorted(set(map(tuple, signs.tolist())))
        [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    """
    count, dimensions = normals.shape
    if math.comb(count, dimensions - 1) > MOST_VERTICES:
        return None
    return _cones(normals)


def _cones(normals: Objects) -> Iterator[Signs]:
    count, dimensions = normals.shape
    if not count:
        yield np.zeros((1, 0), dtype=np.int8)
        return
    if dimensions == 1:
        side = np.array([[1 if n > 0 else -1 for n in normals[:, 0]]], dtype=np.int8)
        yield np.concatenate([side, (-side).astype(np.int8)])
        return
    generator = np.random.default_rng(0)
    central = Hyperplanes(normals, np.array([0] * count, dtype=object))
    while True:
        plane = central.on_plane(np.asarray(generator.integers(-(2**40), 2**40, size=dimensions)), Fraction(1))
        if plane.normals.any(1).all():
            break
    for signs in Arrangement(*plane, generator).cells():
        yield signs
        yield (-signs).astype(np.int8)


def regions_around(
    exact: Exact, first: NDArray[np.int64], last: NDArray[np.int64], *, is_point: bool = False
) -> Iterator[Pieces] | None:
    """Return the linear regions where some knots pass close to each other, or None if they are too many.

    Args:
        exact: the network.
        first: piece of each unit before its knots, `units`.
        last: piece after them, `units`.
        is_point: whether it is known that all of these knots meet in one point.
    """
    passed = (np.arange(exact.knots) >= first[:, None]) & (np.arange(exact.knots) < last[:, None])
    units, which = np.nonzero(passed)
    planes = Hyperplanes(*exact.hyperplanes(units, which))
    count, rank = planes.normals.shape
    if not is_point and count:
        rows = [[Fraction(x) for x in (*n, b)] for n, b in zip(planes.normals, planes.offsets, strict=True)]
        is_point = rank not in reduced_rows(rows)[1]
    if is_point or not count:
        every = cones(planes.normals)
    elif math.comb(count, min(rank, count)) <= MOST_CROSSINGS:
        every = Arrangement(*planes, np.random.default_rng(0)).cells()
    else:
        return None
    return None if every is None else _pieces(every, first, passed)


def _pieces(every: Iterator[Signs], first: NDArray[np.int64], passed: NDArray[np.bool_]) -> Iterator[Pieces]:
    which = np.nonzero(passed)[1]
    for signs in every:
        pieces = np.repeat(first[None], len(signs), 0).astype(np.int64)
        for knot in range(passed.shape[1]):
            pieces[:, passed[:, knot]] += signs[:, which == knot] > 0
        yield pieces
