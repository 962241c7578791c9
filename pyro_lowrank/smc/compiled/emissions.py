"""Likelihoods that are not quadratic in the latents, in compiled loops over the features of one particle.

A feature's readout is affine in what the emission sees, x = C s + d, or, with units, scale phi(x; h) + shift of it. As
in `units`, what is fixed when a loop is compiled is told by the length of a tuple.
"""

from __future__ import annotations

from typing import Any

from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.arithmetic import HALF, ONE, ZERO, exp, log, softplus_and_slope
from pyro_lowrank.smc.compiled.units import FAST, rate_and_pulls

NO_LIKELIHOOD, POISSON_SOFTPLUS, POISSON_EXP, GAUSSIAN = ((0,) * length for length in range(1, 5))

# The same limits as those of `LogRatePoisson` and `log_softplus`.
_LARGEST_LOG_RATE, _SMALLEST_SOFTPLUS = ONE * 60, -ONE * 40


@compiled(fastmath=FAST, inline=True)
def _log_prob_and_slope(link: Any, x: Any, y: Any, precision: Any) -> Any:
    """Return the log probability of y (without terms in y alone) at readout x, and its derivative by x."""
    if len(link) == 2:
        rate, slope = softplus_and_slope(x)
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


@compiled(fastmath=FAST)
def log_likelihood(emission: Any, data: Any, z: Any) -> Any:
    """Return the log likelihood of one particle at one time bin.

    Args:
        emission: (which likelihood, by its length; which activation the readout passes, by its length, 0 for none;
            hinges as for `units.rate_and_pulls`; weights). These are C, `rank x features`, and h, scale, shift and
            precision, `features`.
        data: (y, zero where missing; 1 or 0 where present or missing; offset d), each `features`.
        z: latents, a tuple.
    """
    link, kind, hinges, (matrix, bias, scale, shift, precision) = emission
    y, present, offset = data
    total = ZERO * z[0]
    for i in range(y.shape[0]):
        x = offset[i]
        for r in range(len(z)):
            x += matrix[r, i] * z[r]
        if len(kind) > 0:
            rate, _, _ = rate_and_pulls(kind, hinges, x, bias[i], ONE)
            x = scale[i] * rate + shift[i]
        value, _ = _log_prob_and_slope(link, x, y[i], precision[i])
        total += present[i] * value
    return total


@compiled(fastmath=FAST, inline=True)
def pull_back_likelihood(
    emission: Any, data: Any, z: Any, grad: Any, scratch: Any, grad_weights: Any, grad_offset: Any
) -> Any:
    """Return the gradient of the latents, a tuple, from `grad`, that of the log likelihood; add those of the weights.

    Args:
        emission: as for `log_likelihood`.
        data: as for `log_likelihood`.
        z: latents, a tuple.
        grad: a number.
        scratch: `5 x features`.
        grad_weights: as the weights, added to.
        grad_offset: as the offset, added to.
    """
    link, kind, hinges, (matrix, bias, scale, shift, precision) = emission
    y, present, offset = data
    total = z
    for r in range(len(z)):
        total = tuple_setitem(total, r, ZERO * z[r])
    for i in range(y.shape[0]):
        x = offset[i]
        for r in range(len(z)):
            x += matrix[r, i] * z[r]
        slope, slope_h, rate = ZERO * x + ONE, ZERO * x, ZERO * x
        if len(kind) > 0:
            rate, slope, slope_h = rate_and_pulls(kind, hinges, x, bias[i], ONE)
            x = scale[i] * rate + shift[i]
            slope, slope_h = scale[i] * slope, scale[i] * slope_h
        _, value = _log_prob_and_slope(link, x, y[i], precision[i])
        outer = grad * present[i] * value
        scratch[0, i] = outer * slope
        if len(kind) > 0:
            scratch[1, i] = outer
            scratch[2, i] = outer * rate
            scratch[3, i] = outer * slope_h
        if len(link) == 4:
            scratch[4, i] = -HALF * grad * present[i] * (y[i] - x) * (y[i] - x)
        for r in range(len(z)):
            total = tuple_setitem(total, r, total[r] + matrix[r, i] * (outer * slope))
    grad_matrix, grad_bias, grad_scale, grad_shift, grad_precision = grad_weights
    for i in range(y.shape[0]):
        grad_offset[i] += scratch[0, i]
    for r in range(len(z)):
        for i in range(y.shape[0]):
            grad_matrix[r, i] += scratch[0, i] * z[r]
    if len(kind) > 0:
        for i in range(y.shape[0]):
            grad_shift[i] += scratch[1, i]
            grad_scale[i] += scratch[2, i]
            grad_bias[i] += scratch[3, i]
    if len(link) == 4:
        for i in range(y.shape[0]):
            grad_precision[i] += scratch[4, i]
    return total
