"""The exact adjoint of the compiled particle filter: gradients carried backwards through time and resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO
from pyro_lowrank.dynamics.compiled.units import FAST, pull_back, seen_by_pair
from pyro_lowrank.smc.compiled import lanes
from pyro_lowrank.smc.compiled.emissions import pull_back_likelihood
from pyro_lowrank.smc.compiled.laplace import by_laplace, laplace_or
from pyro_lowrank.smc.compiled.laplace_adjoint import number_of_adjoint_rows, pull_back_by_laplace
from pyro_lowrank.smc.compiled.proposals import (
    LANES,
    add_to_step,
    add_to_tables,
    at,
    fill,
    flush_step,
    flush_tables,
    new_rows,
    of_bin,
    pull_back_block,
)
from pyro_lowrank.smc.compiled.weights import pull_back_normalisation, pull_back_resampling


@compiled(fastmath=FAST, allocates=False)
def _moved(grad_drive: Any, moved: Any) -> Any:
    """Write which particles have a gradient of their drive; return how many do."""
    size = 0
    for k in range(grad_drive.shape[0]):
        any_ = False
        for r in range(grad_drive.shape[1]):
            any_ |= grad_drive[k, r] != ZERO
        moved[size] = k
        size += 1 if any_ else 0
    return size


@compiled(fastmath=FAST, allocates=False)
def _pull_back_bin(
    zero: Any,
    zero_in: Any,
    decay: Any,
    units: Any,
    z: Any,
    v: Any,
    grad_drive: Any,
    cut: Any,
    moved: Any,
    grad_z: Any,
    grad_v: Any,
    grad_decay: Any,
) -> None:
    """Write the gradients of the latents of one time bin, `grad_z`, from those of the means of the next.

    Descendants of a particle share its units, so their gradients are added up first; a particle without any is
    passed over. `moved` is scratch.
    """
    rank, inputs = len(zero), len(zero_in)
    grad_z[:] = ZERO
    for k in range(z.shape[0]):
        for r in range(rank):
            grad_decay[r] += grad_drive[k, r] * z[k, r]
    if cut and inputs == rank:
        return
    size = _moved(grad_drive, moved)
    for i in range(0, size, 2):
        first, second = moved[i], moved[min(i + 1, size - 1)]
        # The last particle of an odd number is its own second, with no gradient.
        share = ONE if i + 1 < size else ZERO
        grad = zero + zero
        for r in range(rank):
            grad = tuple_setitem(grad, r, grad_drive[first, r])
            grad = tuple_setitem(grad, rank + r, share * grad_drive[second, r])
        pulled = pull_back(zero, zero_in, units, seen_by_pair(zero_in, z, v, rank, first, second), grad)
        for d in range(rank, inputs):
            grad_v[d - rank] += pulled[d] + pulled[inputs + d]
        if not cut:
            for d in range(rank):
                grad_z[first, d] += decay[d] * grad[d] + pulled[d]
                grad_z[second, d] += decay[d] * grad[rank + d] + pulled[inputs + d]


def _pull_back_by_tables(
    zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
) -> None:
    """Pull the gradients of one time bin back through its proposals.

    Arguments as for `laplace_adjoint.pull_back_by_laplace`, but for the scratch: rows, sums over the particles for the
    step, sums for the tables.
    """
    square, step, tables, _, _, b, t = bin_
    rows, step_sums, table_sums = scratch
    means, grad_z, grad_weights, grad_means = particles
    grad_step, grad_tables, _, _ = out
    read, index = of_bin(zero, square, step, tables, b, t), step[4]
    rank, num_particles = len(zero), grad_weights.shape[0]
    width = rows.shape[0] // (8 * rank + 1)
    for start in range(0, num_particles, LANES):
        size = min(LANES, num_particles - start)
        fill(rows, 0, means, parents, start, size, rank)
        fill(rows, rank, draws, own, start, size, rank)
        fill(rows, 2 * rank, grad_z, own, start, size, rank)
        for lane in range(size):
            rows[at(3 * rank, lane)] = grad_weights[start + lane]
        for lane in range(size, LANES):
            # Lanes without a particle still hold one of the block before, which must not count twice.
            for r in range(3 * rank + 1):
                rows[at(r, lane)] = ZERO
        pull_back_block(zero, weighing, read, rows, width)
        add_to_step(zero, weighing, rows, width, step_sums)
        add_to_tables(zero, weighing, rows, width, table_sums)
        for lane in range(size):
            for r in range(rank):
                grad_means[parents[start + lane], r] += rows[at(7 * rank + 1 + r, lane)]
    flush_step(step_sums, (grad_step[0][b, t], grad_step[1][b, t], grad_step[2][b, t]))
    i = index[b, t]
    if t == 0 or index[b, t - 1] != i:
        flush_tables(table_sums, (grad_tables[0][i], grad_tables[1][i], grad_tables[2][i]))


_pull_back_proposals = laplace_or(pull_back_by_laplace, _pull_back_by_tables)


def backward_scratch(weighing: tuple[int, ...], white: Any) -> tuple[Any, ...]:
    """Return the arrays that `run_backward` works in, for draws `trials x time x particles x rank`."""
    particles, rank = white.shape[2:]
    floats = tuple(np.zeros(shape, white.dtype) for shape in ((particles, rank), particles, particles))
    own, first, moved = np.arange(particles), np.zeros(particles, np.int64), np.empty(particles, np.int64)
    if by_laplace(weighing):
        work = lanes.new_rows(number_of_adjoint_rows(rank, weighing), white)
    else:
        work = tuple(new_rows(number, white) for number in (8 * rank + 1, 3 * rank, 3 * rank * rank))
    return *floats, own, first, moved, lanes.new_rows(2 * rank + 1, white), work


@compiled(fastmath=FAST, allocates=False)
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
    scratch: Any,
    grads_out: Any,
) -> None:
    """Run the adjoint; arguments as for `forward.run_forward`, and

    Args:
        ran: (z, means out of each particle, log weights, ancestors, resampled), as `run_forward` left them.
        carries: whether resampled particles carry the gradient of their ancestors' weights.
        cut_every: gradients do not pass from a time bin that is a multiple of this to the one before; 0 for never.
        grads_in: of (increments, log probability of the ancestors), `trials x time`.
        scratch: of `backward_scratch`.
        grads_out: added to: of the network (decay, first mean, inputs, and the drive out of each particle
            `trials x time x particles x rank`), of the step (less the index), the tables, the emission
            and the offset in `data`.
    """
    zero, zero_in, square, weighing, kind, hinges, link, readout = code
    grad_network, grad_step, grad_tables, grad_emission, grad_offset = grads_out
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    z, means_out, log_weights, ancestors, resampled = ran
    grad_decay, grad_first_mean, grad_v, grad_drive = grad_network
    grad_constant = grad_step[3]
    now, grad_own, grad_before, own, first, moved, block, work = scratch
    for b in range(z.shape[0]):
        now[:], grad_own[:] = ZERO, ZERO
        for t in range(z.shape[1] - 1, -1, -1):
            pull_back_normalisation(grad_own, grads_in[0][b, t], log_weights[b, t])
            cut = cut_every > 0 and t % cut_every == 0
            grad_constant[b, t] += grad_own.sum()
            if len(link) > 1:
                pull_back_likelihood(zero, observed, data, b, t, z, now, grad_own, block, grad_emission, grad_offset)
            means, parents, grad_means = first_mean[b : b + 1], first, grad_first_mean[b : b + 1]
            if t > 0:
                means, parents, grad_means = means_out[b, t - 1], ancestors[b, t], grad_drive[b, t - 1]
            bin_ = (square, step, tables, observed, data, b, t)
            particles, grads = (means, now, grad_own, grad_means), (grad_step, grad_tables, grad_emission, grad_offset)
            _pull_back_proposals(zero, weighing, parents, own, bin_, white[b, t], particles, work, grads)
            pull_back_resampling(
                ancestors[b, t], resampled[b, t], carries, cut, grads_in[1][b, t], grad_own, grad_before
            )
            grad_own, grad_before = grad_before, grad_own
            if t > 0:
                _pull_back_bin(
                    *(zero, zero_in, decay, units),
                    *(z[b, t - 1], v[b, t - 1], grad_drive[b, t - 1], cut, moved, now, grad_v[b, t - 1], grad_decay),
                )
