"""The particle filter of some trials as one compiled loop, handed the functions that move, propose and weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import ZERO
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.records import Scratch
from pyro_lowrank.smc.compiled.weights import fill_shares, normalise, resample


def new_scratch(num_rows: int, like: Any) -> Scratch:
    """Return the arrays that the loop works in, for latents `B x T x R x K`."""
    rank, particles = like.shape[2:]
    dtype = like.dtype
    return Scratch(
        means=np.empty((rank, particles), dtype),
        rows=np.empty(num_rows, dtype),
        cumulative=np.empty(particles, dtype),
        shares=np.empty(particles, dtype),
        done=np.empty(particles, np.bool_),
        which=np.empty(particles, np.int64),
    )


@compiled(fastmath=FAST, allocates=False)
def _different(ancestors: Any, done: Any, which: Any) -> Any:
    """Write which particles have descendants; return how many do."""
    done[:] = False
    size = 0
    for k in range(ancestors.shape[0]):
        parent = ancestors[k]
        which[size] = parent
        size += 0 if done[parent] else 1
        done[parent] = True
    return size


@compiled(fastmath=FAST, allocates=False)
def _choose(b: Any, t: Any, draws: Any, threshold: Any, scratch: Any, out: Any) -> None:
    """Draw the ancestors of a time bin and write the log weights that their descendants carry."""
    out.resampled[b, t] = out.ess[b, t - 1] < threshold
    out.ancestor_log_probs[b, t] = resample(
        *(out.log_weights[b, t - 1], scratch.shares, out.resampled[b, t], draws.positions[b, t - 1]),
        *(scratch.cumulative, out.ancestors[b, t], out.log_weights[b, t]),
    )


@compiled(fastmath=FAST, allocates=False)
def _weigh(
    propose: Any, weigh: Any, curve: Any, tables: Any, features: Any, draws: Any, b: Any, t: Any, scratch: Any, out: Any
) -> Any:
    """Propose and weigh a time bin around the means in the scratch; return whether particles are alive."""
    white, log_densities = draws.white[b, t], draws.log_densities[b, t]
    z, log_weights = out.z[b, t], out.log_weights[b, t]
    propose(curve, tables, features, b, t, scratch.means, white, log_densities, log_weights, z, scratch.rows)
    weigh(features, b, t, z, log_weights, scratch.rows)
    log_sum, out.ess[b, t] = normalise(log_weights, scratch.shares)
    out.increments[b, t] = log_sum - (math.log(z.shape[1]) if t == 0 else 0.0)
    return math.isfinite(log_sum)


@compiled(fastmath=FAST, allocates=False)
def _gather(means: Any, ancestors: Any, scratch: Any) -> None:
    """Write the means out of the particles' ancestors, `R x K`, to the scratch."""
    for r in range(means.shape[0]):
        for k in range(ancestors.shape[0]):
            scratch.means[r, k] = means[r, ancestors[k]]


@compiled(fastmath=FAST, allocates=False)
def run_loop(
    move: Any,
    propose: Any,
    weigh: Any,
    curve: Any,
    weights: Any,
    first_mean: Any,
    v: Any,
    tables: Any,
    features: Any,
    draws: Any,
    threshold: Any,
    all_means: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Run the filter; every array holds the trials of this call only, except for what all share.

    Args:
        move: see `units.mover`.
        propose: see `records.Signatures`; functions are no tuple, of which Numba would warn.
        weigh: likewise.
        curve: likewise.
        weights: of the network.
        first_mean: `B x R`.
        v: effective inputs, `B x T x inputs`.
        tables: of the proposal.
        features: of the likelihood.
        draws: random numbers.
        threshold: trials resample when their effective sample size is below this; negative for never.
        all_means: whether the means out of particles without descendants are asked for, too.
        scratch: of `new_scratch`.
        out: written to, log weights zero.
    """
    ancestors, num_particles = out.ancestors, out.z.shape[3]
    for b in range(out.z.shape[0]):
        for t in range(out.z.shape[1]):
            if t == 0:
                for r in range(first_mean.shape[1]):
                    scratch.means[r, :] = first_mean[b, r]
            else:
                _choose(b, t, draws, threshold, scratch, out)
                size = num_particles
                if all_means:
                    for k in range(num_particles):
                        scratch.which[k] = k
                else:
                    size = _different(ancestors[b, t], scratch.done, scratch.which)
                means = out.means[b, min(t - 1, out.means.shape[1] - 1)]
                move(weights, out.z[b, t - 1], v[b, t - 1], scratch.which, size, means)
                _gather(means, ancestors[b, t], scratch)
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not _weigh(propose, weigh, curve, tables, features, draws, b, t, scratch, out):
                break


@compiled(fastmath=FAST, allocates=False)
def run_bin_of(
    propose: Any,
    weigh: Any,
    curve: Any,
    t: Any,
    means: Any,
    tables: Any,
    features: Any,
    draws: Any,
    threshold: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Run one time bin of the filter, all trials, where others move the particles.

    Args beside those of `run_loop`:
        t: the time bin.
        means: out of the particles of the bin before, `B x R x K`; in the first bin, of the particles.
    """
    for b in range(means.shape[0]):
        if t > 0:
            # Dead trials stay as they were.
            if not math.isfinite(out.increments[b, t - 1]):
                continue
            # What normalising left is of the trial before.
            fill_shares(out.log_weights[b, t - 1], ZERO * out.ess[b, t - 1], scratch.shares)
            _choose(b, t, draws, threshold, scratch, out)
        _gather(means[b], out.ancestors[b, t], scratch)
        _weigh(propose, weigh, curve, tables, features, draws, b, t, scratch, out)


@compiled(fastmath=FAST, allocates=False)
def run_bin(
    propose: Any, weigh: Any, curve: Any, tables: Any, features: Any, draws: Any, means: Any, rows: Any, out: Any
) -> None:
    """Propose and weigh one time bin of each trial; `means` are `B x R x K`, else as for `run_loop`."""
    for b in range(means.shape[0]):
        white, log_densities, log_weights, z = (
            draws.white[b, 0],
            draws.log_densities[b, 0],
            out.log_weights[b, 0],
            out.z[b, 0],
        )
        propose(curve, tables, features, b, 0, means[b], white, log_densities, log_weights, z, rows)
        weigh(features, b, 0, out.z[b, 0], out.log_weights[b, 0], rows)
