"""The cells that hyperplanes cut space into, as a stream of sign vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.exact import Dyadic, Objects, reduced_rows, solve_whole
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.rounding import inverses, rounding, sizes

Signs = NDArray[np.int8]

ENTRIES = 1 << 17
"""Most numbers in one array of the stream: a moment's work, so that clocks are looked at."""

REGULAR = 1e8
"""Vertices of hyperplanes whose matrix of unit normals has a larger inverse are found without rounding."""


class Hyperplanes(NamedTuple):
    """Where `normals z = offsets`, in whole numbers."""

    normals: Objects
    """`hyperplanes x dimensions`."""
    offsets: Objects
    """`hyperplanes`."""

    @staticmethod
    def of(normals: Any, offsets: Any) -> Hyperplanes:
        """Return hyperplanes given in floats, or whole numbers, as they are."""
        if normals.dtype == object:
            return Hyperplanes(normals, offsets)
        n, b = Dyadic.of(normals), Dyadic.of(offsets)
        power = min(n.power, b.power)
        return Hyperplanes(n.at(power), b.at(power))

    def on_plane(self, up: NDArray[np.int64], height: Fraction) -> Hyperplanes:
        """Return them on the plane `up z = height`, in the latents but that in which `up` is largest."""
        pivot = int(np.argmax(np.abs(up)))
        # Sides are kept by a factor above zero.
        steep = abs(int(up[pivot])) * height.denominator
        slope = np.array([(int(u) if up[pivot] > 0 else -int(u)) * height.denominator for u in up], dtype=object)
        level = height.numerator if up[pivot] > 0 else -height.numerator
        tilt = self.normals[:, pivot]
        normals = steep * self.normals - tilt[:, None] * slope
        return Hyperplanes(np.delete(normals, pivot, 1), steep * self.offsets - tilt * level)

    def doubles(self) -> tuple[Array, Array]:
        """Return unit normals and offsets, rounded."""
        largest = np.abs(self.normals).max(1)
        normals = np.array([[n / size for n in row] for row, size in zip(self.normals, largest, strict=True)])
        offsets = np.array([b / size for b, size in zip(self.offsets, largest, strict=True)])
        normals = normals.reshape(self.normals.shape).astype(np.float64)
        lengths = np.linalg.norm(normals, axis=1)
        return normals / lengths[:, None], offsets / lengths


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

    Doubles tell on which side of a hyperplane a vertex lies where it is further from it than its error; where it is
    not, and where hyperplanes are nearly parallel, whole numbers do. So no cell is missed, however thin it is.

    Args:
        normals: `hyperplanes x dimensions`, none of them zero, in floats or whole numbers.
        offsets: `hyperplanes`.
        generator: for the random directions; any seed gives the same cells.

    Raises:
        OverflowError: if doubles are too small for the hyperplanes' numbers.

    Example::

        >>> grid = Arrangement(np.eye(2)[[0, 0, 1]], np.array([0.0, 1.0, 0.0]), np.random.default_rng(0))
        >>> sorted(map(tuple, np.concatenate(list(grid.cells())).tolist()))
        [(-1, -1, -1), (-1, -1, 1), (1, -1, -1), (1, -1, 1), (1, 1, -1), (1, 1, 1)]
    """

    def __init__(self, normals: Array | Objects, offsets: Array | Objects, generator: np.random.Generator) -> None:
        exact = Hyperplanes.of(normals, offsets)
        first, self._group, self._orientation = _coincident(exact)
        exact = Hyperplanes(exact.normals[first], exact.offsets[first])
        # Cells do not change along what is orthogonal to all normals: some latents do as well as all.
        self.exact = Hyperplanes(exact.normals[:, _spanning(exact)], exact.offsets)
        self.normals, self.offsets = self.exact.doubles()
        self._generator = generator
        self.solved = 0
        """Number of systems of linear equations solved for vertices, those on planes of fewer dimensions left out."""

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
        up = self._direction()
        lowest, highest = math.inf, -math.inf
        seen = set[bytes]()
        for subsets in self._subsets(dimensions):
            corners, points, turns, room = self._solve(subsets, up)
            distances = points @ self.normals.T - self.offsets
            through = np.abs(distances) <= room[:, None]
            np.put_along_axis(through, corners, True, axis=1)
            signs = np.where(distances > 0, 1, -1).astype(np.int8)
            np.put_along_axis(signs, corners, turns, axis=1)
            is_clear = (through.sum(1) == dimensions) & turns.all(1)
            heights, slack = points @ up, room * sizes(up) * dimensions
            lowest = min(lowest, float((heights - slack).min(initial=math.inf)))
            highest = max(highest, float((heights + slack).max(initial=-math.inf)))
            yield signs[is_clear]
            for index in np.flatnonzero(~is_clear):
                yield from self._unclear(corners[index], through[index], up, seen)
            for hard in self._hard:
                # No cells, but a moment at which those who take them can look at the clock.
                yield signs[:0]
                vertex = self._vertex(hard)
                if vertex is not None:
                    height = float(sum(int(u) * n for u, n in zip(up, vertex[1], strict=True)) / Fraction(vertex[0]))
                    lowest, highest = min(lowest, height), max(highest, height)
                    yield from self._unclear(hard, None, up, seen)
        below = lowest - 1.0 - (highest - lowest) - rounding(1024) * max(abs(lowest), abs(highest))
        plane = Arrangement(*self.exact.on_plane(up, Fraction(below)), self._generator)
        yield from plane.cells()

    def _direction(self) -> NDArray[np.int64]:
        """A random direction that is that of no normal."""
        while True:
            up = np.asarray(self._generator.integers(-(2**40), 2**40, size=self.normals.shape[1]))
            if up.any() and self.exact.on_plane(up, Fraction(0)).normals.any(1).all():
                return up

    def _vertex(self, corners: NDArray[np.int64]) -> tuple[int, list[int]] | None:
        """Where some hyperplanes meet, as a denominator and numerators."""
        return solve_whole(self.exact.normals[corners].tolist(), self.exact.offsets[corners].tolist())

    def _unclear(
        self, corners: NDArray[np.int64], near: NDArray[np.bool_] | None, up: NDArray[np.int64], seen: set[bytes]
    ) -> Iterator[Signs]:
        """Cells with their lowest vertex where some hyperplanes meet, without rounding.

        Args:
            corners: the hyperplanes, as many as dimensions.
            near: which pass through the vertex for all that doubles can tell, None if they tell nothing.
            up: the direction.
            seen: the vertices that are done, by the hyperplanes through them.
        """
        if near is not None and near.tobytes() in seen:
            return
        vertex = self._vertex(corners)
        assert vertex is not None, "regular to doubles, singular without rounding"
        denominator, numerators = vertex
        away = self.exact.normals @ np.array(numerators, dtype=object) - self.exact.offsets * denominator
        side = np.array([(value > 0) - (value < 0) for value in away], dtype=np.int8)
        side = side if denominator > 0 else (-side).astype(np.int8)
        through = side == 0
        if through.sum() == len(corners):
            # The cell whose edges all go up: on edge k, hyperplane k is left towards the sign of (up inverse)_k.
            turned = solve_whole(self.exact.normals[corners].T.tolist(), [int(u) for u in up])
            assert turned is not None
            turns = np.array([(n > 0) - (n < 0) for n in turned[1]], dtype=np.int8)
            if not turns.all():
                raise OverflowError("A random direction is orthogonal to an edge.")
            side[corners] = turns if turned[0] > 0 else -turns
            yield side[None]
            return
        if through.tobytes() in seen:
            return
        seen.add(through.tobytes())
        normals = self.exact.normals[through]
        local = Hyperplanes(normals, np.zeros(len(normals), dtype=object)).on_plane(up, Fraction(1))
        for cells in Arrangement(*local, self._generator).cells():
            full = np.repeat(side[None], len(cells), 0)
            full[:, through] = cells
            yield full

    def _solve(
        self, corners: NDArray[np.int64], up: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Array, Signs, Array]:
        """Vertices of sets of hyperplanes, those that have one: sets, points, how edges turn, 0 if unclear, and errors.

        Sets whose matrix is singular, or nearly, are left in `_hard`.
        """
        matrices = self.normals[corners]
        self.solved += len(corners)
        with np.errstate(all="ignore"):
            regular = np.linalg.slogdet(matrices).sign != 0
            inverse = inverses(matrices[regular])
            large = np.abs(inverse).sum(2).max(1, initial=0)
        fine = large < REGULAR
        rows = np.flatnonzero(regular)[fine]
        self._hard = np.delete(corners, rows, 0)
        inverse, large, corners = inverse[fine], large[fine], corners[rows]
        points = (inverse @ self.offsets[corners][..., None])[..., 0]
        dimensions = points.shape[1]
        size = np.abs(points).max(1, initial=0) + np.abs(self.offsets[corners]).max(1, initial=0)
        room = rounding(32 * dimensions) * (large * size + np.abs(self.offsets).max())
        turns = up @ inverse
        error = rounding(32 * dimensions) * (np.abs(up) @ np.abs(inverse)) * large[:, None]
        return corners, points, np.where(np.abs(turns) > error, np.sign(turns), 0).astype(np.int8), room

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
        places = self.offsets * side
        order = np.argsort(places, kind="stable")
        if (np.diff(places[order]) <= rounding(8) * np.abs(places[order[1:]])).any():
            exact = [Fraction(b, n) for (n,), b in zip(self.exact.normals.tolist(), self.exact.offsets, strict=True)]
            order = np.array(sorted(range(len(exact)), key=exact.__getitem__))
        count = len(order)
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        chunk = max(1, ENTRIES // max(count, 1))
        for start in range(0, count + 1, chunk):
            cell = np.arange(start, min(start + chunk, count + 1))[:, None]
            yield (np.where(cell > place, 1, -1) * side).astype(np.int8)


def _coincident(planes: Hyperplanes) -> tuple[NDArray[np.int64], NDArray[np.int64], Signs]:
    """Distinct hyperplanes: the first of each group, the group of each, and whether it looks the same way."""
    first: list[int] = []
    groups: dict[tuple[int, ...], int] = {}
    group = np.zeros(len(planes.normals), dtype=np.int64)
    orientation = np.ones(len(planes.normals), dtype=np.int8)
    faces = [1] * len(planes.normals)
    for index, (normal, offset) in enumerate(zip(planes.normals.tolist(), planes.offsets.tolist(), strict=True)):
        # In lowest terms, with a first entry above zero.
        divisor = math.gcd(*normal, offset)
        faces[index] = 1 if next(n for n in normal if n) > 0 else -1
        key = tuple(faces[index] * n // divisor for n in (*normal, offset))
        if key not in groups:
            groups[key] = len(first)
            first.append(index)
        group[index] = groups[key]
        orientation[index] = faces[index] * faces[first[groups[key]]]
    return np.array(first, dtype=np.int64), group, orientation


def _spanning(planes: Hyperplanes) -> list[int]:
    """Latents in which the normals are as independent as they are in all."""
    count, dimensions = planes.normals.shape
    if count >= dimensions:
        spread = np.linalg.svd(planes.doubles()[0], compute_uv=False)
        if spread.min(initial=1) > rounding(64 * count) * spread.max(initial=1):
            return list(range(dimensions))
    return reduced_rows([list(map(Fraction, row)) for row in planes.normals.tolist()])[1]
