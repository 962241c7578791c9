"""The cells that hyperplanes cut space into, as a stream of sign vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import Array

Signs = NDArray[np.int8]

ENTRIES = 1 << 20
"""Most numbers in one array of the stream."""

DEPENDENT = 1e13
"""Unit normals whose matrix has an inverse larger than this are taken for linearly dependent."""

DOUBTFUL = 1e9
"""Above this size of an inverse, vertices are so far out or so badly determined that nothing is proved."""

_EPS = float(np.finfo(float).eps)


class Arrangement:
    r"""Hyperplanes :math:`n_i \cdot z = b_i`, and every cell that they cut space into, without general position.

    Take a linear form :math:`\xi` in a random direction. If the normals span the space, a cell holds no line, so it
    has a vertex, and :math:`\xi` either has its minimum over the cell at exactly one of its vertices or is unbounded
    below on it.

    1. *Cells with a lowest vertex p.* Where exactly d hyperplanes meet in p there is one cell with its minimum there:
       the one whose d edges at p all go up. Where more meet, the cell looks near p like a cone that goes up, and so
       cuts the plane :math:`\xi \cdot (z - p) = 1`, on which the hyperplanes through p form an arrangement of d - 1
       dimensions; all of its cells are taken.
    2. *The others* go down without end and have all of their vertices above the plane :math:`\xi \cdot z = t`, if t
       is below all vertices, so they cut it; a cell with a lowest vertex does not. On that plane too there is an
       arrangement of d - 1 dimensions.

    Both end at one dimension, where cells are the intervals between sorted numbers. Coincident hyperplanes count once.
    Parallel ones have no vertex together and need none. If the normals span less than the space, the cells are those in
    their span, extended. Every cell is found; if no vertex has more than d hyperplanes, exactly once.

    With rounding, hyperplanes that pass a vertex closer than its error count as passing through it, so cells thinner
    than that may be left out: `degenerate` lists where. `worst` tells how large errors were.

    Args:
        normals: `hyperplanes x dimensions`, none of them zero.
        offsets: `hyperplanes`.
        generator: for the random directions; any seed gives the same cells.

    Example::

        >>> grid = Arrangement(np.eye(2)[[0, 0, 1]], np.array([0.0, 1.0, 0.0]), np.random.default_rng(0))
        >>> sorted(map(tuple, np.concatenate(list(grid.cells())).tolist()))
        [(-1, -1, -1), (-1, -1, 1), (1, -1, -1), (1, -1, 1), (1, 1, -1), (1, 1, 1)]
    """

    def __init__(self, normals: Array, offsets: Array, generator: np.random.Generator) -> None:
        lengths = np.linalg.norm(normals, axis=1)
        normals, offsets = normals / lengths[:, None], offsets / lengths
        first, self._group, self._orientation = _coincident(normals, offsets)
        self.normals, self.offsets = normals[first], offsets[first]
        # Rows of `basis` span the normals; cells do not change along what is orthogonal to them.
        _, sizes, basis = np.linalg.svd(self.normals, full_matrices=False)
        self._basis = basis[: int((sizes > max(normals.shape) * 8 * _EPS * sizes.max(initial=0)).sum())]
        self.normals = self.normals @ self._basis.T
        self._generator = generator
        self.solved = 0
        """Number of systems of linear equations solved for vertices, those on planes of fewer dimensions left out."""
        self.degenerate: list[tuple[Array, float]] = []
        """Vertices of more hyperplanes than dimensions, with the error of each."""
        self.worst = 0.0
        """Size of the largest inverse that a vertex came from."""

    def cells(self) -> Iterator[Signs]:
        """Yield the side of each hyperplane that each cell lies on, 1 or -1, `cells x hyperplanes` at a time."""
        for signs in self._distinct_cells():
            yield signs[:, self._group] * self._orientation

    def _distinct_cells(self) -> Iterator[Signs]:
        count, dimensions = self.normals.shape
        if dimensions == 0:
            yield np.zeros((1, count), dtype=np.int8)
            return
        if dimensions == 1:
            yield from self._intervals()
            return
        direction = self._generator.normal(size=dimensions)
        up = np.asarray(direction / np.linalg.norm(direction), dtype=np.float64)
        # The rest of an orthonormal basis that starts with `up`.
        across = np.linalg.svd(up[None])[2][1:].T
        lowest, highest = math.inf, -math.inf
        seen = set[bytes]()
        for corners in self._subsets(dimensions):
            vertices, inverses, room = self._solve(corners)
            if not len(vertices[0]):
                continue
            corners, points = vertices
            heights = points @ up
            lowest, highest = min(lowest, float(heights.min())), max(highest, float(heights.max()))
            distances = points @ self.normals.T - self.offsets
            through = np.abs(distances) <= room[:, None]
            np.put_along_axis(through, corners, True, axis=1)
            signs = np.where(distances > 0, 1, -1).astype(np.int8)
            np.put_along_axis(signs, corners, np.where(up @ inverses > 0, 1, -1).astype(np.int8), axis=1)
            is_simple = through.sum(1) == dimensions
            yield signs[is_simple]
            for index in np.flatnonzero(~is_simple):
                key = np.packbits(through[index]).tobytes()
                if key not in seen:
                    seen.add(key)
                    self.degenerate.append((points[index] @ self._basis, float(room[index])))
                    yield from self._around(signs[index], through[index], up, across)
        if lowest > highest:
            # All hyperplanes are parallel but for rounding, or nearly: they all cut a plane anywhere.
            lowest, highest, self.worst = 0.0, 0.0, math.inf
        below = lowest - 1.0 - 0.1 * (highest - lowest)
        plane = Arrangement(self.normals @ across, self.offsets - below * (self.normals @ up), self._generator)
        yield from plane.cells()
        self.worst = max(self.worst, plane.worst)

    def _around(self, signs: Signs, through: NDArray[np.bool_], up: Array, across: Array) -> Iterator[Signs]:
        """Cells at a vertex: those of the hyperplanes through it, on the right side of the others."""
        normals = self.normals[through]
        plane = Arrangement(normals @ across, -normals @ up, self._generator)
        for local in plane.cells():
            full = np.repeat(signs[None], len(local), 0)
            full[:, through] = local
            yield full

    def _solve(self, corners: NDArray[np.int64]) -> tuple[tuple[NDArray[np.int64], Array], Array, Array]:
        """Vertices of sets of hyperplanes, those that have one: (sets, points), inverses and errors."""
        matrices = self.normals[corners]
        self.solved += len(corners)
        regular = np.abs(np.linalg.det(matrices)) > 1 / DEPENDENT
        inverses = np.linalg.inv(matrices[regular])
        sizes = np.abs(inverses).sum(2).max(1, initial=0)
        fine = sizes < DEPENDENT
        inverses, sizes, corners = inverses[fine], sizes[fine], corners[regular][fine]
        points = (inverses @ self.offsets[corners][..., None])[..., 0]
        self.worst = max(self.worst, float(sizes.max(initial=0)))
        dimensions = points.shape[1]
        size = np.abs(points).max(1, initial=0) + np.abs(self.offsets[corners]).max(1, initial=0)
        return (corners, points), inverses, 8 * dimensions * _EPS * (sizes * size + np.abs(self.offsets).max())

    def _subsets(self, size: int) -> Iterator[NDArray[np.int64]]:
        """All sets of so many hyperplanes, `sets x size` at a time."""
        count = len(self.normals)
        every = itertools.chain.from_iterable(itertools.combinations(range(count), size))
        chunk = max(1, ENTRIES // max(count, 1))
        while True:
            rows = np.fromiter(itertools.islice(every, chunk * size), dtype=np.int64)
            if not len(rows):
                return
            yield rows.reshape(-1, size)

    def _intervals(self) -> Iterator[Signs]:
        side = np.sign(self.normals[:, 0])
        order = np.argsort(self.offsets * side, kind="stable")
        count = len(order)
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        chunk = max(1, ENTRIES // max(count, 1))
        for start in range(0, count + 1, chunk):
            cell = np.arange(start, min(start + chunk, count + 1))[:, None]
            yield (np.where(cell > place, 1, -1) * side).astype(np.int8)


def _coincident(normals: Array, offsets: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], Signs]:
    """Distinct hyperplanes: the first of each group, the group of each, and whether it looks the same way."""
    margin = 8 * _EPS
    first: list[int] = []
    group = np.full(len(normals), -1)
    orientation = np.ones(len(normals), dtype=np.int8)
    for index in range(len(normals)):
        if group[index] >= 0:
            continue
        for side in (1, -1):
            near = np.abs(normals - side * normals[index]).max(1, initial=0) <= margin
            near &= np.abs(offsets - side * offsets[index]) <= margin * (1 + abs(offsets[index]))
            near &= group < 0
            group[near], orientation[near] = len(first), side
        first.append(index)
    return np.array(first, dtype=np.int64), group, orientation
