"""Compiled enclosures of the map on a box: what is linear there is folded in, the rest is relaxed unit by unit.

On a box every unit lies between two parallel lines, a x + b - d and a x + b + d, with d = 0 where the unit is linear on
the box. So G(z) lies within e = sum_j abs(v_j) d_j of the affine map S z + k of the middle lines, and a zero in the box
solves S z = -k + (something within e), whence a smaller box.

Rounding. All sums of G have at most n = units + 3 rank + 16 terms and products along any one path, added in any order:
their error is at most n eps times the sum of the absolute terms. `LatentMap.error` is that bound, from the weights, and
is added to e; it covers the folded sums too, which only add the same terms in another order. The inverse that
preconditions may be any matrix: what it leaves of S, Y S - I, is computed and charged against the box. Currents are
widened by the rounding of their dot products, and what is left of a box by a few units in the last place, before
anything is decided.

Compiling takes longer than most networks do. It costs by the function, and by the kinds of things that a function does
with arrays: so there are few, they hand on few arrays, go through them number by number and make none.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.compilation import compiled
from pyro_lowrank.fixed_points.network import PIECEWISE, TANH, Array, LatentMap
from pyro_lowrank.fixed_points.rounding import EPS, TINY

# Rows of a workplace after its three matrices (relaxed map, inverse, scratch), counted from 3 rank.
CONSTANT, MIDDLE, RADIUS, ERROR, SCORE, STEP, REACH, LOW, HIGH, ROWS = range(10)

EXCLUDED, EMPTY, SINGULAR, SHRUNK = -2, -1, 0, 1
"""What comes of a box: some component has no zero on it, the shrunk box is empty, it cannot be shrunk, or it is."""

SINGULAR_PIVOT = 1e-13
"""A box whose relaxed map has a smaller pivot, relative to its largest entry, is split and not shrunk."""


class Workplace(NamedTuple):
    """What a thread needs to enclose a network on boxes."""

    units: Array
    """One row for each unit, `units x (2 rank + 3 knots + 2)`: weights, outputs, knots, slopes, intercepts."""
    bounds: Array
    """Rounding errors, `rank x (rank + 1)`: per unit of each abs(z), and the rest."""
    levels: Array
    """The affine part with all settled units folded in, from the root down, `depth x rank x (rank + 1)`."""
    opens: NDArray[np.int64]
    """Indices of the units that are not settled, their number in the last column, `depth x (units + 1)`."""
    relaxed: Array
    """Slope of each open unit's relaxation, and half of its width, `units x 2`."""
    s: Array
    """Three matrices and some rows, `(3 rank + ROWS) x rank`."""


def new_workplace(network: LatentMap, depth: int) -> Workplace:
    """Return storage for that many depths, with nothing settled at the root."""
    rank, units = network.rank, network.units
    parts = (network.weights, network.outputs, network.knots, network.slopes, network.intercepts)
    if network.kind != PIECEWISE:
        parts = (network.weights, network.outputs, network.knots, network.slopes[:, :1], network.intercepts[:, :1])
    levels, opens = np.zeros((depth, rank, rank + 1)), np.zeros((depth, units + 1), dtype=np.int64)
    levels[0], opens[0] = np.column_stack([network.affine, network.constant]), np.append(np.arange(units), units)
    bounds = np.column_stack([network.error_slope, network.error_constant])
    table = np.ascontiguousarray(np.concatenate(parts, 1))
    return Workplace(table, bounds, levels, opens, np.zeros((units, 2)), np.zeros((3 * rank + ROWS, rank)))


@compiled(allocates=False)
def invert(s: Any, n: Any) -> Any:
    """Write the inverse of the matrix in the first n rows into the next n, by way of the n after these.

    Returns the smallest pivot over the largest entry, 0 if there is no inverse.
    """
    largest = 0.0
    for i in range(n):
        for k in range(n):
            s[2 * n + i, k] = s[i, k]
            s[n + i, k] = 1.0 if i == k else 0.0
            largest = max(largest, abs(s[i, k]))
    smallest = largest
    for col in range(n):
        best = col
        for i in range(col + 1, n):
            if abs(s[2 * n + i, col]) > abs(s[2 * n + best, col]):
                best = i
        pivot = s[2 * n + best, col]
        smallest = min(smallest, abs(pivot))
        if not abs(pivot) > SINGULAR_PIVOT * largest:
            return 0.0
        for k in range(n):
            a, b = s[2 * n + best, k] / pivot, s[n + best, k] / pivot
            s[2 * n + best, k], s[n + best, k] = s[2 * n + col, k], s[n + col, k]
            s[2 * n + col, k], s[n + col, k] = a, b
        for i in range(n):
            factor = s[2 * n + i, col]
            if i != col and factor != 0.0:
                for k in range(n):
                    s[2 * n + i, k] -= factor * s[2 * n + col, k]
                    s[n + i, k] -= factor * s[n + col, k]
    return smallest / largest


@compiled(allocates=False)
def relax_smooth(kind: Any, low: Any, high: Any) -> Any:
    """Slope, middle and half-width of a band around a smooth activation on an interval."""
    f_low, f_high, slope, bottom, top, x = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    # Both ends, for the chord; then where the activation is as steep as the chord, the band's other extremes.
    for turn in range(4):
        at = low if turn == 0 else high if turn == 1 else x if turn == 2 else -x
        if turn > 1 and not low < at < high:
            continue
        value = math.tanh(at) if kind == TANH else max(at, 0.0) + math.log1p(math.exp(-abs(at)))
        if turn == 0:
            f_low = value
        elif turn == 1:
            f_high = value
            slope = (f_high - f_low) / (high - low) if high - low >= 1e-9 else -1.0
            if slope < 0.0:
                # On a short interval the slope of its middle, to full relative precision in the tails.
                e = math.exp(-abs(0.5 * (low + high)) * (2.0 if kind == TANH else 1.0))
                slope = 1.0 / (1.0 + e) if low + high >= 0.0 else e / (1.0 + e)
                if kind == TANH:
                    slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
            bottom = min(f_low - slope * low, f_high - slope * high)
            top = max(f_low - slope * low, f_high - slope * high)
            if not 0.0 < slope < 1.0:
                break
            x = math.atanh(math.sqrt(1.0 - slope)) if kind == TANH else math.log(slope / (1.0 - slope))
        else:
            bottom, top = min(bottom, value - slope * at), max(top, value - slope * at)
            if kind != TANH:
                break
    # A chord that is rounded shifts where those extremes lie; their values move in the second order only.
    slack = 2.0 * EPS * (1.0 + abs(f_low) + abs(f_high) + abs(slope) * (abs(low) + abs(high)))
    return slope, 0.5 * (bottom + top), 0.5 * (top - bottom) + slack


@compiled(allocates=False)
def relax_pieces(units: Any, j: Any, knots: Any, slopes: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    """The same for the piecewise-linear unit j whose knots first .. last - 1 lie inside the interval.

    Its knots and slopes begin in those columns of its row.
    """
    rests = slopes + slopes - knots + 1
    flattest = steepest = units[j, slopes + first]
    for k in range(first + 1, last + 1):
        flattest, steepest = min(flattest, units[j, slopes + k]), max(steepest, units[j, slopes + k])
    f_low = units[j, slopes + first] * low + units[j, rests + first]
    f_high = units[j, slopes + last] * high + units[j, rests + last]
    # Any slope will do; the chord's is the best, but on a very short interval it is rounding.
    slope = min(max((f_high - f_low) / (high - low), flattest), steepest)
    bottom = min(f_low - slope * low, f_high - slope * high)
    top = max(f_low - slope * low, f_high - slope * high)
    for k in range(first, last):
        rest = (units[j, slopes + k] - slope) * units[j, knots + k] + units[j, rests + k]
        bottom, top = min(bottom, rest), max(top, rest)
    return slope, 0.5 * (bottom + top), 0.5 * (top - bottom)


@compiled(allocates=False)
def settle(kind: Any, place: Any, source: Any, level: Any) -> Any:
    """Fold units that are linear on the box into what `source` has, as `level`, relax the rest; return their number."""
    units, levels, opens, relaxed, s = place.units, place.levels, place.opens, place.relaxed, place.s
    rank = s.shape[1]
    row, knots = 3 * rank, 2 * rank
    constants, middles, radii, lows, highs = row + CONSTANT, row + MIDDLE, row + RADIUS, row + LOW, row + HIGH
    count = (units.shape[1] - knots - 2) // 3
    slopes, rests = knots + count, knots + 2 * count + 1
    for i in range(rank):
        low, high = s[lows, i], s[highs, i]
        s[middles, i], s[radii, i], s[constants, i] = 0.5 * (low + high), 0.5 * (high - low), 0.0
        for k in range(rank):
            s[i, k] = 0.0
        for k in range(rank + 1):
            levels[level, i, k] = levels[source, i, k]
    kept, size_of_opens = 0, opens.shape[1] - 1
    for position in range(opens[source, size_of_opens]):
        j = opens[source, position]
        x, reach, size = 0.0, 0.0, 0.0
        for k in range(rank):
            w = units[j, k]
            x += w * s[middles, k]
            reach += abs(w) * s[radii, k]
            size += abs(w * s[middles, k])
        reach += (rank + 4) * EPS * (reach + size)
        if kind == PIECEWISE:
            first, last = 0, count
            while first < last and units[j, knots + first] <= x - reach:
                first += 1
            while last > first and units[j, knots + last - 1] >= x + reach:
                last -= 1
            if first == last:
                slope, rest = units[j, slopes + first], units[j, rests + first]
                for i in range(rank):
                    v = units[j, rank + i]
                    levels[level, i, rank] += v * rest
                    for k in range(rank):
                        levels[level, i, k] += v * slope * units[j, k]
                continue
            slope, rest, width = relax_pieces(units, j, knots, slopes, x - reach, x + reach, first, last)
        else:
            shift = units[j, rests]
            slope, rest, width = relax_smooth(kind, x - reach + shift, x + reach + shift)
            rest += slope * shift
        opens[level, kept] = j
        relaxed[kept, 0], relaxed[kept, 1] = slope, width
        kept += 1
        for i in range(rank):
            v = units[j, rank + i]
            s[constants, i] += v * rest
            for k in range(rank):
                s[i, k] += v * slope * units[j, k]
    opens[level, size_of_opens] = kept
    for i in range(rank):
        s[constants, i] += levels[level, i, rank]
        for k in range(rank):
            s[i, k] += levels[level, i, k]
    return kept


@compiled(allocates=False)
def excess(place: Any, level: Any, i: Any) -> Any:
    """Return by how much component i of the relaxed map stays away from zero on the whole box, and its size there.

    Leaves the bound on its rounding error.
    """
    units, bounds, opens, relaxed, s = place.units, place.bounds, place.opens, place.relaxed, place.s
    rank = s.shape[1]
    row, last = 3 * rank, opens.shape[1] - 1
    constants, middles, radii, errors = row + CONSTANT, row + MIDDLE, row + RADIUS, row + ERROR
    value, room, error = s[constants, i], 0.0, bounds[i, rank]
    for k in range(rank):
        value += s[i, k] * s[middles, k]
        room += abs(s[i, k]) * s[radii, k]
        error += bounds[i, k] * (abs(s[middles, k]) + s[radii, k])
    s[errors, i] = error
    room += error
    if abs(value) > room:
        for position in range(opens[level, last]):
            room += abs(units[opens[level, position], rank + i]) * relaxed[position, 1]
    return abs(value) - room, abs(value)


@compiled(allocates=False)
def contract(place: Any, level: Any) -> Any:
    """Shrink the box to where the preconditioned relaxed map can vanish; return what comes of it.

    Leaves the Newton step, the half-width of the image and the score of each dimension for splitting.
    """
    units, opens, relaxed, s = place.units, place.opens, place.relaxed, place.s
    rank = s.shape[1]
    row, last = 3 * rank, opens.shape[1] - 1
    constants, middles, radii, errors, scores = row + CONSTANT, row + MIDDLE, row + RADIUS, row + ERROR, row + SCORE
    steps, reaches, lows, highs = row + STEP, row + REACH, row + LOW, row + HIGH
    excluded = False
    for i in range(rank):
        beyond, _ = excess(place, level, i)
        excluded |= beyond > 0.0
        s[scores, i] = 0.0
    if excluded:
        return EXCLUDED
    if invert(s, rank) < SINGULAR_PIVOT:
        return SINGULAR
    for i in range(rank):
        step, reach = 0.0, 0.0
        for k in range(rank):
            value, off = s[constants, k], -1.0 if i == k else 0.0
            for m in range(rank):
                value += s[k, m] * s[middles, m]
                off += s[rank + i, m] * s[m, k]
            step += s[rank + i, k] * value
            reach += abs(s[rank + i, k]) * s[errors, k] + (abs(off) + (rank + 4) * EPS) * s[radii, k]
        s[steps, i], s[reaches, i] = step, reach
    for position in range(opens[level, last]):
        j, width = opens[level, position], relaxed[position, 1]
        harm, total = 0.0, TINY
        for i in range(rank):
            moved = 0.0
            for k in range(rank):
                moved += s[rank + i, k] * units[j, rank + k]
            moved = abs(moved) * width
            s[reaches, i] += moved
            harm += moved / (s[radii, i] + TINY)
            total += abs(units[j, i]) * s[radii, i]
        for k in range(rank):
            s[scores, k] += harm * abs(units[j, k]) * s[radii, k] / total
    for i in range(rank):
        middle = s[middles, i] - s[steps, i]
        reach = s[reaches, i] * (1.0 + 64.0 * EPS) + 4.0 * EPS * abs(s[middles, i])
        s[lows, i], s[highs, i] = max(s[lows, i], middle - reach), min(s[highs, i], middle + reach)
        if s[lows, i] > s[highs, i]:
            return EMPTY
    return SHRUNK
