"""Every fixed point by branch and bound, with the proof that there are no others."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.fixed_points.check import checked
from pyro_lowrank.fixed_points.cones import regions_around
from pyro_lowrank.fixed_points.explore import BOXES, DEPTH, LEFT, SEEN, SOLVES, Worker, explore, new_worker, prepare
from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap
from pyro_lowrank.fixed_points.options import Options
from pyro_lowrank.fixed_points.proof import Proved, are_apart, newton, prove
from pyro_lowrank.fixed_points.reduce import reduce
from pyro_lowrank.fixed_points.root import far_box, recession, root_box
from pyro_lowrank.fixed_points.rounding import TINY, rounding
from pyro_lowrank.fixed_points.search import degree_of_bounded, newton_points, walk_on
from pyro_lowrank.fixed_points.zeros import RegionZeros

MOST_BOXES = 20_000_000
"""How many boxes are looked at where no budget is given."""

# Sides of the smallest boxes, relative to the root box: what is not decided at one is put off to the next.
_STAGES, _SMOOTH_STAGES = (1e-4, 1e-8, 1e-13), (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13)
# With smooth units, so many undecided boxes, and so many times as many as at the stage before, cover a line or surface
# of zeros, or of what nearly are zeros, and smaller boxes would only be more: the search ends there without a budget.
_MANY, _GROWTH = 5000, 4
# Share of a budget of time that goes into boxes, and, where it ran out, most starts of a search in what is left.
_SHARE, _STARTS = 0.9, 2000
# A leaf is decided by its linear regions if these are not more.
_MOST_REGIONS, _MOST_REGIONS_OF_ROOT = 256, 4096
# Linear regions between two looks at the clock.
_REGIONS = 64
# Seconds between two looks at the clock, at Ctrl-C, and at how the boxes are shared out.
_PAUSE = 0.1
_explore: Any = explore


def certify(network: LatentMap, options: Options = Options()) -> Found:  # noqa: B008
    r"""Find all zeros of a network's map by branch and bound, with a proof that there are no others.

    Start from a box outside of which there is none (`root_box`). On a box every unit lies between two parallel lines,
    a single one where the unit is linear on the box; so G is enclosed by an affine map with an error (`enclosure`),
    which says that the box holds no zero, or shrinks it, or leaves it to be split. Boxes inherit from the one that they
    were split from which units are linear there, so that a box costs what its other units cost.

    With piecewise-linear units, boxes end up within one linear region, or within so few that these are solved one by
    one: a zero on a knot is found from all of its sides, and lines and planes of zeros as the pieces of linear regions
    that they are. With smooth units, the interval Newton theorem proves that a box holds exactly one zero (`proof`).
    Rounding is accounted for by explicit margins, see `enclosure`: `complete` means that every box was decided with
    them, and not only that nothing more was found. Where the time runs out first, a short search adds fixed points that
    it finds in the open boxes.

    Args:
        network: the network.
        options: budgets, threads and progress. `MOST_BOXES` is the most if neither budget is given.

    Example::

        >>> from pyro_lowrank.fixed_points.network import build_network
        >>> found = certify(build_network(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0]))
        >>> sorted(found.points.ravel().round(9).tolist()), found.complete, found.index_sum
        ([0.0, 1.333333333, 4.0], True, 1)

    References:
        Neumaier (1990), "Interval methods for systems of equations"; Pals et al. (2024), NeurIPS.
    """
    prepare()
    search = _Search(network, options, options.until(_SHARE))
    return checked(network, search.run(), search.network.scale)


class _Search:
    """Boxes, shared out among threads, and what was found in them."""

    def __init__(self, network: LatentMap, options: Options, until: float, counts_degree: bool = True) -> None:
        self.whole, self.network, self.counts_degree = network, reduce(network), counts_degree
        self.options, self.threads, self.until = options, options.threads or os.cpu_count() or 1, until
        self.has_budget = options.max_boxes is not None or options.max_seconds is not None
        most = MOST_BOXES if options.max_seconds is None else 2**62
        self.max_boxes = most if options.max_boxes is None else options.max_boxes
        self.root, self.is_bounded = far_box(self.network), False
        self.regions = RegionZeros(self.network) if self.network.kind == PIECEWISE else None
        self.visited: set[bytes] = set()
        # Whether all linear regions there are were visited, within no box.
        self.is_everywhere = False
        self.regions_of_root = np.inf
        self.proved: list[Proved] = []
        self.boxes = self.solves = 0
        self.started = time.monotonic()
        self.limit = 200
        self.left = self.root[None]

    def run(self) -> Found:
        """Search until all is decided or the budget is spent."""
        interrupted = False
        try:
            open_boxes = self._run()
        except KeyboardInterrupt:
            interrupted, open_boxes = True, self.left
        if len(open_boxes) and not interrupted and np.isfinite(self.until):
            self._look_around()
        return self._found(open_boxes, interrupted)

    def _run(self) -> Array:
        """Find the box that all zeros lie in, and decide all within; return boxes that are left open."""
        # A network with few regions is settled by these where boxes turn out to be more, or there is no bound.
        units, knots = self.network.knots.shape
        every = np.zeros(units, dtype=np.int64), np.full(units, knots)
        count = np.inf if self.regions is None else _regions_between(*every)
        is_small = count <= _MOST_REGIONS_OF_ROOT
        self.root, self.is_bounded = root_box(self.network, self.until, count if is_small else np.inf)
        self.left = open_boxes = self.root[None]
        if self.regions is not None:
            if is_small and not self.is_bounded and self._visit_between(*every):
                self.is_bounded = self.is_everywhere = all(piece.is_bounded for piece in self.regions.pieces)
                return open_boxes[:0]
            count = _regions_between(*self._pieces_of(self.root))
            self.regions_of_root = count if count <= _MOST_REGIONS_OF_ROOT else np.inf
        stages = _SMOOTH_STAGES if self.regions is None else _STAGES
        for stage in stages:
            is_free = stage == stages[0] or self.has_budget or self.regions is not None
            most = np.inf if is_free else max(_MANY, _GROWTH * len(open_boxes))
            if len(open_boxes):
                smallest = stage * np.maximum(self.root[1] - self.root[0], TINY)
                open_boxes = self._search(open_boxes, smallest, most)
            if len(open_boxes) > most:
                break
        return open_boxes

    def _end(self) -> float:
        """When all of the time is over, of which boxes have their share."""
        return self.started + (self.until - self.started) / _SHARE

    def _look_around(self) -> None:
        """Add fixed points that lie in open boxes, as far as a short search finds them; each is proved by itself."""
        until = self._end()
        try:
            if self.regions is not None:
                self.solves += walk_on(self.network, self.regions, num_starts=_STARTS, until=until)
                return
            points, solves = newton_points(self.network, num_starts=_STARTS, until=until)
            self.solves += solves
            for point in points:
                if any(np.abs(point - known.point).max() <= known.radius for known in self.proved):
                    continue
                proved = prove(self.network, point)
                if proved is not None:
                    self.proved.append(proved)
        except KeyboardInterrupt:
            return

    def _degree(self) -> int | None:
        """Return the degree of the map at infinity, or None if it is unknown, or no budget is left to find it out.

        The recession map has no zero but the origin, so it takes any value that is not zero at finitely many points,
        and the signs there add up to its degree, which is that of G on a large ball. A value drawn at random is not
        taken on a knot.
        """
        if self.network.is_bounded:
            return degree_of_bounded(self.network)
        if not self.is_bounded or not self.counts_degree or self.boxes >= self.max_boxes:
            return None
        value = np.random.default_rng(2).normal(size=self.whole.rank) * self.whole.error_slope.max(1)
        rest = replace(self.options, max_boxes=self.max_boxes - self.boxes, progress=None)
        try:
            limit, _ = recession(self.whole, value)
            inner = _Search(limit, rest, self.until, False)
            inner.has_budget = self.has_budget
            found = inner.run()
        except KeyboardInterrupt:
            return None
        self.boxes += found.boxes
        self.solves += found.solves
        return found.index_sum if found.complete else None

    def _search(self, boxes: Array, smallest: Array, most: float) -> Array:
        """Decide boxes, `boxes x 2 x rank`; return those that are too small to split or that no budget is left for.

        More than `most` of the former end it.
        """
        undecided: list[Array] = []
        workers: list[Worker] = []
        while len(boxes):
            is_many = self.regions is not None and self.boxes > self.regions_of_root
            if is_many and self._visit_between(*self._pieces_of(self.root)):
                return boxes[:0]
            # For a start a few boxes by one thread, so that all have some to begin with.
            number = self.threads if len(boxes) >= 8 * self.threads else 1
            self.left = np.concatenate([boxes, *(box[None] for box in undecided)])
            if self.boxes >= self.max_boxes or time.monotonic() > self.until or len(undecided) > most:
                return self.left
            workers = self._workers(workers, boxes, number)
            leaves = self._chunk(workers, smallest)
            boxes = np.concatenate([_boxes_left(worker) for worker in workers])
            later, never = self._prove_all(leaves, smallest) if self.regions is None else self._visit_all(leaves)
            boxes, undecided = np.concatenate([boxes, *(box[None] for box in later)]), undecided + never
            self.options.tell(self.boxes, len(self.proved) if self.regions is None else len(self.regions))
        return np.array(undecided).reshape(-1, 2, self.network.rank)

    def _workers(self, workers: list[Worker], boxes: Array, number: int) -> list[Worker]:
        """Return workers with the boxes dealt out among them."""
        most = -(-len(boxes) // number)
        fits = len(workers) == number and all(len(worker.level) > most + DEPTH for worker in workers)
        if not fits:
            workers = [new_worker(self.network, 2 * most + 64) for _ in range(number)]
        for index, worker in enumerate(workers):
            own = boxes[index::number]
            worker.stack[: len(own)], worker.level[: len(own)] = own, 0
            worker.counts[:] = 0
            worker.counts[BOXES] = len(own)
        return workers

    def _chunk(self, workers: list[Worker], smallest: Array) -> list[Array]:
        """Let every worker look at some boxes; return the leaves."""
        rank = self.network.rank
        known = np.array([(*proved.point, proved.radius) for proved in self.proved]).reshape(-1, rank + 1)
        limit = max(1, min(self.limit, -(-(self.max_boxes - self.boxes) // len(workers))))
        start = time.perf_counter()
        kind, nothing = self.network.kind, np.zeros(0)
        tasks = [partial(_explore, kind, worker, limit, smallest, known, nothing) for worker in workers]
        run_side_by_side(tasks)
        seconds = time.perf_counter() - start
        counts = np.array([worker.counts for worker in workers])
        self.boxes += int(counts[:, SEEN].sum())
        self.solves += int(counts[:, SOLVES].sum())
        # How many boxes fit between two pauses.
        if counts[:, SEEN].max() >= limit:
            self.limit = int(np.clip(self.limit * _PAUSE / max(seconds, 1e-4), self.limit // 4 + 100, 4 * self.limit))
        return [worker.leaves[i].copy() for worker in workers for i in range(worker.counts[LEFT])]

    def _prove_all(self, leaves: list[Array], smallest: Array) -> tuple[list[Array], list[Array]]:
        """Prove the zeros in boxes of smooth units; return what is to be looked at again, and what is too small to."""
        later: list[Array] = []
        never: list[Array] = []
        for index, box in enumerate(leaves):
            if time.monotonic() > self.until:
                return later + leaves[index:], never
            rest = self._prove(box)
            if rest is not None and (rest[1] - rest[0] > smallest).any():
                later += list(_halves(rest))
            elif rest is not None:
                never.append(rest)
        return later, never

    def _visit_all(self, leaves: list[Array]) -> tuple[list[Array], list[Array]]:
        """Find the zeros in boxes of few linear regions; return those that no time is left for, or that have many."""
        never: list[Array] = []
        few: list[Array] = []
        rows: list[NDArray[np.int64]] = []
        for index, box in enumerate(leaves):
            if time.monotonic() > self.until:
                return few + leaves[index:], never
            first, last = self._pieces_of(box)
            if _regions_between(first, last) <= _MOST_REGIONS:
                few.append(box)
                rows.append(_combinations(first, last))
            elif not self._visit_around(first, last):
                never.append(box)
        return [] if not rows or self._visit(np.concatenate(rows)) else few, never

    def _visit_between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> bool:
        """Visit every combination of pieces from the first to the last of each unit; return whether there was time."""
        return self._visit(_combinations(first, last))

    def _visit_around(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> bool:
        """Visit the regions where so many knots meet, or nearly; return whether they are not too many for the time."""
        assert self.regions is not None
        key = first.tobytes() + last.tobytes()
        if key in self.visited:
            return True
        every = regions_around(self.regions.exact, first, last)
        if every is None or not all(self._visit(pieces) for pieces in every):
            return False
        self.visited.add(key)
        return True

    def _visit(self, pieces: NDArray[np.int64]) -> bool:
        """Visit regions that were not yet; return whether there was time."""
        assert self.regions is not None
        new = [row for key, row in {row.tobytes(): row for row in pieces}.items() if key not in self.visited]
        for start in range(0, len(new), _REGIONS):
            if time.monotonic() > self.until:
                return False
            some = new[start : start + _REGIONS]
            self.regions.visit(np.array(some))
            self.solves += len(some)
            self.visited.update(row.tobytes() for row in some)
        return True

    def _pieces_of(self, box: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last piece of each unit that a box may touch, `units` each."""
        network = self.network
        middle, radius = 0.5 * (box[0] + box[1]), 0.5 * (box[1] - box[0])
        x = network.weights @ middle
        reach = np.abs(network.weights) @ (radius + rounding(network.rank + 8) * np.abs(middle))
        reach = reach + rounding(8) * (np.abs(x) + network.knot_sizes)
        first = (network.knots < (x - reach)[:, None]).sum(1)
        last = (network.knots <= (x + reach)[:, None]).sum(1)
        return first, last

    def _prove(self, box: Array) -> Array | None:
        """Prove the zero in a box of smooth units; return what is left of the box, which may hold others."""
        self.solves += 1
        point = newton(self.network, box.mean(0))
        known = point is not None and any(np.abs(point - proved.point).max() <= proved.radius for proved in self.proved)
        proved = None if point is None or known else prove(self.network, point)
        if proved is not None:
            self.proved.append(proved)
        for proved in self.proved:
            if (np.abs(box - proved.point) <= proved.radius).all():
                return None
        return box

    def _found(self, open_boxes: Array, interrupted: bool) -> Found:
        found = Found(points=np.zeros((0, self.network.rank)))
        if self.regions is not None:
            known = self.regions.collect(self._end())
            certain = self.regions.is_certain
            found = replace(
                found, points=known.points, sets=known.sets, on_knot=known.on_knot, index_sum=known.index_sum
            )
        else:
            points = np.array([proved.point for proved in self.proved]).reshape(-1, self.network.rank)
            certain = are_apart(self.proved)
            found = replace(found, points=points * self.network.scale, index_sum=sum(p.sign for p in self.proved))
        complete = self.is_bounded and certain and not len(open_boxes) and not interrupted
        degree = self._degree() if complete or self.network.is_bounded else None
        return replace(
            found,
            complete=complete,
            boxes=self.boxes,
            solves=self.solves,
            open_boxes=open_boxes * self.network.scale,
            searched=None if self.is_everywhere else self.root * self.network.scale,
            expected_index_sum=degree,
            interrupted=interrupted,
            margin=float(self.whole.error(np.abs(self.root * self.network.scale).max(0)).max()),
        )


def _halves(box: Array) -> Array:
    """Return a box cut across its longest side."""
    side = int(np.argmax(box[1] - box[0]))
    low, high = box.copy(), box.copy()
    low[1, side] = high[0, side] = box[:, side].mean()
    return np.stack([low, high])


def _combinations(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every combination of pieces from the first to the last of each unit, `regions x units`."""
    open_units = np.flatnonzero(first < last)
    choices = list(itertools.product(*(range(first[j], last[j] + 1) for j in open_units)))
    rows = np.repeat(first[None].astype(np.int64), len(choices), 0)
    rows[:, open_units] = np.array(choices, dtype=np.int64).reshape(len(choices), len(open_units))
    return rows


def _regions_between(first: NDArray[np.int64], last: NDArray[np.int64]) -> float:
    """Number of combinations of pieces from the first to the last of each unit."""
    counts = (last - first + 1).astype(np.float64)
    return float(counts.prod()) if np.log(counts).sum() < 100 else np.inf


def _boxes_left(worker: Worker) -> Array:
    return worker.stack[: worker.counts[BOXES]].copy()
