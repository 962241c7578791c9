"""Every fixed point of a piecewise-linear network, one linear region after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from pyro_lowrank.fixed_points.arrangement import Arrangement
from pyro_lowrank.fixed_points.check import checked
from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import PIECEWISE, LatentMap
from pyro_lowrank.fixed_points.options import Options
from pyro_lowrank.fixed_points.reduce import reduce
from pyro_lowrank.fixed_points.regions import Pieces
from pyro_lowrank.fixed_points.search import degree_of_bounded
from pyro_lowrank.fixed_points.zeros import RegionZeros

# Linear regions between two looks at the clock, at first.
_REGIONS = 256


def enumerate_regions(network: LatentMap, options: Options = Options()) -> Found:  # noqa: B008
    r"""Solve :math:`G(z) = 0` on every linear region of a network of piecewise-linear units.

    The knots of unit j are the hyperplanes :math:`w_j \cdot z = c_{jk}`, which cut latent space into regions where G
    is affine. `Arrangement` gives all of them, whatever their position, through the vertices; that is Proposition 1 of
    the paper made independent of general position. Of each region with an invertible matrix, the one zero of its
    affine map is a fixed point if it lies in the region's closure. Where the matrix is singular, the zeros are a flat,
    and the part within the region is reported as a set. What doubles cannot decide, whether a hyperplane passes through
    a vertex, a zero lies in its region or a matrix is singular, is decided without rounding. `complete` is False where
    time was too short, or numbers were too large for doubles.

    The expected index sum counts, with signs, where G takes another value, drawn at random. If no region is singular, G
    goes to infinity with z, and both sums are its degree; else it is None, unless the units are bounded.

    Args:
        network: of piecewise-linear units.
        options: budgets, of regions and time, and progress.

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
    walk = _Walk(network, options)
    interrupted, finished = False, False
    try:
        for pieces in walk.regions():
            room = len(pieces) if options.max_boxes is None else options.max_boxes - walk.zeros.count
            if not walk.visit(pieces[:room]) or room < len(pieces):
                break
        else:
            finished = True
    except OverflowError:
        # Numbers of the arrangement that are too large for doubles.
        finished = False
    except KeyboardInterrupt:
        interrupted = True
    return checked(network, walk.found(finished=finished, interrupted=interrupted), walk.network.scale)


class _Walk:
    """Visits regions and keeps what they hold."""

    def __init__(self, network: LatentMap, options: Options) -> None:
        self.whole, self.network, self.options = network, reduce(network), options
        self.until = options.until()
        self.zeros = RegionZeros(self.network)
        generator = np.random.default_rng(0)
        # Where G takes another value, drawn at random.
        value = generator.normal(size=network.rank) * (network.error_constant + network.error_slope.max(1)) * 2.0**52
        self.others = RegionZeros(reduce(network.plus(-value)))
        self.generator = generator
        self.solved = 0

    def regions(self) -> Iterator[Pieces]:
        """Yield the pieces that the units are on in each region, `regions x units` at a time, until time is over."""
        units, knots = self.network.knots.shape
        if not units * knots:
            yield np.zeros((1, units), dtype=np.int64)
            return
        # Every knot of every unit is a hyperplane, unit after unit.
        which = np.divmod(np.arange(units * knots), knots)
        planes = Arrangement(*self.zeros.exact.hyperplanes(*which), self.generator)
        for signs in planes.cells():
            # On a line, vertices are the knots themselves.
            self.solved = planes.solved if planes.normals.shape[1] > 1 else 0
            yield (signs > 0).reshape(len(signs), units, knots).sum(2, dtype=np.int64)

    def visit(self, pieces: Pieces) -> bool:
        """Find the zeros, and where another value is taken, in some regions; return whether there was time."""
        for start in range(0, max(len(pieces), 1), _REGIONS):
            if time.monotonic() > self.until:
                return False
            some = pieces[start : start + _REGIONS]
            if not len(some):
                continue
            self.zeros.visit(some)
            if not self.network.is_bounded:
                self.others.visit(some)
            self.options.tell(self.zeros.count, len(self.zeros))
        return True

    def found(self, *, finished: bool, interrupted: bool) -> Found:
        """Return what was found so far."""
        known = self.zeros.collect(self.until)
        return Found(
            points=known.points,
            sets=known.sets,
            on_knot=known.on_knot,
            complete=finished and self.zeros.is_certain and not interrupted,
            boxes=self.zeros.count,
            solves=self.zeros.count + self.solved,
            open_boxes=np.zeros((0, 2, self.network.rank)),
            index_sum=known.index_sum,
            expected_index_sum=self._degree() if finished else None,
            interrupted=interrupted,
        )

    def _degree(self) -> int | None:
        if self.network.is_bounded:
            return degree_of_bounded(self.network)
        return None if self.zeros.singular or not self.others.is_certain else self.others.collect(self.until).index_sum
