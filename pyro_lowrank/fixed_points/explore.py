"""Compiled depth-first search through boxes: each is discarded, shrunk, split, or handed back as a leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.compilation import compiled
from pyro_lowrank.fixed_points.enclosure import (
    EXCLUDED,
    HIGH,
    LOW,
    MIDDLE,
    RADIUS,
    SCORE,
    SINGULAR,
    Workplace,
    contract,
    excess,
    new_workplace,
    settle,
)
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, Network, build_network
from pyro_lowrank.fixed_points.rounding import TINY

DEPTH = 400
"""Most levels of boxes within boxes: far fewer halvings of a few sides reach the resolution of doubles."""

LEAVES = 1000
"""Most leaves that a call hands back."""

FEW = 2
"""With so few units bent on it a box is a leaf: its linear regions are fewer than the boxes that would settle it."""

# Columns of a worker's counts.
BOXES, SEEN, SOLVES, LEFT, FAILED = range(5)


class Worker(NamedTuple):
    """What one thread works with."""

    place: Workplace
    stack: Array
    """Boxes yet to be looked at, the last first, `capacity x 2 x rank`."""
    level: NDArray[np.int64]
    """The level of what is settled on the box that each was split from, `capacity`."""
    leaves: Array
    """`leaves x 2 x rank`."""
    counts: NDArray[np.int64]
    """Boxes on the stack, boxes looked at, linear systems solved, leaves, whether a direction could not be decided."""
    radius: Array
    """How far out a zero may lie in the directions looked at so far, 1."""


def new_worker(network: Network, capacity: int) -> Worker:
    """Return the storage of a thread that starts with at most `capacity` boxes."""
    size, rank = capacity + DEPTH + 2, network.rank
    return Worker(
        new_workplace(network, DEPTH),
        np.zeros((size, 2, rank)),
        np.zeros(size, dtype=np.int64),
        np.zeros((LEAVES, 2, rank)),
        np.zeros(5, dtype=np.int64),
        np.zeros(1),
    )


def prepare(rank: int) -> None:
    """Compile what a search needs, once per process, before any time is taken."""
    worker = new_worker(build_network(0.5, np.zeros((1, rank)), np.zeros((rank, 1)), [0.0]), 1)
    compile_explore: Any = explore
    compile_explore(PIECEWISE, worker, 0, np.ones(rank), np.zeros((0, rank + 1)), np.zeros(0))


@compiled(allocates=False)
def _shrink(kind: Any, worker: Any, level: Any, smallest: Any) -> Any:
    """Shrink a box for as long as it loses half of its volume.

    Returns 0 if it holds no zero, 1 if it is a leaf (linear, small, or with a zero for sure), 2 if it is to be split.
    """
    s = worker.place.s
    rank, source = s.shape[1], level - 1
    row = 3 * rank
    while True:
        kept = settle(kind, worker.place, source, level)
        source = level
        outcome = contract(worker.place, level)
        worker.counts[SOLVES] += outcome != EXCLUDED
        if outcome < 0:
            return 0
        share, small, inside = 1.0, True, outcome != SINGULAR
        for k in range(rank):
            low, high, radius = s[row + LOW, k], s[row + HIGH, k], s[row + RADIUS, k]
            middle = s[row + MIDDLE, k]
            share *= (high - low) / (2.0 * radius) if radius > 0.0 else 1.0
            small &= high - low <= smallest[k]
            inside &= low > middle - radius and high < middle + radius
        if kept == 0 or small or (inside and kind != PIECEWISE):
            return 1
        if share > 0.5:
            return 1 if kept <= FEW and kind == PIECEWISE else 2


@compiled(allocates=False)
def _recede(kind: Any, worker: Any, level: Any, smallest: Any, difference: Any) -> Any:
    """Find how far out a zero may lie in a box of directions; return 0 if that is known, 2 if it is to be split."""
    s, rank = worker.place.s, worker.place.s.shape[1]
    settle(kind, worker.place, level - 1, level)
    best, largest, small = 0.0, 0.0, True
    for i in range(rank):
        beyond, size = excess(worker.place, level, i)
        best, largest = max(best, beyond / difference[i]), max(largest, size / difference[i])
        small &= 2.0 * s[3 * rank + RADIUS, i] <= smallest[i]
    if best > 0.0 and (best >= 0.5 * largest or 1.0 / best <= worker.radius[0] or small):
        worker.radius[0] = max(worker.radius[0], 1.0 / best)
        return 0
    worker.counts[FAILED] |= small
    return 0 if small else 2


@compiled(allocates=False)
def explore(kind: Any, worker: Any, limit: Any, smallest: Any, known: Any, difference: Any) -> None:
    """Look at up to `limit` boxes of the stack, or until there are no more, or as many leaves as fit.

    Args:
        kind: of the network's units.
        worker: stack and storage; its counts are updated.
        limit: number of boxes.
        smallest: sides below which a box is a leaf, `rank`.
        known: centres and half the sides of cubes about which all is known, `cubes x (rank + 1)`.
        difference: of the recession map, if boxes are of directions, `rank`; else of length 0.
    """
    stack, counts, s = worker.stack, worker.counts, worker.place.s
    rank = s.shape[1]
    row, end = 3 * rank, counts[SEEN] + limit
    while counts[BOXES] > 0 and counts[SEEN] < end and counts[LEFT] < worker.leaves.shape[0] and counts[FAILED] == 0:
        counts[BOXES] -= 1
        counts[SEEN] += 1
        top = counts[BOXES]
        level = worker.level[top] + 1
        for k in range(rank):
            s[row + LOW, k], s[row + HIGH, k] = stack[top, 0, k], stack[top, 1, k]
        outcome = 1
        for p in range(known.shape[0]):
            inside = True
            for k in range(rank):
                inside &= s[row + LOW, k] >= known[p, k] - known[p, rank]
                inside &= s[row + HIGH, k] <= known[p, k] + known[p, rank]
            if inside:
                outcome = 0
                break
        if outcome == 1 and level < worker.place.opens.shape[0]:
            if difference.shape[0] > 0:
                outcome = _recede(kind, worker, level, smallest, difference)
            else:
                outcome = _shrink(kind, worker, level, smallest)
        elif outcome == 1 and difference.shape[0] > 0:
            counts[FAILED] = 1
        if outcome == 1:
            for k in range(rank):
                worker.leaves[counts[LEFT], 0, k] = s[row + LOW, k]
                worker.leaves[counts[LEFT], 1, k] = s[row + HIGH, k]
            counts[LEFT] += 1
        elif outcome == 2:
            # The side whose halving tightens the enclosure most, or the longest.
            best, side, longest, fallback = 0.0, -1, -1.0, 0
            for k in range(rank):
                width = s[row + HIGH, k] - s[row + LOW, k]
                score = 0.0
                if difference.shape[0] == 0:
                    score = s[row + SCORE, k] * width / (2.0 * s[row + RADIUS, k] + TINY)
                if width > smallest[k] and score > best:
                    best, side = score, k
                if width / smallest[k] > longest:
                    longest, fallback = width / smallest[k], k
            side = side if side >= 0 else fallback
            for half in range(2):
                worker.level[top + half] = level
                for k in range(rank):
                    stack[top + half, 0, k], stack[top + half, 1, k] = s[row + LOW, k], s[row + HIGH, k]
            middle = 0.5 * (s[row + LOW, side] + s[row + HIGH, side])
            stack[top, 1, side], stack[top + 1, 0, side] = middle, middle
            counts[BOXES] += 2
