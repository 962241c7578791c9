"""Proposing and weighing particles, and the adjoint of it: a block of particles at a time, side by side in registers.

With m the mean of the transition of a particle, r a reference and eps a white draw, its latent is z = m + s,

    s = g - G d + S eps,    d = m - r,

and its log weight, beside the likelihood, one of the following, told by the length of a tuple as in `units`:

    NO_WEIGHT    const
    QUADRATIC    const + c . d - d . A d / 2
    RATIO        const + eps . eps / 2 - s . A s / 2

All that a block needs lies in one array, row by row: rows are `LANES` numbers long, so that the compiler knows that no
two of them overlap, and works on all lanes at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.arithmetic import HALF, ONE, ZERO
from pyro_lowrank.smc.compiled.units import FAST

NO_WEIGHT, QUADRATIC, RATIO = ((0,) * length for length in range(1, 4))
LANES = 16


@compiled(fastmath=FAST)
def vector(zero: Any, values: Any) -> Any:
    result = zero
    for r in range(len(zero)):
        result = tuple_setitem(result, r, values[r])
    return result


@compiled(fastmath=FAST)
def _matrix(square: Any, values: Any) -> Any:
    """Return a matrix as one tuple, row after row."""
    result = square
    for r in range(values.shape[0]):
        for j in range(values.shape[0]):
            result = tuple_setitem(result, r * values.shape[0] + j, values[r, j])
    return result


@compiled(fastmath=FAST)
def fill(rows: Any, first: Any, values: Any, indices: Any, start: Any, size: Any, rank: Any) -> None:
    """Write `values[indices[k]]`, `particles x rank`, of a block of `size` particles into rows from `first` on."""
    for lane in range(size):
        k = indices[start + lane]
        for r in range(rank):
            rows[(first + r) * LANES + lane] = values[k, r]


@compiled(fastmath=FAST)
def propose_block(zero: Any, square: Any, weighing: Any, step: Any, tables: Any, rows: Any, lanes: Any) -> None:
    """Propose and weigh a block of particles; `step` and `tables` are those of `forward.run_forward` at one time bin.

    Rows are: m (rank of them), eps (rank), z (rank), log weight.
    """
    rank = len(zero)
    reference, shift, linear = vector(zero, step[0]), vector(zero, step[1]), vector(zero, step[2])
    gain, scale, metric = _matrix(square, tables[0]), _matrix(square, tables[1]), _matrix(square, tables[2])
    constant = step[3]
    for lane in range(lanes):
        delta, noise, moved = zero, zero, zero
        for r in range(rank):
            delta = tuple_setitem(delta, r, rows[r * LANES + lane] - reference[r])
            noise = tuple_setitem(noise, r, rows[(rank + r) * LANES + lane])
        for r in range(rank):
            value = shift[r]
            for j in range(rank):
                value -= gain[r * rank + j] * delta[j]
            for j in range(rank):
                if j <= r:
                    value += scale[r * rank + j] * noise[j]
            moved = tuple_setitem(moved, r, value)
            rows[(2 * rank + r) * LANES + lane] = rows[r * LANES + lane] + value
        weight = constant
        if len(weighing) == 2:
            for r in range(rank):
                curved = ZERO * weight
                for j in range(rank):
                    curved += metric[r * rank + j] * delta[j]
                weight += delta[r] * (linear[r] - HALF * curved)
        if len(weighing) == 3:
            for r in range(rank):
                curved = ZERO * weight
                for j in range(rank):
                    curved += metric[r * rank + j] * moved[j]
                weight += HALF * (noise[r] * noise[r] - moved[r] * curved)
        rows[3 * rank * LANES + lane] = weight


@compiled(fastmath=FAST)
def pull_back_block(zero: Any, square: Any, weighing: Any, step: Any, tables: Any, rows: Any, lanes: Any) -> None:
    """The adjoint of `propose_block`.

    Rows are: m (rank of them), eps (rank), gradient of z (rank), gradient of the log weight; written to are those of
    d (rank), s (rank), the gradient of s (rank), what reaches m through d (rank), the gradient of m (rank).
    """
    rank = len(zero)
    reference, shift, linear = vector(zero, step[0]), vector(zero, step[1]), vector(zero, step[2])
    gain, scale, metric = _matrix(square, tables[0]), _matrix(square, tables[1]), _matrix(square, tables[2])
    for lane in range(lanes):
        delta, noise, moved, grad = zero, zero, zero, zero
        grad_weight = rows[3 * rank * LANES + lane]
        for r in range(rank):
            delta = tuple_setitem(delta, r, rows[r * LANES + lane] - reference[r])
            noise = tuple_setitem(noise, r, rows[(rank + r) * LANES + lane])
            grad = tuple_setitem(grad, r, rows[(2 * rank + r) * LANES + lane])
            rows[(3 * rank + 1 + r) * LANES + lane] = delta[r]
        if len(weighing) == 3:
            for r in range(rank):
                value = shift[r]
                for j in range(rank):
                    value -= gain[r * rank + j] * delta[j]
                for j in range(rank):
                    if j <= r:
                        value += scale[r * rank + j] * noise[j]
                moved = tuple_setitem(moved, r, value)
                rows[(4 * rank + 1 + r) * LANES + lane] = value
            for r in range(rank):
                curved = ZERO * grad_weight
                for j in range(rank):
                    curved += metric[r * rank + j] * moved[j]
                grad = tuple_setitem(grad, r, grad[r] - grad_weight * curved)
        for r in range(rank):
            pulled = ZERO * grad_weight
            if len(weighing) == 2:
                pulled = linear[r]
                for j in range(rank):
                    pulled -= metric[r * rank + j] * delta[j]
                pulled *= grad_weight
            for j in range(rank):
                pulled -= gain[j * rank + r] * grad[j]
            rows[(5 * rank + 1 + r) * LANES + lane] = grad[r]
            rows[(6 * rank + 1 + r) * LANES + lane] = pulled
            rows[(7 * rank + 1 + r) * LANES + lane] = rows[(2 * rank + r) * LANES + lane] + pulled


@compiled(fastmath=FAST)
def add_to_step(zero: Any, weighing: Any, rows: Any, lanes: Any, sums: Any) -> None:
    """Add a block's terms to `sums`, in rows as in `rows`: the gradients of r, g and c, `rank` rows each."""
    rank = len(zero)
    for r in range(rank):
        for lane in range(lanes):
            sums[r * LANES + lane] -= rows[(6 * rank + 1 + r) * LANES + lane]
            sums[(rank + r) * LANES + lane] += rows[(5 * rank + 1 + r) * LANES + lane]
            if len(weighing) == 2:
                delta = rows[(3 * rank + 1 + r) * LANES + lane]
                sums[(2 * rank + r) * LANES + lane] += rows[3 * rank * LANES + lane] * delta


@compiled(fastmath=FAST)
def add_to_tables(zero: Any, weighing: Any, rows: Any, lanes: Any, sums: Any) -> None:
    """Add a block's terms to `sums`, in rows as in `rows`: the gradients of G, S and A, `rank * rank` rows each."""
    rank = len(zero)
    square = rank * rank
    bent = 4 * rank + 1 if len(weighing) == 3 else 3 * rank + 1
    for r in range(rank):
        for j in range(rank):
            at = r * rank + j
            for lane in range(lanes):
                grad = rows[(5 * rank + 1 + r) * LANES + lane]
                sums[at * LANES + lane] -= grad * rows[(3 * rank + 1 + j) * LANES + lane]
                if j <= r:
                    sums[(square + at) * LANES + lane] += grad * rows[(rank + j) * LANES + lane]
            if len(weighing) > 1:
                for lane in range(lanes):
                    half = HALF * rows[3 * rank * LANES + lane]
                    product = rows[(bent + r) * LANES + lane] * rows[(bent + j) * LANES + lane]
                    sums[(2 * square + at) * LANES + lane] -= half * product


@compiled(fastmath=FAST)
def row_sum(sums: Any, row: Any) -> Any:
    """Return the sum over the lanes of one row, and set it to zero."""
    total = ZERO * sums[0]
    for lane in range(LANES):
        total += sums[row * LANES + lane]
        sums[row * LANES + lane] = ZERO
    return total


@compiled(fastmath=FAST)
def flush_step(sums: Any, grad_step: Any) -> None:
    """Add the sums of `add_to_step` to the gradients of one time bin, and start anew."""
    rank = grad_step[0].shape[0]
    for part in range(3):
        for r in range(rank):
            grad_step[part][r] += row_sum(sums, part * rank + r)


@compiled(fastmath=FAST)
def flush_tables(sums: Any, grad_tables: Any) -> None:
    """Add the sums of `add_to_tables` to the gradients of one set of tables, and start anew."""
    rank = grad_tables[0].shape[0]
    for part in range(3):
        for r in range(rank):
            for j in range(rank):
                grad_tables[part][r, j] += row_sum(sums, (part * rank + r) * rank + j)


@compiled()
def new_rows(number: Any, like: Any) -> Any:
    """Return so many rows of zeros, of the type of an array."""
    return np.zeros(number * LANES, like.dtype)
