"""The exact adjoint of the compiled particle filter: gradients carried backwards through time and resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.arithmetic import HALF, ONE, ZERO, exp
from pyro_lowrank.smc.compiled.emissions import pull_back_likelihood
from pyro_lowrank.smc.compiled.forward import seen_by_units
from pyro_lowrank.smc.compiled.units import FAST, pull_back


@compiled(fastmath=FAST)
def _less_curved(linear: Any, curvature: Any, x: Any) -> Any:
    """Return the gradient c - A x of `forward.quadratic`, for symmetric A."""
    result = x
    for r in range(len(x)):
        value = linear[r]
        for j in range(len(x)):
            value -= curvature[r, j] * x[j]
        result = tuple_setitem(result, r, value)
    return result


@compiled(fastmath=FAST)
def _add_outer(target: Any, factor: Any, a: Any, b: Any) -> None:
    """Add factor * a b^T."""
    for r in range(len(a)):
        for j in range(len(b)):
            target[r, j] += factor * a[r] * b[j]


@compiled(fastmath=FAST)
def _pull_back_particle(
    zero: Any,
    mean: Any,
    noise: Any,
    grad_z: Any,
    grad_weight: Any,
    step: Any,
    tables: Any,
    grad_step: Any,
    grad_tables: Any,
    grad_mean: Any,
) -> None:
    """Add the gradients of one particle's transition mean, its step and its tables.

    `step` and `tables` are those of `forward.run_forward` at one time bin.
    """
    reference, linear = step
    gain, curvature = tables
    grad_reference, grad_shift, grad_linear = grad_step
    grad_gain, grad_scale, grad_curvature = grad_tables
    delta = zero
    for r in range(len(zero)):
        delta = tuple_setitem(delta, r, mean[r] - reference[r])
    slope = _less_curved(linear, curvature, delta)
    for r in range(len(zero)):
        kept = ZERO * grad_z[r]
        for j in range(len(zero)):
            kept += gain[j, r] * grad_z[j]
        pulled = grad_weight * slope[r] - kept
        grad_mean[r] += grad_z[r] + pulled
        grad_reference[r] -= pulled
        grad_shift[r] += grad_z[r]
        grad_linear[r] += grad_weight * delta[r]
    _add_outer(grad_gain, -ONE, grad_z, delta)
    _add_outer(grad_scale, ONE, grad_z, noise)
    _add_outer(grad_curvature, -HALF * grad_weight, delta, delta)


@compiled(fastmath=FAST)
def _grad_log_weights(grad_own: Any, grad_increment: Any, log_weights: Any) -> None:
    """Turn the gradient of normalised log weights, in place, into that of those before normalisation."""
    total = ZERO * grad_increment
    for k in range(grad_own.shape[0]):
        total += grad_own[k]
    for k in range(grad_own.shape[0]):
        grad_own[k] += (grad_increment - total) * exp(log_weights[k])


@compiled(fastmath=FAST)
def _with_likelihood(
    zero: Any, emission: Any, data: Any, z: Any, grad_z: Any, grad_weight: Any, scratch: Any, grads_out: Any
) -> Any:
    """Return the gradient of one particle's latent, a tuple, with that through its likelihood; see `emissions`."""
    total, at = zero, zero
    for r in range(len(zero)):
        total = tuple_setitem(total, r, grad_z[r])
        at = tuple_setitem(at, r, z[r])
    if len(emission[0]) > 1:
        pulled = pull_back_likelihood(emission, data, at, grad_weight, scratch, grads_out[0], grads_out[1])
        for r in range(len(zero)):
            total = tuple_setitem(total, r, total[r] + pulled[r])
    return total


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
def _hand_down(
    ancestors: Any, resampled: Any, carries: Any, cut: Any, grad_log_prob: Any, grad_own: Any, grad_before: Any
) -> None:
    """Write the gradient of the log weights of the time bin before from that of the carried ones, `grad_own`."""
    grad_before[:] = ZERO
    if cut:
        return
    for k in range(ancestors.shape[0]):
        if not resampled:
            grad_before[k] = grad_own[k]
        else:
            grad_before[ancestors[k]] += grad_log_prob
            if carries:
                grad_before[ancestors[k]] += grad_own[k]


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
            `trials x time x particles x rank`), of the step, the tables, the emission and the offset in `data`.
    """
    zero, zero_in, kind, hinges, link, readout = code
    grad_network, grad_step, grad_tables, grad_emission, grad_offset = grads_out
    decay, left, right, bias, first_mean, v = network
    units, observed = (kind, hinges, left, right, bias), (link, readout, hinges, emission)
    reference, _, linear, _ = step
    gain, _, curvature = tables
    y, present, offset = data
    z, means, log_weights, ancestors, resampled = ran
    grad_decay, grad_first_mean, grad_v, grad_drive = grad_network
    grad_reference, grad_shift, grad_linear, grad_constant = grad_step
    grad_gain, grad_scale, grad_curvature = grad_tables
    now = np.zeros(z.shape[2:], z.dtype)
    grad_own, grad_before = np.zeros(z.shape[2], z.dtype), np.zeros(z.shape[2], z.dtype)
    scratch = np.empty((5, y.shape[2]), z.dtype)
    for b in range(z.shape[0]):
        now[:], grad_own[:] = ZERO, ZERO
        for t in range(z.shape[1] - 1, -1, -1):
            _grad_log_weights(grad_own, grads_in[0][b, t], log_weights[b, t])
            cut = cut_every > 0 and t % cut_every == 0
            grad_constant[b, t] += grad_own.sum()
            bin_step, bin_tables = (reference[b, t], linear[b, t]), (gain[b, t], curvature[b, t])
            grad_bin_step = (grad_reference[b, t], grad_shift[b, t], grad_linear[b, t])
            grad_bin_tables = (grad_gain[b, t], grad_scale[b, t], grad_curvature[b, t])
            bin_data, grads_seen = (y[b, t], present[b, t], offset[b, t]), (grad_emission, grad_offset[b, t])
            means_in, into = first_mean[b : b + 1], grad_first_mean[b : b + 1]
            if t > 0:
                means_in, into = means[b, t - 1], grad_drive[b, t - 1]
            for k in range(z.shape[2]):
                parent = ancestors[b, t, k] if t > 0 else 0
                grad_z = _with_likelihood(
                    *(zero, observed, bin_data, z[b, t, k], now[k], grad_own[k], scratch, grads_seen)
                )
                _pull_back_particle(
                    *(zero, means_in[parent], white[b, t, k], grad_z, grad_own[k]),
                    *(bin_step, bin_tables, grad_bin_step, grad_bin_tables, into[parent]),
                )
            _hand_down(ancestors[b, t], resampled[b, t], carries, cut, grads_in[1][b, t], grad_own, grad_before)
            grad_own[:] = grad_before
            if t > 0:
                _pull_back_bin(
                    *(zero, zero_in, decay, units),
                    *(z[b, t - 1], v[b, t - 1], grad_drive[b, t - 1], cut, now, grad_v[b, t - 1], grad_decay),
                )
