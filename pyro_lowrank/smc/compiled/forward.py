"""The particle filter of some trials as one compiled loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.arithmetic import HALF, ZERO, exp
from pyro_lowrank.smc.compiled.emissions import log_likelihood
from pyro_lowrank.smc.compiled.units import FAST, drive


@compiled()
def normalise(log_weights: Any) -> Any:
    """Normalise the log weights in place; return the log of their sum, and the effective sample size."""
    largest = log_weights[0]
    for k in range(log_weights.shape[0]):
        # NaN has to win, so that it is seen.
        if log_weights[k] > largest or log_weights[k] != log_weights[k]:
            largest = log_weights[k]
    if largest == -math.inf:
        return largest, ZERO * largest
    total = 0.0
    for k in range(log_weights.shape[0]):
        total += math.exp(log_weights[k] - largest)
    log_sum = largest + math.log(total)
    squares = 0.0
    for k in range(log_weights.shape[0]):
        log_weights[k] -= log_sum
        squares += math.exp(2.0 * log_weights[k])
    return log_sum, 1.0 / squares


@compiled()
def draw_ancestors(log_weights: Any, positions: Any, cumulative: Any, ancestors: Any) -> None:
    """Write the particle that owns each position in [0, 1), by the shares of their weights."""
    num_particles = log_weights.shape[0]
    total = 0.0
    for k in range(num_particles):
        total += exp(log_weights[k])
        cumulative[k] = total
    last = cumulative[num_particles - 1]
    for k in range(num_particles):
        cumulative[k] /= last
    j, before = 0, ZERO * positions[0]
    for k in range(num_particles):
        if positions[k] < before:
            j = np.searchsorted(cumulative, positions[k], side="right")
        while j < num_particles - 1 and not cumulative[j] > positions[k]:
            j += 1
        before = positions[k]
        ancestors[k] = min(j, num_particles - 1)


@compiled(fastmath=FAST)
def propose(zero: Any, mean: Any, white: Any, shift: Any, reference: Any, gain: Any, scale: Any) -> Any:
    """Return the latent z = m + g - G (m - r) + S eps, a tuple, and m - r."""
    delta, z = zero, zero
    for r in range(len(zero)):
        delta = tuple_setitem(delta, r, mean[r] - reference[r])
    for r in range(len(zero)):
        value = mean[r] + shift[r]
        for j in range(len(zero)):
            value -= gain[r, j] * delta[j]
        for j in range(r + 1):
            value += scale[r, j] * white[j]
        z = tuple_setitem(z, r, value)
    return z, delta


@compiled(fastmath=FAST)
def quadratic(linear: Any, curvature: Any, x: Any) -> Any:
    """Return c . x - x . A x / 2."""
    total = ZERO * x[0]
    for r in range(len(x)):
        curved = ZERO * x[0]
        for j in range(len(x)):
            curved += curvature[r, j] * x[j]
        total += x[r] * (linear[r] - HALF * curved)
    return total


@compiled(fastmath=FAST)
def seen_by_units(zero_in: Any, z: Any, v: Any, rank: Any) -> Any:
    """Return what the units see: latents, then inputs."""
    seen = zero_in
    for d in range(len(zero_in)):
        seen = tuple_setitem(seen, d, z[d] if d < rank else v[d - rank])
    return seen


@compiled(fastmath=FAST)
def resample_bin(log_weights: Any, resample: Any, positions: Any, cumulative: Any, ancestors: Any, carried: Any) -> Any:
    """Write ancestors, and the log weights carried on, for one time bin; return the log probability of the draw."""
    num_particles = log_weights.shape[0]
    total = ZERO * log_weights[0]
    if not resample:
        for k in range(num_particles):
            ancestors[k] = k
            carried[k] = log_weights[k]
        return total
    draw_ancestors(log_weights, positions, cumulative, ancestors)
    for k in range(num_particles):
        carried[k] = -math.log(num_particles)
        total += log_weights[ancestors[k]]
    return total


@compiled(fastmath=FAST)
def move_parents(
    zero: Any, zero_in: Any, decay: Any, units: Any, z: Any, v: Any, ancestors: Any, done: Any, means: Any
) -> None:
    """Write the means of the next latents, `particles x rank`, of every particle that has descendants.

    Particles with the same ancestor share its mean, which is all that the units cost.
    """
    rank = len(zero)
    done[:] = False
    for k in range(ancestors.shape[0]):
        parent = ancestors[k]
        if done[parent]:
            continue
        done[parent] = True
        driven = drive(zero, units, seen_by_units(zero_in, z[parent], v, rank))
        for r in range(rank):
            means[parent, r] = decay[r] * z[parent, r] + driven[r]


@compiled(fastmath=FAST)
def move_and_weigh(zero: Any, mean: Any, white: Any, step: Any, tables: Any, z_out: Any) -> Any:
    """Write the latent of one particle; return it, a tuple, and the quadratic terms of its log weight."""
    reference, shift, linear, constant = step
    gain, scale, curvature = tables
    at, noise = zero, zero
    for r in range(len(zero)):
        at = tuple_setitem(at, r, mean[r])
        noise = tuple_setitem(noise, r, white[r])
    z, delta = propose(zero, at, noise, shift, reference, gain, scale)
    for r in range(len(zero)):
        z_out[r] = z[r]
    return z, constant + quadratic(linear, curvature, delta)


@compiled(fastmath=FAST)
def run_forward(
    code: Any,
    network: Any,
    step: Any,
    tables: Any,
    emission: Any,
    data: Any,
    random: Any,
    threshold: Any,
    out: Any,
) -> None:
    """Run the filter; every array holds the trials of this call only.

    Args:
        code: (as many zeros as there are latents; as many as latents and inputs; activation, by the length of a tuple;
            hinges as for `units.rate_and_slopes`; likelihood; activation that the readout passes).
        network: (decay, left, right, bias, first mean, inputs).
        step: (reference, shift, linear, constant), `trials x time x ...`.
        tables: (gain, scale, curvature), `trials x time x rank x rank`.
        emission: the weights for `emissions.log_likelihood`.
        data: (y, present, offset), `trials x time x features`.
        random: (white `trials x time x particles x rank`, positions `trials x time x particles`).
        threshold: trials resample when their effective sample size is below this; negative for never.
        out: (z, means of the next latents out of each particle, log weights, ancestors, `trials x time x particles`;
            increments, ess, resampled and log probability of the ancestors, `trials x time`), written to. Means of
            particles without descendants are left as they were; their time dim is 1 where they need not be kept.
    """
    zero, zero_in, kind, hinges, link, readout = code
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    reference, shift, linear, constant = step
    gain, scale, curvature = tables
    y, present, offset = data
    white, positions = random
    z_out, means_out, log_weights, ancestors, increments, ess, resampled, ancestor_log_probs = out
    num_particles = z_out.shape[2]
    cumulative, done = np.empty(num_particles, z_out.dtype), np.empty(num_particles, np.bool_)
    for b in range(z_out.shape[0]):
        for t in range(z_out.shape[1]):
            own = log_weights[b, t]
            means = means_out[b, min(max(t - 1, 0), means_out.shape[1] - 1)]
            if t > 0:
                resampled[b, t] = ess[b, t - 1] < threshold
                ancestor_log_probs[b, t] = resample_bin(
                    *(log_weights[b, t - 1], resampled[b, t], positions[b, t - 1], cumulative, ancestors[b, t], own)
                )
                move_parents(*(zero, zero_in, decay, units, z_out[b, t - 1], v[b, t - 1], ancestors[b, t], done, means))
            bin_step = (reference[b, t], shift[b, t], linear[b, t], constant[b, t])
            bin_tables, bin_data = (gain[b, t], scale[b, t], curvature[b, t]), (y[b, t], present[b, t], offset[b, t])
            for k in range(num_particles):
                mean = means[ancestors[b, t, k]] if t > 0 else first_mean[b]
                z, weight = move_and_weigh(zero, mean, white[b, t, k], bin_step, bin_tables, z_out[b, t, k])
                if len(link) > 1:
                    weight += log_likelihood(observed, bin_data, z)
                own[k] = weight if t == 0 else own[k] + weight
            log_sum, ess[b, t] = normalise(own)
            increments[b, t] = log_sum - (math.log(num_particles) if t == 0 else 0.0)
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not math.isfinite(log_sum):
                break
