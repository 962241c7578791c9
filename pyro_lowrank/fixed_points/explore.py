"""Compiled depth-first search through boxes: each is discarded, shrunk, split, or handed back as a leaf."""

from __future__ import annotations

import functools
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
    SHRUNK,
    Workplace,
    contract,
    excess,
    new_workplace,
    settle,
)
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap, build_network
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


def new_worker(network: LatentMap, capacity: int, depth: int = DEPTH) -> Worker:
    """Return the storage of a thread that starts with at most `capacity` boxes."""
    size, rank = capacity + depth + 2, network.rank
    return Worker(
        new_workplace(network, depth),
        np.zeros((size, 2, rank)),
        np.zeros(size, dtype=np.int64),
        np.zeros((LEAVES, 2, rank)),
        np.zeros(5, dtype=np.int64),
        np.zeros(1),
    )


@functools.cache
def prepare() -> None:
    """Compile what a search needs, once per process, before any time is taken."""
    worker = new_worker(build_network(0.5, [[0.0]], [[0.0]], [0.0]), 1)
    compile_explore: Any = explore
    compile_explore(PIECEWISE, worker, 0, np.ones(1), np.zeros((0, 2)), np.zeros(0))


@compiled(allocates=False)
def _take(worker: Any, known: Any) -> Any:
    """Take a box off the stack; return the level of what is settled on it, or -1 if it lies within a known cube."""
    counts, s = worker.counts, worker.place.s
    rank = s.shape[1]
    row = 3 * rank
    lows, highs = row + LOW, row + HIGH
    counts[BOXES] -= 1
    counts[SEEN] += 1
    top = counts[BOXES]
    for k in range(rank):
        s[lows, k], s[highs, k] = worker.stack[top, 0, k], worker.stack[top, 1, k]
    for p in range(known.shape[0]):
        inside = True
        for k in range(rank):
            inside &= s[lows, k] >= known[p, k] - known[p, rank]
            inside &= s[highs, k] <= known[p, k] + known[p, rank]
        if inside:
            return -1
    return worker.level[top]


@compiled(allocates=False)
def _split(worker: Any, level: Any, smallest: Any) -> Any:
    """Put the halves of a box on the stack, across the side that tightens the enclosure most, or the longest."""
    stack, counts, s = worker.stack, worker.counts, worker.place.s
    rank, top = s.shape[1], counts[BOXES]
    row = 3 * rank
    radii, scores, lows, highs = row + RADIUS, row + SCORE, row + LOW, row + HIGH
    best, side, longest, fallback = 0.0, -1, -1.0, 0
    for k in range(rank):
        width = s[highs, k] - s[lows, k]
        score = s[scores, k] * width / (2.0 * s[radii, k] + TINY)
        if width > smallest[k] and score > best:
            best, side = score, k
        if width / smallest[k] > longest:
            longest, fallback = width / smallest[k], k
    side = side if side >= 0 else fallback
    for half in range(2):
        worker.level[top + half] = level
        for k in range(rank):
            stack[top + half, 0, k], stack[top + half, 1, k] = s[lows, k], s[highs, k]
    middle = 0.5 * (s[lows, side] + s[highs, side])
    stack[top, 1, side], stack[top + 1, 0, side] = middle, middle
    counts[BOXES] += 2


@compiled(allocates=False)
def explore(kind: Any, worker: Any, limit: Any, smallest: Any, known: Any, difference: Any) -> None:
    """Look at up to `limit` boxes of the stack, or until there are no more, or as many leaves as fit.

    A box is shrunk for as long as it loses half of its volume. It is a leaf if it is linear, small, or holds a zero for
    sure. A box of directions is done when it is known how far out zeros in them may lie.

    Args:
        kind: of the network's units.
        worker: stack and storage; its counts are updated.
        limit: number of boxes.
        smallest: sides below which a box is a leaf, `rank`.
        known: centres and half the sides of cubes about which all is known, `cubes x (rank + 1)`.
        difference: of the recession map, if boxes are of directions, `rank`; else of length 0.
    """
    place, counts, s = worker.place, worker.counts, worker.place.s
    rank, end, recedes = s.shape[1], counts[SEEN] + limit, difference.shape[0] > 0
    row = 3 * rank
    middles, radii, scores, lows, highs = row + MIDDLE, row + RADIUS, row + SCORE, row + LOW, row + HIGH
    while counts[BOXES] > 0 and counts[SEEN] < end and counts[LEFT] < worker.leaves.shape[0] and counts[FAILED] == 0:
        source = _take(worker, known)
        level = source + 1
        is_deepest = level >= place.opens.shape[0]
        is_open = source >= 0 and not is_deepest
        counts[FAILED] |= is_deepest and recedes
        is_leaf = is_deepest
        while is_open:
            kept = settle(kind, place, source, level)
            source, is_open = level, False
            best, largest, share, small, inside = 0.0, 0.0, 1.0, True, kind != PIECEWISE
            outcome = SHRUNK if recedes else contract(place, level)
            counts[SOLVES] += outcome != EXCLUDED
            if outcome < 0:
                continue
            for k in range(rank):
                low, high, radius = s[lows, k], s[highs, k], s[radii, k]
                small &= high - low <= smallest[k]
                if recedes:
                    s[scores, k] = 0.0
                    beyond, size = excess(place, level, k)
                    best, largest = max(best, beyond / difference[k]), max(largest, size / difference[k])
                else:
                    share *= (high - low) / (2.0 * radius) if radius > 0.0 else 1.0
                    inside &= low > s[middles, k] - radius and high < s[middles, k] + radius
            if recedes and best > 0.0 and (best >= 0.5 * largest or 1.0 / best <= worker.radius[0] or small):
                worker.radius[0] = max(worker.radius[0], 1.0 / best)
            elif recedes and small:
                counts[FAILED] = 1
            elif not recedes and (kept == 0 or small or (inside and outcome == SHRUNK)):
                is_leaf = True
            elif not recedes and share <= 0.5:
                is_open = True
            elif not recedes and kept <= FEW and kind == PIECEWISE:
                is_leaf = True
            else:
                _split(worker, level, smallest)
        if is_leaf:
            for k in range(rank):
                worker.leaves[counts[LEFT], 0, k] = s[lows, k]
                worker.leaves[counts[LEFT], 1, k] = s[highs, k]
            counts[LEFT] += 1
