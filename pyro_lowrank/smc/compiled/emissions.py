"""Likelihoods that are not quadratic in the latents, in compiled loops over particles, feature by feature.

A feature's readout is affine in what the emission sees, x = C s + d, or, with units, scale phi(x; h) + shift of it. As
in `units`, what is fixed when a loop is compiled is told by the length of a tuple.

Rows of a block of particles (see `lanes`) are z, the gradient of z, and the log weight or its gradient.
"""

from __future__ import annotations

from typing import Any

from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, exp, log, softplus_and_slope
from pyro_lowrank.dynamics.compiled.units import FAST, rate_and_pulls
from pyro_lowrank.smc.compiled.lanes import WIDTH, at, lanes_of

NO_LIKELIHOOD, POISSON_SOFTPLUS, POISSON_EXP, GAUSSIAN = ((0,) * length for length in range(1, 5))

SOME, NONE = ((0,) * length for length in range(1, 3))
"""Whether a count is zero, as most are: then the log of the rate is not needed."""

# The same limits as those of `LogRatePoisson` and `log_softplus`.
_LARGEST_LOG_RATE, _SMALLEST_SOFTPLUS = ONE * 60, -ONE * 40


@compiled(fastmath=FAST, inline=True, allocates=False)
def _log_prob_and_slope(link: Any, count: Any, x: Any, y: Any, precision: Any) -> Any:
    """Return the log probability of y (without terms in y alone) at readout x, and its derivative by x."""
    if len(link) == 2:
        rate, slope = softplus_and_slope(x)
        if len(count) == 2:
            return -rate, -slope
        # Far to the left softplus(x) is exp(x), whose log is x, and vanishes beside it. Both sides are computed before
        # one is chosen: a compiler does not vectorise branches around divisions.
        far = x < _SMALLEST_SOFTPLUS
        safe = ONE if far else rate
        log_rate, log_slope = log(safe), slope / safe
        log_rate, log_slope = (x if far else log_rate), (ONE if far else log_slope)
        return y * log_rate - rate, y * log_slope - slope
    if len(link) == 3:
        held = x > _LARGEST_LOG_RATE
        log_rate = _LARGEST_LOG_RATE if held else x
        rate = exp(log_rate)
        return y * log_rate - rate, (ZERO if held else y - rate)
    residual = y - x
    return -HALF * precision * residual * residual, precision * residual


@compiled(fastmath=FAST, inline=True, allocates=False)
def _fill(rows: Any, first: Any, values: Any, b: Any, t: Any, start: Any, size: Any) -> Any:
    """Write latents `trials x time x particles x rank` into rows; return how many lanes are to be worked on."""
    lanes = lanes_of(size)
    for r in range(values.shape[3]):
        for lane in range(size):
            rows[at(first + r, lane)] = values[b, t, start + lane, r]
        for lane in range(size, lanes):
            rows[at(first + r, lane)] = ZERO
    return lanes


@compiled(fastmath=FAST, inline=True, allocates=False)
def _row(zero: Any, matrix: Any, i: Any) -> Any:
    """Return a feature's weights, a tuple."""
    row = zero
    for r in range(len(zero)):
        row = tuple_setitem(row, r, matrix[r, i])
    return row


@compiled(fastmath=FAST, allocates=False)
def _add_feature(zero: Any, link: Any, kind: Any, count: Any, hinges: Any, feature: Any, rows: Any, lanes: Any) -> None:
    """Add one feature's log likelihood to the last row."""
    y, offset, row, h, scale, shift, precision = feature
    rank = len(zero)
    for lane in range(lanes):
        x = offset
        for r in range(rank):
            x += row[r] * rows[at(r, lane)]
        if len(kind) > 0:
            rate, _, _ = rate_and_pulls(kind, hinges, x, h, ONE)
            x = scale * rate + shift
        value, _ = _log_prob_and_slope(link, count, x, y, precision)
        rows[at(2 * rank, lane)] += value


@compiled(fastmath=FAST, allocates=False)
def add_likelihood(zero: Any, emission: Any, data: Any, b: Any, t: Any, z: Any, log_weights: Any, rows: Any) -> None:
    """Add the log likelihood of one time bin to the log weights.

    Args:
        zero: as many zeros as there are latents.
        emission: (which likelihood, by its length; which activation the readout passes, by its length, 0 for none;
            hinges as for `units.rate_and_pulls`; weights). These are C, `rank x features`, and h, scale, shift and
            precision, `features`.
        data: (y, zero where missing; 1 or 0 where present or missing; offset d), each `trials x time x features`.
        b: the trial.
        t: the time bin.
        z: latents, `trials x time x particles x rank`.
        log_weights: `trials x time x particles`, added to.
        rows: scratch, 2 R + 1 of them.
    """
    link, kind, hinges, (matrix, bias, scale, shift, precision) = emission
    y, present, offset = data
    rank, num_particles = len(zero), z.shape[2]
    for start in range(0, num_particles, WIDTH):
        size = min(WIDTH, num_particles - start)
        lanes = _fill(rows, 0, z, b, t, start, size)
        for lane in range(lanes):
            rows[at(2 * rank, lane)] = ZERO
        for i in range(y.shape[2]):
            if present[b, t, i] == ZERO:
                continue
            row = _row(zero, matrix, i)
            feature = y[b, t, i], offset[b, t, i], row, bias[i], scale[i], shift[i], precision[i]
            if len(link) == 2 and y[b, t, i] == ZERO:
                _add_feature(zero, link, kind, NONE, hinges, feature, rows, lanes)
            else:
                _add_feature(zero, link, kind, SOME, hinges, feature, rows, lanes)
        for lane in range(size):
            log_weights[b, t, start + lane] += rows[at(2 * rank, lane)]


@compiled(fastmath=FAST, allocates=False)
def _pull_back_feature(
    zero: Any, link: Any, kind: Any, count: Any, hinges: Any, feature: Any, rows: Any, lanes: Any
) -> Any:
    """Add the gradient of z through one feature; return those of C, d, h, scale, shift and precision."""
    y, offset, row, h, scale, shift, precision = feature
    rank = len(zero)
    by_weight, by_offset, by_bias, by_scale, by_shift, by_precision = (
        zero,
        ZERO * y,
        ZERO * y,
        ZERO * y,
        ZERO * y,
        ZERO * y,
    )
    for lane in range(lanes):
        x = offset
        for r in range(rank):
            x += row[r] * rows[at(r, lane)]
        rate, slope, slope_h = x, ONE, ZERO
        if len(kind) > 0:
            rate, slope, slope_h = rate_and_pulls(kind, hinges, x, h, ONE)
            x = scale * rate + shift
            slope, slope_h = scale * slope, scale * slope_h
        _, value = _log_prob_and_slope(link, count, x, y, precision)
        grad = rows[at(2 * rank, lane)]
        outer = grad * value
        if len(kind) > 0:
            by_shift += outer
            by_scale += outer * rate
            by_bias += outer * slope_h
        if len(link) == 4:
            by_precision -= HALF * grad * (y - x) * (y - x)
        outer *= slope
        by_offset += outer
        for r in range(rank):
            by_weight = tuple_setitem(by_weight, r, by_weight[r] + outer * rows[at(r, lane)])
            rows[at(rank + r, lane)] += row[r] * outer
    return by_weight, by_offset, by_bias, by_scale, by_shift, by_precision


@compiled(fastmath=FAST, allocates=False)
def pull_back_likelihood(
    zero: Any,
    emission: Any,
    data: Any,
    b: Any,
    t: Any,
    z: Any,
    grad_z: Any,
    grad_log_weights: Any,
    rows: Any,
    grad_weights: Any,
    grad_offset: Any,
) -> None:
    """Add the gradients through the likelihood of one time bin; arguments as for `add_likelihood`, and

    Args:
        grad_z: of the latents, `particles x rank`, added to.
        grad_log_weights: `particles`.
        grad_weights: of the weights in `emission`, added to.
        grad_offset: of d, `trials x time x features`, added to.
    """
    link, kind, hinges, (matrix, bias, scale, shift, precision) = emission
    y, present, offset = data
    grad_matrix, grad_bias, grad_scale, grad_shift, grad_precision = grad_weights
    rank, num_particles = len(zero), z.shape[2]
    for start in range(0, num_particles, WIDTH):
        size = min(WIDTH, num_particles - start)
        lanes = _fill(rows, 0, z, b, t, start, size)
        for lane in range(lanes):
            rows[at(2 * rank, lane)] = grad_log_weights[start + lane] if lane < size else ZERO
            for r in range(rank):
                rows[at(rank + r, lane)] = ZERO
        for i in range(y.shape[2]):
            if present[b, t, i] == ZERO:
                continue
            row = _row(zero, matrix, i)
            feature = y[b, t, i], offset[b, t, i], row, bias[i], scale[i], shift[i], precision[i]
            if len(link) == 2 and y[b, t, i] == ZERO:
                found = _pull_back_feature(zero, link, kind, NONE, hinges, feature, rows, lanes)
            else:
                found = _pull_back_feature(zero, link, kind, SOME, hinges, feature, rows, lanes)
            by_weight, by_offset, by_bias, by_scale, by_shift, by_precision = found
            for r in range(rank):
                grad_matrix[r, i] += by_weight[r]
            grad_offset[b, t, i] += by_offset
            grad_bias[i] += by_bias
            grad_scale[i] += by_scale
            grad_shift[i] += by_shift
            grad_precision[i] += by_precision
        for lane in range(size):
            for r in range(rank):
                grad_z[start + lane, r] += rows[at(rank + r, lane)]
