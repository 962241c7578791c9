"""Weights and resampling of the particles of one trial at one time bin, in compiled loops."""

from __future__ import annotations

import math
from typing import Any

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import ZERO, exp
from pyro_lowrank.dynamics.compiled.units import FAST


@compiled(fastmath=FAST, allocates=False, inner=True)
def _fill_shares(log_weights: Any, largest: Any, shares: Any) -> Any:
    """Write exp(log weight - largest); return the sum of these, and of their squares."""
    total, squares = ZERO * largest, ZERO * largest
    for k in range(log_weights.shape[0]):
        share = exp(log_weights[k] - largest)
        shares[k] = share
        total += share
        squares += share * share
    return total, squares


@compiled(allocates=False, inner=True)
def normalise(log_weights: Any, shares: Any) -> Any:
    """Normalise the log weights in place; return the log of their sum, and the effective sample size.

    Their exponentials, times any number, are left in `shares`.
    """
    largest = log_weights[0]
    for k in range(log_weights.shape[0]):
        # NaN has to win, so that it is seen.
        if log_weights[k] > largest or log_weights[k] != log_weights[k]:
            largest = log_weights[k]
    if not math.isfinite(largest):
        return largest, ZERO * largest
    total, squares = _fill_shares(log_weights, largest, shares)
    log_sum = largest + math.log(total)
    for k in range(log_weights.shape[0]):
        log_weights[k] -= log_sum
    return log_sum, total * total / squares


@compiled(allocates=False, inner=True)
def _first_above(values: Any, bound: Any) -> Any:
    """Return the place of the first of ascending values that is above a bound."""
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) // 2
        if values[middle] > bound:
            high = middle
        else:
            low = middle + 1
    return low


@compiled(allocates=False, inner=True)
def draw_ancestors(shares: Any, positions: Any, cumulative: Any, ancestors: Any) -> None:
    """Write the particle that owns each position in [0, 1), by their shares."""
    num_particles = shares.shape[0]
    total = 0.0
    for k in range(num_particles):
        total += shares[k]
        cumulative[k] = total
    last = cumulative[num_particles - 1]
    for k in range(num_particles):
        cumulative[k] /= last
    j, before = 0, ZERO * positions[0]
    for k in range(num_particles):
        if positions[k] < before:
            j = _first_above(cumulative, positions[k])
        while j < num_particles - 1 and not cumulative[j] > positions[k]:
            j += 1
        before = positions[k]
        ancestors[k] = min(j, num_particles - 1)


@compiled(fastmath=FAST, allocates=False, inner=True)
def resample(
    log_weights: Any, shares: Any, drawn: Any, positions: Any, cumulative: Any, ancestors: Any, carried: Any
) -> Any:
    """Write the ancestors of a time bin, `drawn` or every particle's own, and the log weights that they carry on.

    Returns the log probability of the draw.
    """
    num_particles = log_weights.shape[0]
    total = ZERO * log_weights[0]
    if not drawn:
        for k in range(num_particles):
            ancestors[k] = k
            carried[k] = log_weights[k]
        return total
    draw_ancestors(shares, positions, cumulative, ancestors)
    even = -math.log(num_particles)
    for k in range(num_particles):
        carried[k] = even
        total += log_weights[ancestors[k]]
    return total
