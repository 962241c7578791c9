"""Compiled enclosures of the map on a box: what is linear there is folded in, the rest is relaxed unit by unit.

On a box every unit lies between two parallel lines, a x + b - d and a x + b + d, with d = 0 where the unit is linear on
the box. So G(z) lies within e = sum_j abs(v_j) d_j of the affine map S z + k of the middle lines, and a zero in the box
solves S z = -k + (something within e), whence a smaller box.

Rounding. All sums of G have at most n = units + 3 rank + 16 terms and products along any one path, added in any order:
their error is at most n eps times the sum of the absolute terms. `Network.error` is that bound, from the weights, and
is added to e; it covers the folded sums too, which only add the same terms in another order. The inverse that
preconditions may be any matrix: what it leaves of S, Y S - I, is computed and charged against the box. Currents are
widened by `ROUNDING`, and what is left of a box by a few units in the last place, before anything is decided.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.fixed_points.network import PIECEWISE, TANH, Array, Network

ROUNDING = 1e-15
"""Relative width by which a unit's current is widened, several times the rounding of its dot product."""


class Levels(NamedTuple):
    """What is settled on the boxes from the root down to the present one, one row per depth."""

    affine: Array
    """Affine part with all settled units folded in, `depth x rank x rank`."""
    constant: Array
    """`depth x rank`."""
    open_units: Array
    """Indices of the units that are not settled, `depth x units`."""
    counts: Array
    """How many those are, `depth`."""


class Scratch(NamedTuple):
    """Arrays that a box needs while it is worked on."""

    slope: Array
    """Slope of each open unit's relaxation, `units`."""
    width: Array
    """Half the width of each relaxation, `units`."""
    affine: Array
    """The relaxed map: affine part, `rank x rank`."""
    constant: Array
    """`rank`."""
    inverse: Array
    """`rank x rank`."""
    work: Array
    """`rank x rank`."""
    spread: Array
    """`rank x rank`."""
    middle: Array
    """`rank`."""
    radius: Array
    """`rank`."""
    error: Array
    """`rank`."""
    score: Array
    """`rank`."""
    step: Array
    """`rank`."""
    reach: Array
    """`rank`."""


def new_levels(network: Network, depth: int) -> Levels:
    """Return storage for that many depths, with nothing settled at the root."""
    rank, units = network.rank, network.units
    levels = Levels(
        np.zeros((depth, rank, rank)),
        np.zeros((depth, rank)),
        np.zeros((depth, units), dtype=np.int64),
        np.zeros(depth, dtype=np.int64),
    )
    levels.affine[0], levels.constant[0] = network.affine, network.constant
    levels.open_units[0], levels.counts[0] = np.arange(units), units
    return levels


def new_scratch(network: Network) -> Scratch:
    """Return scratch arrays for a network of that size."""
    rank, units = network.rank, network.units
    square, row = (rank, rank), (rank,)
    shapes = ((units,), (units,), square, row, square, square, square, row, row, row, row, row, row)
    return Scratch(*(np.zeros(shape) for shape in shapes))


@compiled()
def invert(matrix, out, work):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the inverse into `out`; return the smallest pivot over the largest entry, 0 if there is no inverse."""
    n = matrix.shape[0]
    largest = 0.0
    for i in range(n):
        for k in range(n):
            work[i, k] = matrix[i, k]
            out[i, k] = 1.0 if i == k else 0.0
            largest = max(largest, abs(matrix[i, k]))
    smallest = largest
    for col in range(n):
        best = col
        for i in range(col + 1, n):
            if abs(work[i, col]) > abs(work[best, col]):
                best = i
        pivot = work[best, col]
        smallest = min(smallest, abs(pivot))
        if not abs(pivot) > 1e-300:
            return 0.0
        for k in range(n):
            a, b = work[best, k] / pivot, out[best, k] / pivot
            work[best, k], out[best, k] = work[col, k], out[col, k]
            work[col, k], out[col, k] = a, b
        for i in range(n):
            factor = work[i, col]
            if i != col and factor != 0.0:
                for k in range(n):
                    work[i, k] -= factor * work[col, k]
                    out[i, k] -= factor * out[col, k]
    return smallest / largest


@compiled(inline=True)
def smooth_value(kind, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Activation of a smooth unit at x."""
    if kind == TANH:
        return math.tanh(x)
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@compiled(inline=True)
def smooth_slope(kind, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Derivative of a smooth activation at x, to full relative precision in the tails."""
    e = math.exp(-abs(x) * (2.0 if kind == TANH else 1.0))
    if kind == TANH:
        return 4.0 * e / ((1.0 + e) * (1.0 + e))
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)


@compiled()
def relax_smooth(kind, low, high):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Slope, middle and half-width of a band around a smooth activation on an interval."""
    f_low, f_high = smooth_value(kind, low), smooth_value(kind, high)
    short = high - low < 1e-9
    slope = smooth_slope(kind, 0.5 * (low + high)) if short else (f_high - f_low) / (high - low)
    bottom = min(f_low - slope * low, f_high - slope * high)
    top = max(f_low - slope * low, f_high - slope * high)
    if 0.0 < slope < 1.0:
        # The band's other extremes lie where the activation is as steep as the chord.
        x = math.atanh(math.sqrt(1.0 - slope)) if kind == TANH else math.log(slope / (1.0 - slope))
        for sign in range(2 if kind == TANH else 1):
            at = x if sign == 0 else -x
            if low < at < high:
                rest = smooth_value(kind, at) - slope * at
                bottom, top = min(bottom, rest), max(top, rest)
    # A chord that is rounded shifts where those extremes lie; their values move in the second order only.
    slack = 4e-16 * (1.0 + abs(f_low) + abs(f_high) + abs(slope) * (abs(low) + abs(high)))
    return slope, 0.5 * (bottom + top), 0.5 * (top - bottom) + slack


@compiled()
def relax_pieces(knots, slopes, intercepts, low, high, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The same for a piecewise-linear unit whose knots first .. last - 1 lie inside the interval."""
    f_low = slopes[first] * low + intercepts[first]
    f_high = slopes[last] * high + intercepts[last]
    flattest, steepest = slopes[first], slopes[first]
    for k in range(first + 1, last + 1):
        flattest, steepest = min(flattest, slopes[k]), max(steepest, slopes[k])
    # Any slope will do; the chord's is the best, but on a very short interval it is rounding.
    slope = min(max((f_high - f_low) / (high - low), flattest), steepest)
    bottom = min(f_low - slope * low, f_high - slope * high)
    top = max(f_low - slope * low, f_high - slope * high)
    for k in range(first, last):
        rest = (slopes[k] - slope) * knots[k] + intercepts[k]
        bottom, top = min(bottom, rest), max(top, rest)
    return slope, 0.5 * (bottom + top), 0.5 * (top - bottom)


@compiled()
def settle(network, levels, source, level, low, high, s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Fold the units that are linear on the box into `level`, relax the others; return how many those are.

    What `source` has settled is inherited. The relaxed map is left in the scratch arrays.
    """
    rank = low.shape[0]
    if source != level:
        levels.affine[level] = levels.affine[source]
        levels.constant[level] = levels.constant[source]
    affine, constant = levels.affine[level], levels.constant[level]
    s.affine[:] = 0.0
    s.constant[:] = 0.0
    for k in range(rank):
        s.middle[k], s.radius[k] = 0.5 * (low[k] + high[k]), 0.5 * (high[k] - low[k])
    kept = 0
    for position in range(levels.counts[source]):
        j = levels.open_units[source, position]
        x, reach, size = 0.0, 0.0, 0.0
        for k in range(rank):
            w = network.weights[j, k]
            x += w * s.middle[k]
            reach += abs(w) * s.radius[k]
            size += abs(w * s.middle[k])
        reach += ROUNDING * (reach + size)
        if network.kind == PIECEWISE:
            first, last = 0, network.knots.shape[1]
            while first < last and network.knots[j, first] <= x - reach:
                first += 1
            while last > first and network.knots[j, last - 1] >= x + reach:
                last -= 1
            if first == last:
                slope, rest = network.slopes[j, first], network.intercepts[j, first]
                for i in range(rank):
                    v = network.outputs[j, i]
                    constant[i] += v * rest
                    for k in range(rank):
                        affine[i, k] += v * slope * network.weights[j, k]
                continue
            slope, rest, width = relax_pieces(
                network.knots[j], network.slopes[j], network.intercepts[j], x - reach, x + reach, first, last
            )
        else:
            shift = network.intercepts[j, 0]
            slope, rest, width = relax_smooth(network.kind, x - reach + shift, x + reach + shift)
            rest += slope * shift
        levels.open_units[level, kept] = j
        s.slope[kept], s.width[kept] = slope, width
        kept += 1
        for i in range(rank):
            v = network.outputs[j, i]
            s.constant[i] += v * rest
            for k in range(rank):
                s.affine[i, k] += v * slope * network.weights[j, k]
    levels.counts[level] = kept
    s.affine[:] += affine
    s.constant[:] += constant
    return kept


@compiled()
def row_excludes(network, levels, level, s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Whether some component of the relaxed map is away from zero on the whole box; fills in the rounding bounds."""
    rank = s.middle.shape[0]
    excluded = False
    for i in range(rank):
        value, room, error = s.constant[i], 0.0, network.error_constant[i]
        for k in range(rank):
            value += s.affine[i, k] * s.middle[k]
            room += abs(s.affine[i, k]) * s.radius[k]
            error += network.error_slope[i, k] * (abs(s.middle[k]) + s.radius[k])
        s.error[i] = error
        room += error
        if abs(value) > room:
            for position in range(levels.counts[level]):
                room += abs(network.outputs[levels.open_units[level, position], i]) * s.width[position]
            excluded = excluded or abs(value) > room
    return excluded


@compiled()
def contract(network, levels, level, low, high, s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Shrink the box to where the preconditioned relaxed map can vanish; return -1 if nowhere, 0 if it is singular.

    Leaves the Newton step, the half-width of the image and the score of each dimension for splitting.
    """
    rank = low.shape[0]
    for i in range(rank):
        s.score[i] = 0.0
    if invert(s.affine, s.inverse, s.work) < 1e-13:
        return 0
    for i in range(rank):
        step, reach = 0.0, 0.0
        for k in range(rank):
            value, off = s.constant[k], -1.0 if i == k else 0.0
            for m in range(rank):
                value += s.affine[k, m] * s.middle[m]
                off += s.inverse[i, m] * s.affine[m, k]
            step += s.inverse[i, k] * value
            reach += abs(s.inverse[i, k]) * s.error[k] + (abs(off) + 1e-15) * s.radius[k]
        s.step[i], s.reach[i] = step, reach
    for position in range(levels.counts[level]):
        j = levels.open_units[level, position]
        width = s.width[position]
        harm, total = 0.0, 1e-300
        for i in range(rank):
            moved = 0.0
            for k in range(rank):
                moved += s.inverse[i, k] * network.outputs[j, k]
            moved = abs(moved) * width
            s.reach[i] += moved
            harm += moved / (s.radius[i] + 1e-300)
            total += abs(network.weights[j, i]) * s.radius[i]
        for k in range(rank):
            s.score[k] += harm * abs(network.weights[j, k]) * s.radius[k] / total
    for i in range(rank):
        middle, reach = s.middle[i] - s.step[i], s.reach[i] * (1 + 1e-14) + 1e-15 * abs(s.middle[i])
        low[i], high[i] = max(low[i], middle - reach), min(high[i], middle + reach)
        if low[i] > high[i]:
            return -1
    return 1
