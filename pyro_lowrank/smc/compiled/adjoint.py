"""The exact adjoint of the compiled particle filter: gradients carried backwards through time and resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.arithmetic import ZERO
from pyro_lowrank.smc.compiled.emissions import pull_back_likelihood
from pyro_lowrank.smc.compiled.forward import seen_by_units
from pyro_lowrank.smc.compiled.proposals import (
    LANES,
    add_to_step,
    add_to_tables,
    fill,
    flush_step,
    flush_tables,
    new_rows,
    pull_back_block,
    vector,
)
from pyro_lowrank.smc.compiled.units import FAST, pull_back
from pyro_lowrank.smc.compiled.weights import pull_back_normalisation, pull_back_resampling


@compiled(fastmath=FAST)
def _add_likelihood(
    zero: Any, emission: Any, data: Any, z: Any, grad_z: Any, grad_weight: Any, scratch: Any, grads_out: Any
) -> None:
    """Add the gradient of one particle's latent through its likelihood; see `emissions`."""
    pulled = pull_back_likelihood(
        emission, data, vector(zero, z), grad_weight, scratch, grads_out[0], grads_out[1]
    )
    for r in range(len(zero)):
        grad_z[r] += pulled[r]


@compiled(fastmath=FAST)
def _pull_back_bin(
    zero: Any,
    zero_in: Any,
    decay: Any,
    units: Any,
    z: Any,
    v: Any,
    grad_drive: Any,
    cut: Any,
    grad_z: Any,
    grad_v: Any,
    grad_decay: Any,
) -> None:
    """Write the gradients of the latents of one time bin, `grad_z`, from those of the means of the next.

    Descendants of a particle share its units, so their gradients are added up first; a particle without any is
    passed over.
    """
    rank = len(zero)
    grad_z[:] = ZERO
    for k in range(z.shape[0]):
        grad, moved = zero, False
        for r in range(rank):
            grad = tuple_setitem(grad, r, grad_drive[k, r])
            moved |= grad_drive[k, r] != ZERO
            grad_decay[r] += grad_drive[k, r] * z[k, r]
        if not moved or (cut and len(zero_in) == rank):
            continue
        pulled = pull_back(units, seen_by_units(zero_in, z[k], v, rank), grad)
        for d in range(len(zero_in)):
            if d >= rank:
                grad_v[d - rank] += pulled[d]
            elif not cut:
                grad_z[k, d] = decay[d] * grad[d] + pulled[d]


@compiled(fastmath=FAST)
def _pull_back_proposals(
    zero: Any, square: Any, weighing: Any, parents: Any, own: Any, bin_step: Any, bin_tables: Any, work: Any, bin_: Any
) -> None:
    """Pull the gradients of one time bin back through its proposals; arguments as for `forward.propose_bin`, and

    Args:
        work: (rows, sums over the particles for the step, sums for the tables): scratch.
        bin_: (means, white, gradient of the latents, `particles x rank`; gradient of the log weights; gradient of the
            means, added to).
    """
    rows, step_sums, table_sums = work
    means, white, grad_z, grad_weights, grad_means = bin_
    rank, num_particles = len(zero), grad_weights.shape[0]
    lanes = rows.shape[0] // (8 * rank + 1)
    for start in range(0, num_particles, LANES):
        size = min(LANES, num_particles - start)
        fill(rows, 0, means, parents, start, size, rank)
        fill(rows, rank, white, own, start, size, rank)
        fill(rows, 2 * rank, grad_z, own, start, size, rank)
        for lane in range(size):
            rows[3 * rank * LANES + lane] = grad_weights[start + lane]
        for lane in range(size, LANES):
            # Lanes without a particle still hold one of the block before, which must not count twice.
            for r in range(3 * rank + 1):
                rows[r * LANES + lane] = ZERO
        pull_back_block(zero, square, weighing, bin_step, bin_tables, rows, lanes)
        add_to_step(zero, weighing, rows, lanes, step_sums)
        add_to_tables(zero, weighing, rows, lanes, table_sums)
        for lane in range(size):
            for r in range(rank):
                grad_means[parents[start + lane], r] += rows[(7 * rank + 1 + r) * LANES + lane]


@compiled(fastmath=FAST)
def run_backward(
    code: Any,
    network: Any,
    step: Any,
    tables: Any,
    emission: Any,
    data: Any,
    white: Any,
    ran: Any,
    carries: Any,
    cut_every: Any,
    grads_in: Any,
    grads_out: Any,
) -> None:
    """Run the adjoint; arguments as for `forward.run_forward`, and

    Args:
        ran: (z, means out of each particle, log weights, ancestors, resampled), as `run_forward` left them.
        carries: whether resampled particles carry the gradient of their ancestors' weights.
        cut_every: gradients do not pass from a time bin that is a multiple of this to the one before; 0 for never.
        grads_in: of (increments, log probability of the ancestors), `trials x time`.
        grads_out: added to: of the network (decay, first mean, inputs, and the drive out of each particle
            `trials x time x particles x rank`), of the step (less the index), the tables, the emission
            and the offset in `data`.
    """
    zero, zero_in, square, weighing, kind, hinges, link, readout = code
    grad_network, grad_step, grad_tables, grad_emission, grad_offset = grads_out
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    reference, shift, linear, constant, index = step
    gain, scale, metric = tables
    y, present, offset = data
    z, means_out, log_weights, ancestors, resampled = ran
    grad_decay, grad_first_mean, grad_v, grad_drive = grad_network
    grad_reference, grad_shift, grad_linear, grad_constant = grad_step
    grad_gain, grad_scale, grad_metric = grad_tables
    rank, num_particles = len(zero), z.shape[2]
    now = np.zeros((num_particles, rank), z.dtype)
    grad_own, grad_before = np.zeros(num_particles, z.dtype), np.zeros(num_particles, z.dtype)
    own, first = np.arange(num_particles), np.zeros(num_particles, np.int64)
    work = (new_rows(8 * rank + 1, white), new_rows(3 * rank, white), new_rows(3 * rank * rank, white))
    scratch = np.empty((5, y.shape[2]), z.dtype)
    for b in range(z.shape[0]):
        now[:], grad_own[:] = ZERO, ZERO
        for t in range(z.shape[1] - 1, -1, -1):
            pull_back_normalisation(grad_own, grads_in[0][b, t], log_weights[b, t])
            cut = cut_every > 0 and t % cut_every == 0
            grad_constant[b, t] += grad_own.sum()
            if len(link) > 1:
                bin_data, grads_seen = (y[b, t], present[b, t], offset[b, t]), (grad_emission, grad_offset[b, t])
                for k in range(num_particles):
                    _add_likelihood(*(zero, observed, bin_data, z[b, t, k], now[k], grad_own[k], scratch, grads_seen))
            means, parents, grad_means = first_mean[b : b + 1], first, grad_first_mean[b : b + 1]
            if t > 0:
                means, parents, grad_means = means_out[b, t - 1], ancestors[b, t], grad_drive[b, t - 1]
            i = index[b, t]
            _pull_back_proposals(
                *(zero, square, weighing, parents, own),
                *((reference[b, t], shift[b, t], linear[b, t], ZERO), (gain[i], scale[i], metric[i])),
                *(work, (means, white[b, t], now, grad_own, grad_means)),
            )
            flush_step(work[1], (grad_reference[b, t], grad_shift[b, t], grad_linear[b, t]))
            if t == 0 or index[b, t - 1] != i:
                flush_tables(work[2], (grad_gain[i], grad_scale[i], grad_metric[i]))
            pull_back_resampling(
                ancestors[b, t], resampled[b, t], carries, cut, grads_in[1][b, t], grad_own, grad_before
            )
            grad_own[:] = grad_before
            if t > 0:
                _pull_back_bin(
                    *(zero, zero_in, decay, units),
                    *(z[b, t - 1], v[b, t - 1], grad_drive[b, t - 1], cut, now, grad_v[b, t - 1], grad_decay),
                )
