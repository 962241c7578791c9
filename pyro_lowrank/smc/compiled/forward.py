"""The particle filter of some trials as one compiled loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.units import FAST, move_parents
from pyro_lowrank.smc.compiled import lanes
from pyro_lowrank.smc.compiled.emissions import add_likelihood
from pyro_lowrank.smc.compiled.laplace import by_laplace, laplace_or, number_of_rows, propose_by_laplace
from pyro_lowrank.smc.compiled.proposals import LANES, at, fill, new_rows, of_bin, propose_block
from pyro_lowrank.smc.compiled.weights import normalise, resample


@compiled(fastmath=FAST, allocates=False)
def _different(ancestors: Any, done: Any, parents: Any) -> Any:
    """Write which particles have descendants; return how many do."""
    done[:] = False
    size = 0
    for k in range(ancestors.shape[0]):
        parent = ancestors[k]
        parents[size] = parent
        size += 0 if done[parent] else 1
        done[parent] = True
    return size


def _propose_by_tables(
    zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
) -> None:
    """Propose and weigh the particles of one time bin; arguments as for `laplace.propose_by_laplace`."""
    square, step, tables, _, _, b, t = bin_
    z, log_weights = out
    rows = scratch
    read = of_bin(zero, square, step, tables, b, t)
    rank, num_particles = len(zero), log_weights.shape[2]
    # LANES, but as a number that the compiler does not know: it would unroll the loops before it vectorises them.
    width = rows.shape[0] // (3 * rank + 1)
    for start in range(0, num_particles, LANES):
        size = min(LANES, num_particles - start)
        fill(rows, 0, particles, parents, start, size, rank)
        fill(rows, rank, draws[0][b, t], own, start, size, rank)
        propose_block(zero, weighing, read, rows, width)
        for lane in range(size):
            for r in range(rank):
                z[b, t, start + lane, r] = rows[at(2 * rank + r, lane)]
            log_weights[b, t, start + lane] += rows[at(3 * rank, lane)]


_propose = laplace_or(propose_by_laplace, _propose_by_tables)


def forward_scratch(weighing: tuple[int, ...], white: Any) -> tuple[Any, ...]:
    """Return the arrays that `run_forward` works in, for draws `trials x time x particles x rank`."""
    particles, rank = white.shape[2:]
    floats = tuple(np.empty(particles, white.dtype) for _ in range(2))
    own, first = np.arange(particles), np.zeros(particles, np.int64)
    indices = np.empty(particles, np.bool_), np.empty(particles, np.int64), own, first
    if by_laplace(weighing):
        rows = lanes.new_rows(number_of_rows(rank, weighing), white)
    else:
        rows = new_rows(3 * rank + 1, white)
    return *floats, *indices, rows, lanes.new_rows(2 * rank + 1, white)


@compiled(fastmath=FAST, allocates=False)
def propose_and_weigh(
    code: Any,
    step: Any,
    tables: Any,
    emission: Any,
    data: Any,
    random: Any,
    means: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Propose and weigh the particles of one time bin, all in order; arguments as for `run_forward`, but

    Args:
        means: of the particles, `trials x particles x rank`.
        out: (z, log weights, which are added to), `trials x 1 x particles`.
    """
    zero, _, square, weighing, _, hinges, link, readout = code
    observed = (link, readout, hinges, emission)
    own, rows, block = scratch[4], scratch[6], scratch[7]
    z, log_weights = out
    for b in range(z.shape[0]):
        bin_ = (square, step, tables, observed, data, b, 0)
        _propose(zero, weighing, own, own, bin_, random, means[b], rows, out)
        if len(link) > 1:
            add_likelihood(zero, observed, data, b, 0, z, log_weights, block)


@compiled(fastmath=FAST, allocates=False)
def run_forward(
    code: Any,
    network: Any,
    step: Any,
    tables: Any,
    emission: Any,
    data: Any,
    random: Any,
    threshold: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Run the filter; every array holds the trials of this call only, except for the tables.

    Args:
        code: (as many zeros as there are latents; as many as latents and inputs; as many as the latents' square; how
            particles are weighed, see `proposals`; activation, by the length of a tuple; hinges as for
            `units.rate_and_pulls`; likelihood; activation that the readout passes).
        network: (decay, left, right, bias, first mean, inputs).
        step: (reference, shift, linear, constant, index of the tables), `trials x time x ...`.
        tables: (gain, scale, metric), `sets x rank x rank`.
        emission: the weights for `emissions.log_likelihood`.
        data: (y, present, offset), `trials x time x features`.
        random: (draws `trials x time x particles x rank`; positions `trials x time x particles`; log densities of the
            draws, where the proposal asks for them).
        threshold: trials resample when their effective sample size is below this; negative for never.
        scratch: of `forward_scratch`.
        out: (z, means of the next latents out of each particle, log weights, ancestors, `trials x time x particles`;
            increments, ess, resampled and log probability of the ancestors, `trials x time`), written to. Means of
            particles without descendants are left as they were; their time dim is 1 where they need not be kept.
    """
    zero, zero_in, square, weighing, kind, hinges, link, readout = code
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    positions = random[1]
    z, means_out, log_weights, ancestors, increments, ess, resampled, ancestor_log_probs = out
    num_particles = z.shape[2]
    cumulative, shares, done, different, own, first, rows, block = scratch
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
                size = _different(parents, done, different)
                move_parents(*(zero, zero_in, decay, units, z[b, t - 1], v[b, t - 1], different, size, means))
            bin_ = (square, step, tables, observed, data, b, t)
            _propose(zero, weighing, parents, own, bin_, random, means, rows, (z, log_weights))
            if len(link) > 1:
                add_likelihood(zero, observed, data, b, t, z, log_weights, block)
            log_sum, ess[b, t] = normalise(log_weights[b, t], shares)
            increments[b, t] = log_sum - (math.log(num_particles) if t == 0 else 0.0)
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not math.isfinite(log_sum):
                break
