"""A search for fixed points from random starts: fast at any rank, and without any proof."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.exact import Exact, ExactFlat
from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap
from pyro_lowrank.fixed_points.options import Options
from pyro_lowrank.fixed_points.reduce import reduce
from pyro_lowrank.fixed_points.regions import Collection, Pieces
from pyro_lowrank.fixed_points.rounding import inverses
from pyro_lowrank.fixed_points.zeros import RegionZeros

BATCH = 64
"""Walks that go side by side."""

NEWTON_STEPS = 60

STALE = 512
"""After so many starts in a row that lead nowhere new, a search takes it that it has seen all that it can reach."""


def search(network: LatentMap, options: Options = Options()) -> Found:  # noqa: B008
    """Look for zeros of G from random starts; what is found is true, what is not found may exist.

    For piecewise-linear units: solve for the zero of a region's affine map; if it lies in that region it is a fixed
    point, else go on in the region where it does lie. A walk ends at a fixed point, at a singular matrix, or where any
    walk was before, and another starts in a random region. For smooth units: Newton's method with shorter steps where
    a full one does not help, from points where some of the units are near the middle of their range.

    Args:
        network: of any units.
        options: budgets, starts, their seed, and progress. `max_boxes` regions to solve, or starts of Newton's method,
            are 10,000 unless given; `constrained` starts are at random vertices of the hyperplane arrangement, one more
            solve each, and not at any combination of pieces.

    Example::

        >>> from pyro_lowrank.fixed_points.network import build_network
        >>> found = search(build_network(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0]), Options(seed=1))
        >>> sorted(found.points.ravel().round(9).tolist()), found.complete
        ([0.0, 1.333333333, 4.0], False)

    References:
        Eisenmann, Monfared, Goering and Durstewitz (2023), "Bifurcations and loss jumps in RNN training", NeurIPS.
    """
    generator, until = np.random.default_rng(options.seed), options.until()
    network = reduce(network)
    max_boxes = 10_000 if options.max_boxes is None else options.max_boxes
    hunt = (
        _Walks(network, generator, max_boxes, options.num_starts, options.constrained)
        if network.kind == PIECEWISE
        else _Newton(network, generator, min(max_boxes, options.num_starts), until)
    )
    interrupted = False
    try:
        for count, known in hunt.rounds():
            options.tell(count, known)
            if time.monotonic() > until:
                break
    except KeyboardInterrupt:
        interrupted = True
    return hunt.found(interrupted=interrupted)


def walk_on(network: LatentMap, zeros: RegionZeros, *, num_starts: int, until: float) -> int:
    """Add what walks find, in regions that exist, to the zeros that are known; return the number of solves.

    Args:
        network: of piecewise-linear units, pruned.
        zeros: of that network.
        num_starts: most walks.
        until: by `time.monotonic`, when to stop.
    """
    walks = _Walks(network, np.random.default_rng(0), zeros.count + 100 * num_starts, num_starts, True)
    before, walks.zeros = zeros.count, zeros
    for _ in walks.rounds():
        if time.monotonic() > until:
            break
    return zeros.count - before + walks.vertices


def newton_points(network: LatentMap, *, num_starts: int, until: float) -> tuple[Array, int]:
    """Return zeros of a network of smooth units that Newton's method finds, and the number of solves."""
    hunt = _Newton(network, np.random.default_rng(0), num_starts, until)
    for _ in hunt.rounds():
        if time.monotonic() > until:
            break
    return hunt.zeros.array(network.rank), hunt.solves


def _random_sets(generator: np.random.Generator, count: int, of: int, size: int) -> NDArray[np.int64]:
    """Sets of distinct numbers below `of`, `count x size`."""
    return np.argsort(generator.random((count, of)), axis=1)[:, :size]


class _Walks:
    """Walks from region to region."""

    def __init__(
        self, network: LatentMap, generator: np.random.Generator, max_boxes: int, num_starts: int, constrained: bool
    ) -> None:
        self.network, self.generator = network, generator
        self.max_boxes, self.num_starts, self.constrained = max_boxes, num_starts, constrained
        self.zeros = RegionZeros(network)
        self.starts = self.vertices = self.stale = 0
        self.seen: set[bytes] = set()

    def rounds(self) -> Iterator[tuple[int, int]]:
        """Take one step of every walk at a time; yield the numbers of regions and zeros."""
        pieces = np.zeros((0, self.network.units), dtype=np.int64)
        while self.zeros.count < self.max_boxes and self.stale < STALE:
            fresh = min(BATCH - len(pieces), self.num_starts - self.starts)
            if fresh > 0:
                pieces = np.concatenate([pieces, self._start(fresh)])
            if not len(pieces):
                return
            pieces = self._unseen(pieces)[: self.max_boxes - self.zeros.count]
            self.stale = 0 if len(pieces) else self.stale + fresh
            solved = self.zeros.visit(pieces)
            onward = (solved.signs != 0) & ~solved.inside
            pieces = self.network.rates(solved.points[onward])[2].astype(np.int64)
            yield self.zeros.count, len(self.zeros)

    def _unseen(self, pieces: Pieces) -> Pieces:
        rows = []
        for row, one in enumerate(pieces.astype(np.int16)):
            key = one.tobytes()
            if key not in self.seen:
                self.seen.add(key)
                rows.append(row)
        return pieces[rows]

    def _start(self, count: int) -> Pieces:
        """Random regions, `count x units`."""
        network, generator = self.network, self.generator
        units, knots = network.knots.shape
        self.starts += count
        if not units * knots or not self.constrained:
            return generator.integers(0, knots + 1, size=(count, units))
        size = min(network.rank, units)
        self.vertices += count
        chosen = _random_sets(generator, count, units, size)
        which = generator.integers(0, knots, size=chosen.shape)
        levels = network.knots[chosen, which]
        z = (np.linalg.pinv(network.weights[chosen]) @ levels[..., None])[..., 0]
        pieces = network.rates(z)[2].astype(np.int64)
        np.put_along_axis(pieces, chosen, which + generator.integers(0, 2, size=chosen.shape), axis=1)
        return pieces

    def found(self, *, interrupted: bool) -> Found:
        """Return what was found so far."""
        known = self.zeros.collect()
        return Found(
            points=known.points,
            sets=known.sets,
            on_knot=known.on_knot,
            boxes=self.zeros.count,
            solves=self.zeros.count + self.vertices,
            open_boxes=np.zeros((0, 2, self.network.rank)),
            index_sum=known.index_sum,
            expected_index_sum=degree_of_bounded(self.network),
            interrupted=interrupted,
        )


class _Newton:
    """Newton's method from many starts."""

    def __init__(self, network: LatentMap, generator: np.random.Generator, num_starts: int, until: float) -> None:
        self.network, self.generator, self.num_starts, self.until = network, generator, num_starts, until
        self.zeros = Collection()
        self.starts = self.solves = self.stale = 0

    def rounds(self) -> Iterator[tuple[int, int]]:
        """Take a batch of starts to its end at a time; yield the numbers of starts and zeros."""
        while self.starts < self.num_starts and self.stale < STALE:
            known = len(self.zeros.points)
            z = self._polish(self._start(min(BATCH, self.num_starts - self.starts)))
            self._keep(z)
            self.stale = 0 if len(self.zeros.points) > known else self.stale + len(z)
            yield self.starts, len(self.zeros.points)

    def _start(self, count: int) -> Array:
        network, generator = self.network, self.generator
        self.starts += count
        size = min(network.rank, network.units)
        if not size:
            return np.zeros((count, network.rank))
        chosen = _random_sets(generator, count, network.units, size)
        levels = 2 * generator.normal(size=chosen.shape) - network.intercepts[chosen, 0]
        return np.asarray((np.linalg.pinv(network.weights[chosen]) @ levels[..., None])[..., 0])

    def _jacobians(self, z: Array) -> Array:
        slopes = self.network.rates(z)[1]
        return self.network.affine + np.einsum("jr,nj,js->nrs", self.network.outputs, slopes, self.network.weights)

    def _steps(self, z: Array) -> Array:
        """Newton's steps; none where the Jacobian is singular."""
        self.solves += len(z)
        jacobians, steps = self._jacobians(z), np.zeros(z.shape)
        regular = np.linalg.slogdet(jacobians).sign != 0
        steps[regular] = -np.linalg.solve(jacobians[regular], self.network.value(z[regular])[..., None])[..., 0]
        return steps

    def _polish(self, z: Array) -> Array:
        size = np.linalg.norm(self.network.value(z), axis=1)
        for _ in range(NEWTON_STEPS):
            active = (size > np.linalg.norm(self.network.error(z), axis=1)) & np.isfinite(size)
            if not active.any() or time.monotonic() > self.until:
                break
            step = self._steps(z[active])
            trial, value = z[active] + step, np.full(len(step), np.inf)
            for shrink in 0.5 ** np.arange(8):
                worse = ~(value < size[active])
                trial[worse] = (z[active] + shrink * step)[worse]
                value[worse] = np.linalg.norm(self.network.value(trial[worse]), axis=1)
            better = value < size[active]
            rows = np.flatnonzero(active)[better]
            if not len(rows):
                break
            z[rows], size[rows] = trial[better], value[better]
        return z

    def _keep(self, z: Array) -> None:
        jacobians = self._jacobians(z)
        residuals = np.abs(self.network.value(z))
        for row in np.flatnonzero((residuals <= 4 * self.network.error(z)).all(1)):
            inverse = np.linalg.pinv(jacobians[row])
            error = float((np.abs(inverse) @ self.network.error(z[row])).max()) * 8
            sign = int(np.linalg.slogdet(-jacobians[row]).sign)
            self.zeros.add(z[row], error, sign)

    def found(self, *, interrupted: bool) -> Found:
        """Return what was found so far."""
        return Found(
            points=self.zeros.array(self.network.rank) * self.network.scale,
            boxes=self.starts,
            solves=self.solves,
            open_boxes=np.zeros((0, 2, self.network.rank)),
            index_sum=self.zeros.index_sum(),
            expected_index_sum=degree_of_bounded(self.network),
            interrupted=interrupted,
        )


def degree_of_bounded(network: LatentMap) -> int | None:
    """Return the degree of the map of a reduced network whose units are bounded: far out its linear part decides."""
    if not network.is_bounded:
        return None
    with np.errstate(all="ignore"):
        sign = np.linalg.slogdet(-network.affine).sign
        left = np.full(2, np.inf)
        if sign:
            inverse = inverses(network.affine)
            left = np.abs(np.eye(network.rank) - inverse @ network.affine) + 2 * np.abs(inverse) @ network.error_slope
    if left.sum(-1).max() < 0.5:
        return int(sign)
    if network.kind != PIECEWISE:
        return None
    solved = Exact(network).solve(np.zeros(network.units, dtype=np.int64))
    return solved[1] if isinstance(solved, tuple) and not isinstance(solved, ExactFlat) else None
