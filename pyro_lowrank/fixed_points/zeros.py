"""Zeros collected from linear regions: points, lines and planes."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.exact import Exact, ExactFlat, Exactly, Sides, rounded
from pyro_lowrank.fixed_points.flats import Piece, cut, extent, unite
from pyro_lowrank.fixed_points.found import FixedSet
from pyro_lowrank.fixed_points.index import index_at
from pyro_lowrank.fixed_points.network import Array, LatentMap
from pyro_lowrank.fixed_points.regions import AffinePieces, Pieces, Solved
from pyro_lowrank.fixed_points.rounding import inverses
from pyro_lowrank.fixed_points.stability import classify_set, spectra


class Collected(NamedTuple):
    """What was found, in the latents of the whole network."""

    points: Array
    """`points x rank`."""
    on_knot: NDArray[np.bool_]
    """Which units each is on a knot of, where that changes the slope, `points x units`."""
    sets: tuple[FixedSet, ...]
    index_sum: int | None
    """Of the isolated zeros, None if it is not known, or there are sets."""


class RegionZeros:
    """Solves linear regions and keeps the zeros within their closures.

    Doubles decide where they can. A zero that they put inside of a region, further from its border than its error, is
    in no other. All others are decided, compared and kept as exact fractions: no two zeros are ever merged, nor one
    found twice, by how near they are.

    Args:
        network: of piecewise-linear units, as `reduce` returns it.
    """

    def __init__(self, network: LatentMap) -> None:
        self.network = network
        self.affine = AffinePieces(network)
        self.count = 0
        """Number of regions solved."""
        self.singular = 0
        """Number of those with a singular matrix."""
        self._is_certain = True
        self._inside: dict[bytes, tuple[Array, int]] = {}
        self._exact: dict[Exactly, tuple[Sides, int]] = {}
        # Zeros that the last places of the weights decide about, for all that one of their regions tells.
        self._undetermined: set[Exactly] = set()
        self._pieces: dict[bytes, Piece] = {}
        whole, self._kept, self._scale = network.origin
        self._units = whole.units

    def __len__(self) -> int:
        return len(self._inside) + len(self._exact)

    @property
    def is_certain(self) -> bool:
        """Whether it was clear in every region which zeros it holds; known for good after they are collected."""
        return self._is_certain and self._undetermined <= self._exact.keys()

    @property
    def pieces(self) -> list[Piece]:
        """Pieces of lines and planes found so far."""
        return list(self._pieces.values())

    @cached_property
    def exact(self) -> Exact:
        """The network without rounding."""
        return Exact(self.network)

    def visit(self, pieces: Pieces) -> Solved:
        """Find the zeros in the closures of some regions, pieces `regions x units`; return them, all decided."""
        self.count += len(pieces)
        solved = self.affine.solve(pieces)
        for row in np.flatnonzero(solved.inside):
            self._inside[pieces[row].tobytes()] = self._scale * solved.points[row], int(solved.signs[row])
        for row in np.flatnonzero(solved.unsure):
            self._decide(pieces[row], solved, int(row))
        return solved

    def _decide(self, pieces: NDArray[np.int64], solved: Solved, row: int) -> None:
        """Find the zeros of one region without rounding, and correct what was solved."""
        # A regular map has one zero: if a known one touches the region, around a knot for instance, it is that.
        if solved.signs[row] and any(sides.touch(pieces) for sides, _ in self._exact.values()):
            solved.inside[row] = True
            return
        zero = self.exact.solve(pieces)
        try:
            if zero is None or isinstance(zero, ExactFlat):
                self.singular += 1
                solved.signs[row] = 0
                if zero is not None:
                    self._visit_flat(pieces, zero)
                return
            was_regular = solved.signs[row] != 0
            point, solved.signs[row] = zero
            sides = self.exact.sides(point)
            solved.inside[row] = sides.touch(pieces)
            if solved.inside[row] and not (was_regular or self._is_determined(pieces, point)):
                self._undetermined.add(point)
            elif solved.inside[row]:
                self._exact[point] = sides, zero[1]
            else:
                solved.points[row] = rounded(point) / self._scale
        except OverflowError:
            # Too far out for doubles, or too many corners.
            self._is_certain, solved.signs[row] = False, 0

    def _is_determined(self, pieces: NDArray[np.int64], point: Exactly) -> bool:
        """Whether a zero stays where it is, up to half of its size, if every weight changes by its last place."""
        network, z = self.network, np.abs(rounded(point) / self._scale)
        matrix = self.exact.jacobian(pieces, of_map=True)
        inverse = np.abs(inverses(matrix)) / self._scale[:, None]
        whole = network.origin.network
        places = 1 / (whole.units + 3 * whole.rank + 16)
        moved = inverse @ (whole.error_slope @ (self._scale * z) + whole.error_constant) * places
        return not z.any() or bool(moved.max() <= 0.5 * z.max())

    def _visit_flat(self, pieces: NDArray[np.int64], flat: ExactFlat) -> None:
        corners, is_bounded = cut(self.exact, flat, pieces)
        if not corners:
            return
        dimensions = extent(corners)
        if not dimensions:
            self._exact.setdefault(corners[0], (self.exact.sides(corners[0]), 0))
            return
        eigenvalues = spectra(self.exact.jacobian(pieces))
        middle = tuple(sum(xs) / len(corners) for xs in zip(*corners, strict=True))
        on_knot = bool(self.exact.bends(self.exact.sides(middle)).any())
        label = classify_set(eigenvalues, dimensions, on_knot)
        self._pieces[pieces.tobytes()] = Piece(pieces.copy(), corners, is_bounded, eigenvalues[None], label)

    def collect(self, until: float = np.inf) -> Collected:
        """Return the zeros; what takes longer than until some time, by `time.monotonic`, is left unknown."""
        regions = np.array([piece.region for piece in self._pieces.values()])
        # A zero in the closure of a region all of whose zeros are a line or plane is one of these.
        alone = {
            point: (sides, sign)
            for point, (sides, sign) in self._exact.items()
            if not len(regions) or not sides.touch(regions).any()
        }
        points = [point for point, _ in self._inside.values()]
        on_knot = np.zeros((len(points) + len(alone), self._units), dtype=bool)
        total: int | None = sum(sign for _, sign in self._inside.values())
        kept = []
        for point, (sides, sign) in alone.items():
            try:
                points.append(rounded(point))
            except OverflowError:
                self._is_certain = False
                continue
            bends = self.exact.bends(sides)
            on_knot[len(points) - 1, self._kept] = bends
            kept.append((sides, sign, bool(bends.any())))
        for sides, sign, is_bent in kept:
            index = index_at(self.exact, sides, until) if is_bent and total is not None else sign
            total = None if index is None or total is None else total + index
        try:
            united = unite(self.pieces, self.exact, until) if self._pieces else []
            sets = tuple(piece.to_set() for piece in united)
        except OverflowError:
            self._is_certain, sets = False, ()
        # Adding zero makes an end of minus zero.
        array = np.array(points, dtype=np.float64).reshape(-1, self.network.rank) + 0.0
        return Collected(array, on_knot[: len(array)], sets, None if sets else total)
