"""Zeros collected from linear regions: points, lines and planes."""

from __future__ import annotations

import numpy as np

from pyro_lowrank.fixed_points.flats import cut, extent, fixed_set, flat_of_zeros, on_set, unite
from pyro_lowrank.fixed_points.found import FixedSet
from pyro_lowrank.fixed_points.index import index_at
from pyro_lowrank.fixed_points.network import Array, Network
from pyro_lowrank.fixed_points.regions import AffinePieces, Collection, Pieces, Solved
from pyro_lowrank.fixed_points.stability import classify_set, knots_at, spectra


class RegionZeros:
    """Solves linear regions and keeps the zeros within their closures.

    Args:
        network: of piecewise-linear units, pruned.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.affine = AffinePieces(network)
        self.count = 0
        """Number of regions solved."""
        self.singular = 0
        """Number of those with a singular matrix."""
        self.is_certain = True
        """Whether it was clear in every region which zeros it holds."""
        self._points = Collection()
        self._sets: list[FixedSet] = []

    def __len__(self) -> int:
        return len(self._points.points)

    def visit(self, pieces: Pieces) -> Solved:
        """Find the zeros within the closures of some regions, pieces `regions x units`."""
        self.count += len(pieces)
        solved = self.affine.solve(pieces)
        inside = np.flatnonzero(solved.inside)
        # Around a point where many knots meet, all regions have the same zero.
        same = np.column_stack([solved.points[inside], solved.signs[inside]])
        for row in inside[np.unique(same, axis=0, return_index=True)[1]]:
            self._points.add(solved.points[row], float(solved.errors[row]), int(solved.signs[row]))
        for row in np.flatnonzero(solved.signs == 0):
            self._visit_singular(pieces[row : row + 1])
        return solved

    def _visit_singular(self, pieces: Pieces) -> None:
        self.singular += 1
        matrix, constant = self.affine.matrices(pieces)
        flat = flat_of_zeros(matrix[0], constant[0], self.affine.rounding)
        if flat is None:
            return
        low, high = self.affine.bounds(pieces)
        try:
            part = cut(flat, self.network.weights, low[0], high[0])
        except OverflowError:
            self.is_certain = False
            return
        if part is None:
            return
        corners, is_bounded = part
        self.is_certain = self.is_certain and flat.is_certain
        dimensions = extent(corners)
        if dimensions:
            eigenvalues = spectra(matrix[0] + np.eye(self.network.rank))
            on_knot = bool(knots_at(self.network, corners.mean(0)[None]).any())
            stability = classify_set(eigenvalues, dimensions, on_knot)
            self._sets.append(fixed_set(corners, is_bounded, eigenvalues, stability))
        else:
            self._points.add(corners[0], 1e-9 * (1 + float(np.abs(corners[0]).max())), 0)

    def collect(self) -> tuple[Array, tuple[FixedSet, ...], int | None]:
        """Return the isolated zeros, the sets, and the index sum of the zeros, None if it is not defined."""
        sets = unite(self._sets)
        keep = [not any(on_set(point, piece) for piece in sets) for point in self._points.points]
        self._points.drop(np.array(keep, dtype=bool))
        return self._points.array(self.network.rank), sets, None if sets else self._index_sum()

    def _index_sum(self) -> int | None:
        total = 0
        for point, error, signs in zip(self._points.points, self._points.errors, self._points.signs, strict=True):
            # A zero on a knot may have been found from one side only.
            index = index_at(self.network, point, error) if 0 not in signs else None
            if index is None:
                return None
            total += index
        return total
