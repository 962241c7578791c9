"""Every fixed point of a piecewise-linear network, one linear region after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from pyro_lowrank.fixed_points.arrangement import DOUBTFUL, Arrangement
from pyro_lowrank.fixed_points.flats import on_set
from pyro_lowrank.fixed_points.found import FixedSet, Found
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, Network
from pyro_lowrank.fixed_points.progress import Progress
from pyro_lowrank.fixed_points.regions import Collection, Pieces, prune
from pyro_lowrank.fixed_points.zeros import RegionZeros


def enumerate_regions(
    network: Network,
    *,
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> Found:
    r"""Solve :math:`G(z) = 0` on every linear region of a network of piecewise-linear units.

    The knots of unit j are the hyperplanes :math:`w_j \cdot z = c_{jk}`, which cut latent space into regions where G
    is affine. `Arrangement` gives all of them, whatever their position, through the vertices; that is Proposition 1 of
    the paper made independent of general position. Of each region with an invertible matrix, the one zero of its
    affine map is a fixed point if it lies in the region's closure. Where the matrix is singular, the zeros are a flat,
    and the part within the region is reported as a set. So the list is complete up to rounding: `complete` is False
    where vertices are badly determined, where a zero may hide in a region thinner than the error of its vertex, or
    where a singular matrix leaves it open whether there are zeros.

    The expected index sum counts, with signs, where G takes another value, drawn at random. If no region is singular, G
    goes to infinity with z, and both sums are its degree; else it is None, unless the units are bounded.

    Args:
        network: of piecewise-linear units.
        max_boxes: stop, incomplete, after so many regions.
        max_seconds: stop, incomplete, after so long.
        progress: called now and then with the numbers of regions and fixed points.

    Raises:
        ValueError: if the units are not piecewise linear.

    Example::

        >>> from pyro_lowrank.fixed_points.network import build_network
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
            room = len(pieces) if max_boxes is None else max_boxes - walk.zeros.count
            walk.visit(pieces[:room])
            if progress is not None:
                progress(walk.zeros.count, len(walk.zeros))
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
        self.zeros = RegionZeros(network)
        self.others = Collection()
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
            yield (signs > 0).reshape(len(signs), units, knots).sum(2, dtype=np.int64)

    def visit(self, pieces: Pieces) -> None:
        """Find the zeros, and where another value is taken, within the closures of some regions."""
        self.zeros.visit(pieces)
        if not self.network.is_bounded:
            other = self.zeros.affine.solve(pieces, self.target)
            for row in np.flatnonzero(other.inside):
                self.others.add(other.points[row], float(other.errors[row]), int(other.signs[row]))

    def _hides_zeros(self, points: Array, sets: tuple[FixedSet, ...]) -> bool:
        """Whether a zero could lie in a region thinner than the error of a vertex that it is at."""
        if self.arrangement is None or not self.arrangement.degenerate:
            return False
        vertices = np.array([vertex for vertex, _ in self.arrangement.degenerate])
        rooms = np.array([room for _, room in self.arrangement.degenerate])
        network = self.network
        gains = np.abs(network.outputs).T * np.abs(network.slopes).max(1)
        steepness = (np.abs(network.affine) + gains @ np.abs(network.weights)).sum(1)
        change = 4 * rooms[:, None] * steepness + network.error(vertices)
        suspect = (np.abs(network.value(vertices)) <= change).all(1)
        for vertex, room in zip(vertices[suspect], rooms[suspect], strict=True):
            near = np.linalg.norm(points - vertex, axis=1) <= 1e-6 * (1 + np.abs(vertex).max()) + room
            if not near.any() and not any(on_set(vertex, piece) for piece in sets):
                return True
        return False

    def found(self, *, finished: bool, interrupted: bool) -> Found:
        """Return what was found so far."""
        points, sets, index_sum = self.zeros.collect()
        arrangement = self.arrangement
        certain = self.zeros.is_certain and not self._hides_zeros(points, sets)
        certain = certain and (arrangement is None or arrangement.worst < DOUBTFUL)
        # On a line, vertices are the knots themselves.
        solved = 0 if arrangement is None or arrangement.normals.shape[1] < 2 else arrangement.solved
        return Found(
            points=points,
            sets=sets,
            complete=finished and certain and not interrupted,
            boxes=self.zeros.count,
            solves=self.zeros.count + solved,
            open_boxes=np.zeros((0, 2, self.network.rank)),
            index_sum=index_sum,
            expected_index_sum=self._degree() if finished else None,
            interrupted=interrupted,
        )

    def _degree(self) -> int | None:
        if self.network.is_bounded:
            return int(np.sign(np.linalg.det(-self.network.affine))) or None
        return None if self.zeros.singular else self.others.index_sum()
