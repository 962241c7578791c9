"""Every fixed point of a piecewise-linear network, one linear region after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from pyro_lowrank.fixed_points.arrangement import DOUBTFUL, Arrangement, Signs
from pyro_lowrank.fixed_points.flats import cut, extent, fixed_set, flat_of_zeros, on_set, unite
from pyro_lowrank.fixed_points.found import FixedSet, Found
from pyro_lowrank.fixed_points.index import index_at
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, Network
from pyro_lowrank.fixed_points.regions import AffinePieces, Collection, Pieces, prune

Progress = Callable[[int, int], None]
"""Told how many boxes, regions or starts are done and how many fixed points are known."""


def enumerate_regions(
    network: Network,
    *,
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> Found:
    r"""Solve :math:`G(z) = 0` on every linear region of a network of piecewise-linear units.

        The knots of unit j are the hyperplanes :math:`w_j \cdot z = c_{jk}`, which cut latent space into regions where G is
        affine. `Arrangement` gives all of them, whatever their position, through the vertices; that is Proposition 1 of the
        paper made independent of general position. Of each region with an invertible matrix, the one zero of its affine map
        is a fixed point if it lies in the region's closure. Where the matrix is singular, the zeros are a flat, and the
        part within the region is reported as a set. So the list is complete up to rounding: `complete` is False where the
        vertices are badly determined, a zero may hide in a region thinner than the error of its vertex, or a singular matrix
        leaves it open whether there are zeros.

        The expected index sum counts, with signs, where G takes another value, drawn at random. G maps every bounded set to
        a bounded one and goes to infinity with z if no region is singular; then both sums are its degree.

        Args:
            network: of piecewise-linear units.
            max_boxes: stop, incomplete, after so many regions.
            max_seconds: stop, incomplete, after so long.
            progress: called now and then with the numbers of regions and fixed points.

        Raises:
            ValueError: if the units are not piecewise linear.

        Example::

            >>> from pyro_lowrank.fixed_points.index import index_at
    from pyro_lowrank.fixed_points.network import build_network
            >>> found = enumerate_regions(build_network(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0]))
            >>> sorted(found.points.ravel().round(9).tolist()), found.complete, found.index_sum
            ([0.0, 1.333333333, 4.0], True, 1)

        References:
            Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS,
            Proposition 1.
    """
    if network.kind != PIECEWISE:
        raise ValueError(
            "Only piecewise-linear units have linear regions to enumerate; use method='certified' or 'search'."
        )
    walk = _Walk(prune(network))
    until = None if max_seconds is None else time.monotonic() + max_seconds
    interrupted, finished = False, False
    try:
        for pieces in walk.regions():
            room = len(pieces) if max_boxes is None else max_boxes - walk.count
            walk.visit(pieces[:room])
            if progress is not None:
                progress(walk.count, len(walk.zeros.points))
            if room < len(pieces) or (until is not None and time.monotonic() > until):
                break
        else:
            finished = True
    except KeyboardInterrupt:
        interrupted = True
    return walk.found(finished=finished, interrupted=interrupted)


class _Walk:
    """Visits regions and keeps what they hold."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.affine = AffinePieces(network)
        self.zeros = Collection()
        self.others = Collection()
        self.sets: list[FixedSet] = []
        self.count = self.singular = 0
        self.is_certain = True
        generator = np.random.default_rng(0)
        # Every knot of every unit is a hyperplane, unit after unit.
        normals = np.repeat(network.weights, network.knots.shape[1], 0)
        self.arrangement = Arrangement(normals, network.knots.ravel(), generator) if len(normals) else None
        scale = 1 + float(np.abs(network.constant).max(initial=0))
        self.target: Array = scale * generator.normal(size=network.rank)

    def regions(self) -> Iterator[Pieces]:
        """Yield the pieces that the units are on in each region, `regions x units` at a time."""
        units, knots = self.network.knots.shape
        if self.arrangement is None:
            yield np.zeros((1, units), dtype=np.int64)
            return
        for signs in self.arrangement.cells():
            yield _pieces(signs, units, knots)

    def visit(self, pieces: Pieces) -> None:
        """Find the zeros within the closures of some regions."""
        self.count += len(pieces)
        solved = self.affine.solve(pieces)
        for row in np.flatnonzero(solved.inside):
            self.zeros.add(solved.points[row], float(solved.errors[row]), int(solved.signs[row]))
        for row in np.flatnonzero(solved.signs == 0):
            self._singular_region(pieces[row : row + 1])
        if not self.network.is_bounded:
            other = self.affine.solve(pieces, self.target)
            for row in np.flatnonzero(other.inside):
                self.others.add(other.points[row], float(other.errors[row]), int(other.signs[row]))

    def _singular_region(self, pieces: Pieces) -> None:
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
        if extent(corners):
            self.sets.append(fixed_set(corners, is_bounded))
        else:
            self.zeros.add(corners[0], 1e-9 * (1 + float(np.abs(corners[0]).max())), 0)

    def _hidden_zeros(self, points: Array) -> bool:
        """Whether a zero could hide in a region thinner than the error of the vertex where it lies."""
        if self.arrangement is None or not self.arrangement.degenerate:
            return False
        vertices = np.array([vertex for vertex, _ in self.arrangement.degenerate])
        rooms = np.array([room for _, room in self.arrangement.degenerate])
        if self.arrangement.normals.shape[1] < self.network.rank:
            # Vertices are lines or planes then, and thin regions are only told apart by what was found.
            return False
        steep = np.abs(self.network.affine) + (
            np.abs(self.network.outputs).T * np.abs(self.network.slopes).max(1)
        ) @ np.abs(self.network.weights)
        change = 4 * rooms[:, None] * steep.sum(1) + self.network.error(vertices)
        suspect = (np.abs(self.network.value(vertices)) <= change).all(1)
        for vertex, room in zip(vertices[suspect], rooms[suspect], strict=True):
            near = np.linalg.norm(points - vertex, axis=1) <= 1e-6 * (1 + np.abs(vertex).max()) + room
            if not near.any() and not any(on_set(vertex, piece) for piece in self.sets):
                return True
        return False

    def found(self, *, finished: bool, interrupted: bool) -> Found:
        """Return what was found so far."""
        rank = self.network.rank
        sets = unite(self.sets)
        keep = [not any(on_set(point, piece) for piece in sets) for point in self.zeros.points]
        self.zeros.drop(np.array(keep, dtype=bool))
        points = self.zeros.array(rank)
        worst = 0.0 if self.arrangement is None else self.arrangement.worst
        certain = self.is_certain and worst < DOUBTFUL and not self._hidden_zeros(points)
        solved = 0 if self.arrangement is None or self.arrangement.normals.shape[1] < 2 else self.arrangement.solved
        return Found(
            points=points,
            sets=sets,
            complete=finished and certain and not interrupted,
            boxes=self.count,
            solves=self.count + solved,
            open_boxes=np.zeros((0, 2, rank)),
            index_sum=None if sets else self._index_sum(),
            expected_index_sum=self._degree() if finished else None,
            interrupted=interrupted,
        )

    def _index_sum(self) -> int | None:
        total = 0
        for point, error, signs in zip(self.zeros.points, self.zeros.errors, self.zeros.signs, strict=True):
            settled = len(signs) == 1 and 0 not in signs
            index = next(iter(signs)) if settled else index_at(self.network, point, error)
            if index is None:
                return None
            total += index
        return total

    def _degree(self) -> int | None:
        if self.network.is_bounded:
            determinant = np.linalg.det(-self.network.affine)
            return int(np.sign(determinant)) or None
        return None if self.singular else self.others.index_sum()


def _pieces(signs: Signs, units: int, knots: int) -> Pieces:
    above = (signs > 0).reshape(len(signs), units, knots)
    return above.sum(2, dtype=np.int64)
