"""Vectors and matrices of a block of particles, side by side: each entry a row of numbers, one for each particle.

Rows are `WIDTH` numbers long and lie one after another in one array. As many of each as there are particles, rounded up
to whole vectors, are worked on: the lanes. Vectors are told by their first row, matrices too, entries row after row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO
from pyro_lowrank.dynamics.compiled.units import FAST

WIDTH, _VECTOR = 64, 16


@compiled(inline=True, allocates=False)
def at(row: Any, lane: Any) -> Any:
    """Return the place of a lane of a row, unsigned: an index that could be negative would be tested, lane by lane."""
    return np.uintp(row * WIDTH + lane)


def new_rows(number: int, like: Any) -> Any:
    """Return so many rows of zeros, of the type of an array."""
    return np.zeros(number * WIDTH, like.dtype)


@compiled(fastmath=FAST, inline=True, allocates=False)
def lanes_of(size: Any) -> Any:
    """Return how many lanes are worked on for so many particles."""
    return (size + _VECTOR - 1) // _VECTOR * _VECTOR


@compiled(fastmath=FAST, allocates=False)
def fill(rows: Any, first: Any, values: Any, indices: Any, start: Any, size: Any) -> None:
    """Write `values[indices[k]]`, `particles x rank`, of `size` particles from `start` on; zero in the other lanes."""
    for lane in range(size):
        k = indices[start + lane]
        for r in range(values.shape[1]):
            rows[at(first + r, lane)] = values[k, r]
    set_rows(rows, first, values.shape[1], ZERO, size, lanes_of(size))


@compiled(fastmath=FAST, allocates=False)
def set_rows(rows: Any, first: Any, number: Any, value: Any, start: Any, stop: Any) -> None:
    """Set some lanes of rows to a value."""
    for row in range(first, first + number):
        for lane in range(start, stop):
            rows[at(row, lane)] = value


@compiled(fastmath=FAST, allocates=False)
def copy(rows: Any, source: Any, target: Any, number: Any, lanes: Any) -> None:
    """Copy rows."""
    for row in range(number):
        for lane in range(lanes):
            rows[at(target + row, lane)] = rows[at(source + row, lane)]


@compiled(fastmath=FAST, inline=True, allocates=False)
def _subtract_product(rows: Any, target: Any, a: Any, b: Any, lanes: Any) -> None:
    for lane in range(lanes):
        rows[at(target, lane)] -= rows[at(a, lane)] * rows[at(b, lane)]


@compiled(fastmath=FAST, inline=True, allocates=False)
def _divide(rows: Any, target: Any, by: Any, lanes: Any) -> None:
    for lane in range(lanes):
        rows[at(target, lane)] /= rows[at(by, lane)]


@compiled(fastmath=FAST, allocates=False)
def cholesky(rank: Any, rows: Any, a: Any, lanes: Any) -> None:
    """Turn the lower triangle of a matrix into its Cholesky factor; NaN where there is none."""
    for j in range(rank):
        for i in range(j, rank):
            for k in range(j):
                _subtract_product(rows, a + i * rank + j, a + i * rank + k, a + j * rank + k, lanes)
            if i > j:
                _divide(rows, a + i * rank + j, a + j * rank + j, lanes)
                continue
            for lane in range(lanes):
                rows[at(a + i * rank + i, lane)] = math.sqrt(rows[at(a + i * rank + i, lane)])


@compiled(fastmath=FAST, allocates=False)
def solve(rank: Any, rows: Any, a: Any, x: Any, stride: Any, lanes: Any) -> None:
    """Turn a vector x into F^{-1} x, with a lower triangle F; its entries are every `stride`th row from x on."""
    for i in range(rank):
        for k in range(i):
            _subtract_product(rows, x + i * stride, a + i * rank + k, x + k * stride, lanes)
        _divide(rows, x + i * stride, a + i * rank + i, lanes)


@compiled(fastmath=FAST, allocates=False)
def solve_transposed(rank: Any, rows: Any, a: Any, x: Any, stride: Any, lanes: Any) -> None:
    """Turn a vector x into F^{-T} x, as `solve`."""
    for i in range(rank - 1, -1, -1):
        for k in range(i + 1, rank):
            _subtract_product(rows, x + i * stride, a + k * rank + i, x + k * stride, lanes)
        _divide(rows, x + i * stride, a + i * rank + i, lanes)


@compiled(fastmath=FAST, allocates=False)
def pull_back_cholesky(rank: Any, rows: Any, factor: Any, grad: Any, result: Any, lanes: Any) -> None:
    """Write the gradient, symmetric, of a matrix from that of the lower triangle of its Cholesky factor.

    References:
        Murray (2016), "Differentiation of the Cholesky decomposition".
    """
    for i in range(rank):
        for j in range(i + 1):
            for lane in range(lanes):
                total = ZERO
                for k in range(i, rank):
                    total += rows[at(factor + k * rank + i, lane)] * rows[at(grad + k * rank + j, lane)]
                # Below the diagonal half of it belongs to each side, and of the diagonal half counts.
                total *= HALF
                rows[at(result + i * rank + j, lane)] = total
                rows[at(result + j * rank + i, lane)] = total
    for j in range(rank):
        solve_transposed(rank, rows, factor, result + j, rank, lanes)
    for i in range(rank):
        solve_transposed(rank, rows, factor, result + i * rank, 1, lanes)
