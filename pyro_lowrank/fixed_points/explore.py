"""Compiled depth-first search through boxes: each is discarded, shrunk, split, or handed back as a leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.fixed_points.enclosure import (
    Levels,
    Scratch,
    contract,
    new_levels,
    new_scratch,
    row_excludes,
    settle,
)
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, Network

DEPTH = 400
"""Most levels of boxes within boxes: far fewer halvings of a few sides reach the resolution of doubles."""

LEAVES = 1000
"""Most leaves that a call hands back."""

FEW = 2
"""With so few units bent on it a box is a leaf: its linear regions are fewer than the boxes that would settle it."""


class Stack(NamedTuple):
    """Boxes yet to be looked at, the last first."""

    low: Array
    """`capacity x rank`."""
    high: Array
    """`capacity x rank`."""
    level: Array
    """The level of what is settled on the box that each was split from, `capacity`."""


class Worker(NamedTuple):
    """What one thread works with."""

    levels: Levels
    scratch: Scratch
    stack: Stack
    leaf_low: Array
    """`leaves x rank`."""
    leaf_high: Array
    """`leaves x rank`."""
    counts: Array
    """(boxes on the stack, boxes looked at, linear systems solved, leaves)."""


def new_worker(network: Network, capacity: int) -> Worker:
    """Return the storage of a thread that starts with at most `capacity` boxes."""
    size, rank = capacity + DEPTH + 2, network.rank
    stack = Stack(np.zeros((size, rank)), np.zeros((size, rank)), np.zeros(size, dtype=np.int64))
    leaves = np.zeros((LEAVES, rank)), np.zeros((LEAVES, rank))
    levels, scratch = new_levels(network, DEPTH), new_scratch(network)
    return Worker(levels, scratch, stack, *leaves, np.zeros(4, dtype=np.int64))


@compiled()
def is_known(low: Any, high: Any, centres: Any, radii: Any) -> Any:
    """Whether a box lies within one of some cubes."""
    for p in range(centres.shape[0]):
        inside = True
        for k in range(low.shape[0]):
            inside &= low[k] >= centres[p, k] - radii[p] and high[k] <= centres[p, k] + radii[p]
        if inside:
            return True
    return False


@compiled()
def _shrink(network: Any, worker: Any, level: Any, source: Any, low: Any, high: Any, smallest: Any) -> Any:
    """Shrink a box for as long as it loses half of its volume.

    Returns 0 if it holds no zero, 1 if it is a leaf (linear, small, or with a zero for sure), 2 if it is to be split.
    """
    rank, s = low.shape[0], worker.scratch
    while True:
        kept = settle(network, worker.levels, source, level, low, high, s)
        source = level
        if row_excludes(network, worker.levels, level, s):
            return 0
        worker.counts[2] += 1
        outcome = contract(network, worker.levels, level, low, high, s)
        if outcome < 0:
            return 0
        share, small, inside = 1.0, True, outcome > 0
        for k in range(rank):
            width = high[k] - low[k]
            share *= width / (2.0 * s.radius[k]) if s.radius[k] > 0.0 else 1.0
            small &= width <= smallest[k]
            inside &= low[k] > s.middle[k] - s.radius[k] and high[k] < s.middle[k] + s.radius[k]
        if kept == 0 or small or (inside and network.kind != PIECEWISE):
            return 1
        if share > 0.5:
            return 1 if kept <= FEW and network.kind == PIECEWISE else 2


@compiled()
def _side_to_split(s: Any, low: Any, high: Any, smallest: Any) -> Any:
    """Return the side whose halving tightens the enclosure most, or the longest."""
    best, side, longest, fallback = 0.0, -1, -1.0, 0
    for k in range(low.shape[0]):
        width = high[k] - low[k]
        if width > smallest[k] and s.score[k] * width / (2.0 * s.radius[k] + 1e-300) > best:
            best, side = s.score[k] * width / (2.0 * s.radius[k] + 1e-300), k
        if width / smallest[k] > longest:
            longest, fallback = width / smallest[k], k
    return side if side >= 0 else fallback


@compiled()
def explore(network: Any, worker: Any, limit: Any, smallest: Any, centres: Any, radii: Any) -> None:
    """Look at up to `limit` boxes of the stack, or until there are no more, or as many leaves as fit.

    Args:
        network: whose zeros are sought.
        worker: stack and storage; its counts are updated.
        limit: number of boxes.
        smallest: sides below which a box is a leaf, `rank`.
        centres: of cubes about which all is known, `cubes x rank`.
        radii: half of their sides, `cubes`.
    """
    stack, counts = worker.stack, worker.counts
    rank = smallest.shape[0]
    low, high = np.empty(rank), np.empty(rank)
    end = counts[1] + limit
    while counts[0] > 0 and counts[1] < end and counts[3] < worker.leaf_low.shape[0]:
        counts[0] -= 1
        top = counts[0]
        low[:], high[:] = stack.low[top], stack.high[top]
        level = stack.level[top] + 1
        counts[1] += 1
        if is_known(low, high, centres, radii):
            continue
        outcome = 1
        if level < worker.levels.counts.shape[0]:
            outcome = _shrink(network, worker, level, level - 1, low, high, smallest)
        if outcome == 1:
            worker.leaf_low[counts[3]], worker.leaf_high[counts[3]] = low, high
            counts[3] += 1
        elif outcome == 2:
            side = _side_to_split(worker.scratch, low, high, smallest)
            middle = 0.5 * (low[side] + high[side])
            for half in range(2):
                stack.low[top + half], stack.high[top + half] = low, high
                stack.level[top + half] = level
            stack.high[top, side], stack.low[top + 1, side] = middle, middle
            counts[0] += 2
