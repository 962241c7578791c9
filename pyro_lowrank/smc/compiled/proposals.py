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
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO
from pyro_lowrank.dynamics.compiled.units import FAST

NO_WEIGHT, QUADRATIC, RATIO = ((0,) * length for length in range(1, 4))
LANES = 16


@compiled(inline=True, allocates=False)
def at(row: Any, lane: Any) -> Any:
    """Return the place of a lane of a row, unsigned: an index that could be negative would be tested, lane by lane."""
    return np.uintp(row * LANES + lane)


@compiled(fastmath=FAST, inline=True, allocates=False)
def vector(zero: Any, values: Any) -> Any:
    """Return the entries of an array as a tuple."""
    result = zero
    for r in range(len(zero)):
        result = tuple_setitem(result, r, values[r])
    return result


@compiled(fastmath=FAST, allocates=False)
def _matrix(square: Any, values: Any) -> Any:
    """Return a matrix as one tuple, row after row."""
    result = square
    for r in range(values.shape[0]):
        for j in range(values.shape[0]):
            result = tuple_setitem(result, r * values.shape[0] + j, values[r, j])
    return result


@compiled(fastmath=FAST, allocates=False)
def of_bin(zero: Any, square: Any, step: Any, tables: Any, b: Any, t: Any) -> Any:
    """Return r, g, c, const, G, S and A of a time bin, as tuples and a number; arguments as for `forward.run_forward`.

    Once per bin: arrays that are handed on to functions are counted, which costs more than a block of particles.
    """
    reference, shift, linear, constant, index = step
    gain, scale, metric = tables
    i = index[b, t]
    vectors = vector(zero, reference[b, t]), vector(zero, shift[b, t]), vector(zero, linear[b, t])
    return *vectors, constant[b, t], _matrix(square, gain[i]), _matrix(square, scale[i]), _matrix(square, metric[i])


@compiled(fastmath=FAST, allocates=False)
def fill(rows: Any, first: Any, values: Any, indices: Any, start: Any, size: Any, rank: Any) -> None:
    """Write `values[indices[k]]`, `particles x rank`, of a block of `size` particles into rows from `first` on."""
    for lane in range(size):
        k = indices[start + lane]
        for r in range(rank):
            rows[at(first + r, lane)] = values[k, r]


@compiled(fastmath=FAST, allocates=False)
def propose_block(zero: Any, weighing: Any, bin_: Any, rows: Any, lanes: Any) -> None:
    """Propose and weigh a block of particles at a time bin, as `of_bin` returns it.

    Rows are: m (rank of them), eps (rank), z (rank), log weight.
    """
    rank = len(zero)
    reference, shift, linear, constant, gain, scale, metric = bin_
    for lane in range(lanes):
        delta, noise, moved = zero, zero, zero
        for r in range(rank):
            delta = tuple_setitem(delta, r, rows[at(r, lane)] - reference[r])
            noise = tuple_setitem(noise, r, rows[at(rank + r, lane)])
        for r in range(rank):
            value = shift[r]
            for j in range(rank):
                value -= gain[r * rank + j] * delta[j]
            for j in range(rank):
                if j <= r:
                    value += scale[r * rank + j] * noise[j]
            moved = tuple_setitem(moved, r, value)
            rows[at(2 * rank + r, lane)] = rows[at(r, lane)] + value
        weight = constant
        if len(weighing) == 2:
            for r in range(rank):
                curved = ZERO
                for j in range(rank):
                    curved += metric[r * rank + j] * delta[j]
                weight += delta[r] * (linear[r] - HALF * curved)
        if len(weighing) == 3:
            for r in range(rank):
                curved = ZERO
                for j in range(rank):
                    curved += metric[r * rank + j] * moved[j]
                weight += HALF * (noise[r] * noise[r] - moved[r] * curved)
        rows[at(3 * rank, lane)] = weight


@compiled(fastmath=FAST, allocates=False)
def pull_back_block(zero: Any, weighing: Any, bin_: Any, rows: Any, lanes: Any) -> None:
    """The adjoint of `propose_block`.

    Rows are: m (rank of them), eps (rank), gradient of z (rank), gradient of the log weight; written to are those of
    d (rank), s (rank), the gradient of s (rank), what reaches m through d (rank), the gradient of m (rank).
    """
    rank = len(zero)
    reference, shift, linear, _, gain, scale, metric = bin_
    for lane in range(lanes):
        delta, noise, moved, grad = zero, zero, zero, zero
        grad_weight = rows[at(3 * rank, lane)]
        for r in range(rank):
            delta = tuple_setitem(delta, r, rows[at(r, lane)] - reference[r])
            noise = tuple_setitem(noise, r, rows[at(rank + r, lane)])
            grad = tuple_setitem(grad, r, rows[at(2 * rank + r, lane)])
            rows[at(3 * rank + 1 + r, lane)] = delta[r]
        if len(weighing) == 3:
            for r in range(rank):
                value = shift[r]
                for j in range(rank):
                    value -= gain[r * rank + j] * delta[j]
                for j in range(rank):
                    if j <= r:
                        value += scale[r * rank + j] * noise[j]
                moved = tuple_setitem(moved, r, value)
                rows[at(4 * rank + 1 + r, lane)] = value
            for r in range(rank):
                curved = ZERO
                for j in range(rank):
                    curved += metric[r * rank + j] * moved[j]
                grad = tuple_setitem(grad, r, grad[r] - grad_weight * curved)
        for r in range(rank):
            pulled = ZERO
            if len(weighing) == 2:
                pulled = linear[r]
                for j in range(rank):
                    pulled -= metric[r * rank + j] * delta[j]
                pulled *= grad_weight
            for j in range(rank):
                pulled -= gain[j * rank + r] * grad[j]
            rows[at(5 * rank + 1 + r, lane)] = grad[r]
            rows[at(6 * rank + 1 + r, lane)] = pulled
            rows[at(7 * rank + 1 + r, lane)] = rows[at(2 * rank + r, lane)] + pulled


@compiled(fastmath=FAST, allocates=False)
def add_to_step(zero: Any, weighing: Any, rows: Any, lanes: Any, sums: Any) -> None:
    """Add a block's terms to `sums`, in rows as in `rows`: the gradients of r, g and c, `rank` rows each."""
    rank = len(zero)
    for r in range(rank):
        for lane in range(lanes):
            sums[at(r, lane)] -= rows[at(6 * rank + 1 + r, lane)]
            sums[at(rank + r, lane)] += rows[at(5 * rank + 1 + r, lane)]
            if len(weighing) == 2:
                delta = rows[at(3 * rank + 1 + r, lane)]
                sums[at(2 * rank + r, lane)] += rows[at(3 * rank, lane)] * delta


@compiled(fastmath=FAST, allocates=False)
def add_to_tables(zero: Any, weighing: Any, rows: Any, lanes: Any, sums: Any) -> None:
    """Add a block's terms to `sums`, in rows as in `rows`: the gradients of G, S and A, `rank * rank` rows each."""
    rank = len(zero)
    square = rank * rank
    bent = 4 * rank + 1 if len(weighing) == 3 else 3 * rank + 1
    for r in range(rank):
        for j in range(rank):
            entry = r * rank + j
            for lane in range(lanes):
                grad = rows[at(5 * rank + 1 + r, lane)]
                sums[at(entry, lane)] -= grad * rows[at(3 * rank + 1 + j, lane)]
                if j <= r:
                    sums[at(square + entry, lane)] += grad * rows[at(rank + j, lane)]
            if len(weighing) > 1:
                for lane in range(lanes):
                    half = HALF * rows[at(3 * rank, lane)]
                    product = rows[at(bent + r, lane)] * rows[at(bent + j, lane)]
                    sums[at(2 * square + entry, lane)] -= half * product


@compiled(fastmath=FAST, allocates=False)
def row_sum(sums: Any, row: Any) -> Any:
    """Return the sum over the lanes of one row, and set it to zero."""
    total = ZERO
    for lane in range(LANES):
        total += sums[at(row, lane)]
        sums[at(row, lane)] = ZERO
    return total


@compiled(fastmath=FAST, allocates=False)
def flush_step(sums: Any, grad_step: Any) -> None:
    """Add the sums of `add_to_step` to the gradients of one time bin, and start anew."""
    rank = grad_step[0].shape[0]
    for part in range(3):
        for r in range(rank):
            grad_step[part][r] += row_sum(sums, part * rank + r)


@compiled(fastmath=FAST, allocates=False)
def flush_tables(sums: Any, grad_tables: Any) -> None:
    """Add the sums of `add_to_tables` to the gradients of one set of tables, and start anew."""
    rank = grad_tables[0].shape[0]
    for part in range(3):
        for r in range(rank):
            for j in range(rank):
                grad_tables[part][r, j] += row_sum(sums, (part * rank + r) * rank + j)


def new_rows(number: int, like: Any) -> Any:
    """Return so many rows of zeros, of the type of an array."""
    return np.zeros(number * LANES, like.dtype)
