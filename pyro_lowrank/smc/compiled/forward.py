"""The particle filter of some trials as one compiled loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.emissions import log_likelihood
from pyro_lowrank.smc.compiled.proposals import LANES, fill, new_rows, propose_block, vector
from pyro_lowrank.smc.compiled.units import FAST, drive
from pyro_lowrank.smc.compiled.weights import normalise, resample


@compiled(fastmath=FAST)
def seen_by_units(zero_in: Any, z: Any, v: Any, rank: Any) -> Any:
    """Return what the units see: latents, then inputs."""
    seen = zero_in
    for d in range(len(zero_in)):
        seen = tuple_setitem(seen, d, z[d] if d < rank else v[d - rank])
    return seen


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
def propose_bin(
    zero: Any, square: Any, weighing: Any, parents: Any, own: Any, bin_step: Any, bin_tables: Any, rows: Any, bin_: Any
) -> None:
    """Propose and weigh the particles of one time bin.

    Args:
        zero: as many zeros as there are latents.
        square: as many as there are entries in a matrix.
        weighing: see `proposals`.
        parents: index of each particle's mean.
        own: 0, 1, 2 and so on.
        bin_step: of the bin, see `run_forward`.
        bin_tables: of the bin.
        rows: scratch.
        bin_: (means, white, latents to write, `particles x rank`; log weights, added to).
    """
    means, white, z, log_weights = bin_
    rank, num_particles = len(zero), log_weights.shape[0]
    for start in range(0, num_particles, LANES):
        size = min(LANES, num_particles - start)
        fill(rows, 0, means, parents, start, size, rank)
        fill(rows, rank, white, own, start, size, rank)
        propose_block(zero, square, weighing, bin_step, bin_tables, rows, rows.shape[0] // (3 * rank + 1))
        for lane in range(size):
            for r in range(rank):
                z[start + lane, r] = rows[(2 * rank + r) * LANES + lane]
            log_weights[start + lane] += rows[3 * rank * LANES + lane]


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
    """Run the filter; every array holds the trials of this call only, except for the tables.

    Args:
        code: (as many zeros as there are latents; as many as latents and inputs; as many as the latents' square; how
            particles are weighed, see `proposals`; activation, by the length of a tuple; hinges as for
            `units.rate_and_slopes`; likelihood; activation that the readout passes).
        network: (decay, left, right, bias, first mean, inputs).
        step: (reference, shift, linear, constant, index of the tables), `trials x time x ...`.
        tables: (gain, scale, metric), `sets x rank x rank`.
        emission: the weights for `emissions.log_likelihood`.
        data: (y, present, offset), `trials x time x features`.
        random: (white `trials x time x particles x rank`, positions `trials x time x particles`).
        threshold: trials resample when their effective sample size is below this; negative for never.
        out: (z, means of the next latents out of each particle, log weights, ancestors, `trials x time x particles`;
            increments, ess, resampled and log probability of the ancestors, `trials x time`), written to. Means of
            particles without descendants are left as they were; their time dim is 1 where they need not be kept.
    """
    zero, zero_in, square, weighing, kind, hinges, link, readout = code
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    reference, shift, linear, constant, index = step
    gain, scale, metric = tables
    y, present, offset = data
    white, positions = random
    z, means_out, log_weights, ancestors, increments, ess, resampled, ancestor_log_probs = out
    num_particles = z.shape[2]
    cumulative, done = np.empty(num_particles, z.dtype), np.empty(num_particles, np.bool_)
    shares, rows = np.empty(num_particles, z.dtype), new_rows(3 * len(zero) + 1, white)
    own, first = np.arange(num_particles), np.zeros(num_particles, np.int64)
    for b in range(z.shape[0]):
        for t in range(z.shape[1]):
            means, parents = first_mean[b : b + 1], first
            if t > 0:
                means, parents = means_out[b, min(t - 1, means_out.shape[1] - 1)], ancestors[b, t]
                resampled[b, t] = ess[b, t - 1] < threshold
                ancestor_log_probs[b, t] = resample(
                    *(log_weights[b, t - 1], shares, resampled[b, t], positions[b, t - 1], cumulative),
                    *(parents, log_weights[b, t]),
                )
                move_parents(*(zero, zero_in, decay, units, z[b, t - 1], v[b, t - 1], parents, done, means))
            i = index[b, t]
            propose_bin(
                *(zero, square, weighing, parents, own),
                *((reference[b, t], shift[b, t], linear[b, t], constant[b, t]), (gain[i], scale[i], metric[i])),
                *(rows, (means, white[b, t], z[b, t], log_weights[b, t])),
            )
            if len(link) > 1:
                bin_data = (y[b, t], present[b, t], offset[b, t])
                for k in range(num_particles):
                    log_weights[b, t, k] += log_likelihood(observed, bin_data, vector(zero, z[b, t, k]))
            log_sum, ess[b, t] = normalise(log_weights[b, t], shares)
            increments[b, t] = log_sum - (math.log(num_particles) if t == 0 else 0.0)
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not math.isfinite(log_sum):
                break
