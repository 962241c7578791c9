"""The particle filter of some trials as one compiled loop, handed the functions that move, propose and weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.conditional import aim, choose, pin
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


@compiled(fastmath=FAST, allocates=False, inner=True)
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


@compiled(fastmath=FAST, allocates=False, inner=True)
def _weigh(
    propose: Any,
    weigh: Any,
    curve: Any,
    tables: Any,
    features: Any,
    draws: Any,
    b: Any,
    t: Any,
    means: Any,
    rows: Any,
    out: Any,
) -> None:
    """Propose and weigh a time bin around the means `R x K`."""
    white, log_densities = draws.white[b, t], draws.log_densities[b, t]
    z, log_weights = out.z[b, t], out.log_weights[b, t]
    propose(curve, tables, features, b, t, means, white, log_densities, log_weights, z, rows)
    weigh(features, b, t, z, log_weights, rows)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _normalise(b: Any, t: Any, shares: Any, out: Any) -> Any:
    """Normalise the weights of a time bin; return whether any particle is alive."""
    log_sum, out.ess[b, t] = normalise(out.log_weights[b, t], shares)
    out.increments[b, t] = log_sum - (math.log(shares.shape[0]) if t == 0 else 0.0)
    return math.isfinite(log_sum)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _everyone(which: Any) -> Any:
    """Write all particles; return how many there are."""
    for k in range(which.shape[0]):
        which[k] = k
    return which.shape[0]


@compiled(fastmath=FAST, allocates=False, inner=True)
def _go_on(
    move: Any,
    weights: Any,
    v: Any,
    draws: Any,
    b: Any,
    t: Any,
    threshold: Any,
    all_means: Any,
    through: Any,
    pins: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Choose the particles that go on to a time bin, and write the means of their next latents to the scratch."""
    ancestors, log_weights, positions = out.ancestors[b, t], out.log_weights[b, t - 1], draws.positions[b, t - 1]
    means, drawn, parent = out.means[b, min(t - 1, out.means.shape[1] - 1)], out.ess[b, t - 1] < threshold, 0
    out.resampled[b, t] = drawn
    if pins is not None:
        # Which of the particles precedes the path depends on where all of them lead.
        move(weights, out.z[b, t - 1], v[b, t - 1], scratch.which, _everyone(scratch.which), means)
        parent = choose(pins, b, t, means, log_weights, drawn, positions, through)
    out.ancestor_log_probs[b, t] = resample(
        log_weights, scratch.shares, drawn, positions, scratch.cumulative, ancestors, out.log_weights[b, t]
    )
    if pins is not None:
        # It is there but for rounding, at the edges of its share.
        ancestors[pins.place[b]] = parent
    else:
        size = _everyone(scratch.which) if all_means else _different(ancestors, scratch.done, scratch.which)
        move(weights, out.z[b, t - 1], v[b, t - 1], scratch.which, size, means)
    for r in range(means.shape[0]):
        for k in range(means.shape[1]):
            scratch.means[r, k] = means[r, ancestors[k]]


@compiled(fastmath=FAST, allocates=False)
def run_loop(
    move: Any,
    propose: Any,
    weigh: Any,
    curve: Any,
    through: Any,
    weights: Any,
    first_mean: Any,
    v: Any,
    tables: Any,
    features: Any,
    draws: Any,
    pins: Any,
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
        through: see `conditional.through_of`; None where no particle is pinned.
        weights: of the network.
        first_mean: `B x R`.
        v: effective inputs, `B x T x inputs`.
        tables: of the proposal.
        features: of the likelihood.
        draws: random numbers.
        pins: the paths that a particle of each trial is pinned to, or None: the compiler leaves out what asks for them.
        threshold: trials resample when their effective sample size is below this; negative for never.
        all_means: whether the means out of particles without descendants are asked for, too.
        scratch: of `new_scratch`.
        out: written to, log weights zero.
    """
    for b in range(out.z.shape[0]):
        for t in range(out.z.shape[1]):
            if t == 0:
                for r in range(first_mean.shape[1]):
                    scratch.means[r, :] = first_mean[b, r]
            else:
                _go_on(move, weights, v, draws, b, t, threshold, all_means, through, pins, scratch, out)
            if pins is not None:
                aim(pins, propose, curve, tables, features, draws, b, t, scratch.means, scratch.rows)
            _weigh(propose, weigh, curve, tables, features, draws, b, t, scratch.means, scratch.rows, out)
            if pins is not None:
                pin(pins, b, t, out.z[b, t])
            # Particles that are all dead have no descendants; the caller finds the increment and raises.
            if not _normalise(b, t, scratch.shares, out):
                break


@compiled(fastmath=FAST, allocates=False)
def run_bin(
    propose: Any,
    weigh: Any,
    curve: Any,
    tables: Any,
    features: Any,
    draws: Any,
    t: Any,
    means: Any,
    normalised: Any,
    scratch: Any,
    out: Any,
) -> None:
    """Propose and weigh one time bin of each trial around given means, where others move and resample the particles.

    Args beside those of `run_loop`:
        t: the time bin.
        means: `B x R x K`.
        normalised: whether the weights are to be normalised.
    """
    for b in range(means.shape[0]):
        _weigh(propose, weigh, curve, tables, features, draws, b, t, means[b], scratch.rows, out)
        if normalised:
            _normalise(b, t, scratch.shares, out)
