"""The units of a network, in compiled loops: their rates, and the slopes of these.

What is fixed when a loop is compiled is told by the length of a tuple: of zeros, the number of latents; of `kind`,
which activation. So the compiler unrolls the small loops, and keeps one machine code per combination on disk.
"""

from __future__ import annotations

from typing import Any

from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO, softplus_and_slope, tanh

FAST = {"reassoc", "nsz", "contract", "arcp"}
"""The order of sums may change; infinities and NaN are kept."""

RELU, CLIPPED_RELU, IDENTITY, TANH, SOFTPLUS, HINGES = ((0,) * length for length in range(1, 7))


@compiled(fastmath=FAST, inline=True, allocates=False)
def _positive_part(x: Any) -> Any:
    # Written so that NaN stays NaN, and in the one way that is a single instruction.
    return ZERO if x < ZERO else x


@compiled(fastmath=FAST, inline=True, allocates=False)
def rate_and_pulls(kind: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return phi(x; h), and the gradients of x and of h from `grad`, that of phi.

    Args:
        kind: which activation, by its length.
        hinges: for `HINGES`, (first slope, changes of slope, knots, bias gains).
        x: the current.
        h: the bias.
        grad: a number.
    """
    if len(kind) == 1:
        pull = grad if x - h > ZERO else ZERO
        return _positive_part(x - h), pull, -pull
    if len(kind) == 2:
        first, second = (grad if x + h > ZERO else ZERO), (grad if x > ZERO else ZERO)
        return _positive_part(x + h) - _positive_part(x), first - second, first
    if len(kind) == 3:
        return x - h, grad, -grad
    if len(kind) == 4:
        rate = tanh(x - h)
        pull = grad * (ONE - rate * rate)
        return rate, pull, -pull
    if len(kind) == 5:
        rate, slope = softplus_and_slope(x - h)
        return rate, grad * slope, -grad * slope
    first_slope, changes, knots, gains = hinges
    rate, slope, slope_h = first_slope * (x - h), first_slope, -first_slope
    for j in range(len(changes)):
        distance = x - (knots[j] + gains[j] * h)
        on = changes[j] if distance > ZERO else ZERO
        rate += on * distance
        slope += on
        slope_h -= on * gains[j]
    return rate, grad * slope, grad * slope_h


@compiled(fastmath=FAST, allocates=False)
def drive(zero: Any, zero_in: Any, units: Any, seen: Any) -> Any:
    """Return V phi(M s; h), a tuple, for what two particles' units see: two for the price of loading the weights once.

    Args:
        zero: as many zeros as there are latents.
        zero_in: as many zeros as there are latents and inputs.
        units: (kind, hinges, M `rank + inputs x units`, V `rank x units`, h `units`), here and below.
        seen: the first particle's latents and inputs, then those of the second.
    """
    kind, hinges, left, right, bias = units
    total = zero + zero
    for i in range(bias.shape[0]):
        for p in range(2):
            x = ZERO * bias[0]
            for d in range(len(zero_in)):
                x += left[d, i] * seen[p * len(zero_in) + d]
            rate, _, _ = rate_and_pulls(kind, hinges, x, bias[i], ONE)
            for r in range(len(zero)):
                at = p * len(zero) + r
                total = tuple_setitem(total, at, total[at] + right[r, i] * rate)
    return total


@compiled(fastmath=FAST, allocates=False)
def seen_by_pair(zero_in: Any, z: Any, v: Any, rank: Any, first: Any, second: Any) -> Any:
    """Return what the units of two particles see: latents, then inputs, of one and then the other."""
    seen = zero_in + zero_in
    for d in range(len(zero_in)):
        seen = tuple_setitem(seen, d, z[first, d] if d < rank else v[d - rank])
        seen = tuple_setitem(seen, len(zero_in) + d, z[second, d] if d < rank else v[d - rank])
    return seen


@compiled(fastmath=FAST, allocates=False)
def move_parents(
    zero: Any, zero_in: Any, decay: Any, units: Any, z: Any, v: Any, parents: Any, size: Any, means: Any
) -> None:
    """Write the means of the next latents, `particles x rank`, of the first `size` of the particles `parents`.

    Particles with the same ancestor share its mean, which is all that the units cost.
    """
    rank = len(zero)
    for k in range(0, size, 2):
        first, second = parents[k], parents[min(k + 1, size - 1)]
        driven = drive(zero, zero_in, units, seen_by_pair(zero_in, z, v, rank, first, second))
        for r in range(rank):
            means[first, r] = decay[r] * z[first, r] + driven[r]
            means[second, r] = decay[r] * z[second, r] + driven[rank + r]


@compiled(fastmath=FAST, allocates=False)
def pull_back(zero: Any, zero_in: Any, units: Any, seen: Any, grad: Any) -> Any:
    """Return the gradient of `seen` from that of the drive, tuples for two particles, as in `drive`."""
    kind, hinges, left, right, bias = units
    total = zero_in + zero_in
    for i in range(bias.shape[0]):
        for p in range(2):
            x, grad_rate = ZERO * bias[0], ZERO * bias[0]
            for d in range(len(zero_in)):
                x += left[d, i] * seen[p * len(zero_in) + d]
            for r in range(len(zero)):
                grad_rate += right[r, i] * grad[p * len(zero) + r]
            _, grad_x, _ = rate_and_pulls(kind, hinges, x, bias[i], grad_rate)
            for d in range(len(zero_in)):
                at = p * len(zero_in) + d
                total = tuple_setitem(total, at, total[at] + left[d, i] * grad_x)
    return total


@compiled(fastmath=FAST, allocates=False)
def _add_block(zero: Any, zero_in: Any, units: Any, seen: Any, grad: Any, size: Any, grads_out: Any) -> None:
    """Add the gradients of the units' weights from a block of particles, `seen` and `grad` transposed."""
    kind, hinges, left, right, bias = units
    grad_left, grad_right, grad_bias = grads_out
    for i in range(bias.shape[0]):
        total_left, total_right, total_bias = zero_in, zero, zero[0]
        h = bias[i]
        row_left, row_right = zero_in, zero
        for d in range(len(zero_in)):
            row_left = tuple_setitem(row_left, d, left[d, i])
        for r in range(len(zero)):
            row_right = tuple_setitem(row_right, r, right[r, i])
        for c in range(size):
            x = zero[0]
            for d in range(len(zero_in)):
                x += row_left[d] * seen[d, c]
            grad_rate = zero[0]
            for r in range(len(zero)):
                grad_rate += row_right[r] * grad[r, c]
            rate, grad_x, grad_h = rate_and_pulls(kind, hinges, x, h, grad_rate)
            total_bias += grad_h
            for r in range(len(zero)):
                total_right = tuple_setitem(total_right, r, total_right[r] + rate * grad[r, c])
            for d in range(len(zero_in)):
                total_left = tuple_setitem(total_left, d, total_left[d] + grad_x * seen[d, c])
        for d in range(len(zero_in)):
            grad_left[d, i] += total_left[d]
        for r in range(len(zero)):
            grad_right[r, i] += total_right[r]
        grad_bias[i] += total_bias


@compiled(fastmath=FAST, allocates=False)
def grad_weights(zero: Any, zero_in: Any, units: Any, z: Any, v: Any, grad_drive: Any, block: Any, out: Any) -> None:
    """Add the gradients of M (with the input weights), V and h from the drives of all particles of some time bins.

    Drives without a gradient (of particles without descendants) are left out: they are gathered block by block.

    Args:
        zero: as many zeros as there are latents.
        zero_in: as many zeros as there are latents and inputs.
        units: as for `drive`.
        z: latents, `bins x particles x rank`.
        v: effective inputs, `bins x inputs`.
        grad_drive: of the drive out of each particle, shaped as z.
        block: scratch, (`rank + inputs x size`, `rank x size`).
        out: gradients of (M, V, h), added to.
    """
    seen, grad = block
    rank, size = len(zero), 0
    for t in range(z.shape[0]):
        for k in range(z.shape[1]):
            moved = False
            for r in range(rank):
                moved |= grad_drive[t, k, r] != ZERO
            if not moved:
                continue
            for r in range(rank):
                seen[r, size] = z[t, k, r]
                grad[r, size] = grad_drive[t, k, r]
            for d in range(rank, len(zero_in)):
                seen[d, size] = v[t, d - rank]
            size += 1
            if size == seen.shape[1]:
                _add_block(zero, zero_in, units, seen, grad, size, out)
                size = 0
    _add_block(zero, zero_in, units, seen, grad, size, out)
