"""The particle filter of some trials as one compiled loop, handed the functions that move, propose and weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.records import Scratch
from pyro_lowrank.smc.compiled.weights import normalise, resample


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
    z, log_weights, ancestors = out.z, out.log_weights, out.ancestors
    rank, num_particles = z.shape[2], z.shape[3]
    for b in range(z.shape[0]):
        for t in range(z.shape[1]):
            if t == 0:
                for r in range(rank):
                    scratch.means[r, :] = first_mean[b, r]
            else:
                out.resampled[b, t] = out.ess[b, t - 1] < threshold
                out.ancestor_log_probs[b, t] = resample(
                    *(log_weights[b, t - 1], scratch.shares, out.resampled[b, t], draws.positions[b, t - 1]),
                    *(scratch.cumulative, ancestors[b, t], log_weights[b, t]),
                )
                size = num_particles
                if all_means:
                    for k in range(num_particles):
                        scratch.which[k] = k
                else:
                    size = _different(ancestors[b, t], scratch.done, scratch.which)
                means = out.means[b, min(t - 1, out.means.shape[1] - 1)]
                move(weights, z[b, t - 1], v[b, t - 1], scratch.which, size, means)
                for r in range(rank):
                    for k in range(num_particles):
                        scratch.means[r, k] = means[r, ancestors[b, t, k]]
            white, log_densities = draws.white[b, t], draws.log_densities[b, t]
            # fmt: off
            propose(
                curve, tables, features, b, t, scratch.means, white, log_densities, log_weights[b, t], z[b, t],
                scratch.rows,
            )
            # fmt: on
            weigh(features, b, t, z[b, t], log_weights[b, t], scratch.rows)
            log_sum, out.ess[b, t] = normalise(log_weights[b, t], scratch.shares)
            out.increments[b, t] = log_sum - (math.log(num_particles) if t == 0 else 0.0)
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not math.isfinite(log_sum):
                break


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
