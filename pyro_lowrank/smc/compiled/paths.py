"""Paths of particles given the whole recording, each ancestor drawn afresh, in compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO, exp
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.to_come import add_scores, forget, look_around, look_back


@compiled(fastmath=FAST, allocates=False, inner=True)
def whiten(inverse: Any, points: Any, white: Any) -> None:
    """Write the product of a lower triangle and points, `R x K`."""
    for r in range(points.shape[0]):
        for k in range(points.shape[1]):
            white[r, k] = ZERO
        for j in range(r + 1):
            for k in range(points.shape[1]):
                white[r, k] += inverse[r, j] * points[j, k]


@compiled(fastmath=FAST, allocates=False, inner=True)
def fill_shares(log_weights: Any, shares: Any) -> None:
    """Write exp(log weight - largest)."""
    largest = log_weights[0]
    for k in range(log_weights.shape[0]):
        largest = max(largest, log_weights[k])
    for k in range(log_weights.shape[0]):
        shares[k] = exp(log_weights[k] - largest)


@compiled(allocates=False, inner=True)
def pick(shares: Any, uniform: Any) -> Any:
    """Return the particle that owns a share of all."""
    total = 0.0
    for k in range(shares.shape[0]):
        total += shares[k]
    bound, total = uniform * total, 0.0
    for k in range(shares.shape[0]):
        total += shares[k]
        if total > bound:
            return k
    return shares.shape[0] - 1


@compiled(fastmath=FAST, allocates=False)
def draw_paths(
    z: Any,
    means: Any,
    log_weights: Any,
    inverse: Any,
    last: Any,
    uniforms: Any,
    later: Any,
    white: Any,
    logits: Any,
    out: Any,
) -> None:
    """Write paths, up to the last bin of each trial.

    Args:
        z: latents, `B x T x R x K`.
        means: of the next latents out of each, likewise.
        log_weights: `B x T x K`.
        inverse: of the Cholesky factor of the transition noise.
        last: last time bin of each trial, `B`.
        uniforms: in [0, 1), `B x T x draws`.
        later: what later bins say beside the latents, see `to_come`; None for nothing: the compiler leaves it out.
        white: scratch, `4 R x K`.
        logits: scratch, `2 x K`.
        out: written to: the indices of the particles, `B x T x draws`; their latents and the means out of them,
            `B x draws x T x R`.
    """
    rank, (paths, path_z, path_means) = z.shape[2], out
    for b in range(z.shape[0]):
        if later is not None:
            forget(later)
        for t in range(last[b], -1, -1):
            if later is not None and t < last[b]:
                for p in range(uniforms.shape[2]):
                    look_back(later, b, t + 1, p, path_z[b, p, t + 1])
                look_around(later, b, t)
            if t < last[b]:
                # Seen from the middle of the cloud, so that no digits are lost far from the origin.
                for r in range(rank):
                    middle = means[b, t, r].mean()
                    for k in range(z.shape[3]):
                        white[2 * rank + r, k] = means[b, t, r, k] - middle
                        white[3 * rank + r, k] = z[b, t + 1, r, k] - middle
                whiten(inverse, white[2 * rank : 3 * rank], white[:rank])
                whiten(inverse, white[3 * rank :], white[rank : 2 * rank])
            else:
                fill_shares(log_weights[b, t], logits[1])
            for p in range(uniforms.shape[2]):
                if t < last[b]:
                    after = paths[b, t + 1, p]
                    for k in range(z.shape[3]):
                        logits[0, k] = log_weights[b, t, k]
                    for r in range(rank):
                        there = white[rank + r, after]
                        for k in range(z.shape[3]):
                            apart = there - white[r, k]
                            logits[0, k] -= HALF * apart * apart
                    if later is not None:
                        add_scores(later, p, logits[0])
                    fill_shares(logits[0], logits[1])
                k = pick(logits[1], uniforms[b, t, p])
                paths[b, t, p] = k
                for r in range(rank):
                    path_z[b, p, t, r], path_means[b, p, t, r] = z[b, t, r, k], means[b, t, r, k]


def new_scratch(z: Any) -> tuple[Any, Any]:
    """Return the arrays that `draw_paths` works in."""
    rank, particles = z.shape[2:]
    return np.empty((4 * rank, particles), z.dtype), np.empty((2, particles), z.dtype)
