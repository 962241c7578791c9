"""Small matrices in compiled loops, in float64: sums, products, Cholesky factors, triangular inverses.

Numba's own products need SciPy, and cost more than the arithmetic at the size of a rank; its sums take seconds to
compile, each of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled


@compiled()
def times(a: Any, b: Any) -> Any:
    """Return a b."""
    result = np.zeros((a.shape[0], b.shape[1]))
    for i in range(a.shape[0]):
        for k in range(b.shape[0]):
            for j in range(b.shape[1]):
                result[i, j] += a[i, k] * b[k, j]
    return result


@compiled()
def transposed(a: Any) -> Any:
    """Return the transpose, as an array of its own."""
    result = np.empty((a.shape[1], a.shape[0]))
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            result[j, i] = a[i, j]
    return result


@compiled()
def plus(a: Any, factor: Any, b: Any) -> Any:
    """Return a + factor b."""
    result = np.empty((a.shape[0], a.shape[1]))
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            result[i, j] = a[i, j] + factor * b[i, j]
    return result


@compiled()
def add_to(total: Any, a: Any) -> None:
    """Add a matrix to a total, in place."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total[i, j] += a[i, j]


@compiled()
def diagonal(size: Any, value: Any) -> Any:
    """Return a multiple of the identity."""
    result = np.zeros((size, size))
    for i in range(size):
        result[i, i] = value
    return result


@compiled()
def symmetric(a: Any) -> Any:
    """Return (a + a^T) / 2."""
    result = np.empty((a.shape[0], a.shape[0]))
    for i in range(a.shape[0]):
        for j in range(a.shape[0]):
            result[i, j] = 0.5 * (a[i, j] + a[j, i])
    return result


@compiled()
def cholesky(a: Any) -> Any:
    """Return the lower Cholesky factor; NaN where there is none."""
    size = a.shape[0]
    result = np.zeros((size, size))
    for j in range(size):
        for i in range(j, size):
            total = a[i, j]
            for k in range(j):
                total -= result[i, k] * result[j, k]
            result[i, j] = math.sqrt(total) if i == j else total / result[j, j]
    return result


@compiled()
def lower_inverse(a: Any) -> Any:
    """Return the inverse of a lower triangular matrix."""
    size = a.shape[0]
    result = np.zeros((size, size))
    for j in range(size):
        for i in range(j, size):
            total = 1.0 if i == j else 0.0
            for k in range(j, i):
                total -= a[i, k] * result[k, j]
            result[i, j] = total / a[i, i]
    return result


@compiled()
def pull_back_cholesky(factor: Any, grad: Any) -> Any:
    """Return the gradient, symmetric, of a matrix from that of its Cholesky factor.

    References:
        Murray (2016), "Differentiation of the Cholesky decomposition".
    """
    inner = times(transposed(factor), grad)
    for i in range(inner.shape[0]):
        inner[i, i] *= 0.5
        for j in range(i + 1, inner.shape[0]):
            inner[i, j] = 0.0
    inverse = lower_inverse(factor)
    return times(transposed(inverse), times(symmetric(inner), inverse))
