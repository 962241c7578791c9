r"""What is `rank x rank` of the optimal proposal, for each covariance and pattern of missing features, and its adjoint.

With L the Cholesky factor of a covariance Q and G = C^T W C that of a pattern (see `reduction`),

    P = (Q^{-1} + G)^{-1},    T = (I + G Q)^{-1},    A = T G,

whose differentials are dP = T^T dQ T - P dG P, dT = -A dQ T - T dG P and dA = T dG T^T - A dQ A.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.smc.compiled.matrices import (
    add_to,
    cholesky,
    diagonal,
    lower_inverse,
    plus,
    pull_back_cholesky,
    symmetric,
    times,
    transposed,
)

_RIDGE = 1e-4


@compiled()
def gram_of(weight: Any, variance: Any, present: Any) -> Any:
    """Return G, `patterns x rank x rank`, from C^T `rank x features`, and 1 or 0 where `patterns x features` are."""
    rank = weight.shape[0]
    gram = np.zeros((present.shape[0], rank, rank))
    for i in range(present.shape[0]):
        for r in range(rank):
            for j in range(r + 1):
                total = 0.0
                for d in range(weight.shape[1]):
                    total += present[i, d] * weight[r, d] * weight[j, d] / variance[d]
                gram[i, r, j] = gram[i, j, r] = total
    return gram


@compiled()
def log_noise_of(variance: Any, present: Any) -> Any:
    """Return log det(2 pi S) of each pattern."""
    result = np.zeros(present.shape[0])
    for i in range(present.shape[0]):
        for d in range(variance.shape[0]):
            if present[i, d] > 0:
                result[i] += math.log(2 * math.pi * variance[d])
    return result


@compiled()
def regression_of(gram: Any) -> Any:
    """Return the inverse of each G, made invertible whatever features are missing."""
    rank = gram.shape[1]
    result = np.zeros((gram.shape[0], rank, rank))
    for i in range(gram.shape[0]):
        level = 0.0
        for r in range(rank):
            level += gram[i, r, r] / rank
        ridge = _RIDGE * level if level > 0 else 1.0
        inverse = lower_inverse(cholesky(plus(gram[i], ridge, diagonal(rank, 1.0))))
        add_to(result[i], times(transposed(inverse), inverse))
    return result


@compiled()
def condition(factor: Any, gram: Any) -> Any:
    """Return P, T, A, the Cholesky factor of P and log det(I + G Q), for one L and one G.

    Without the inverses of Q and G, which may be near singular: I + L^T G L has no eigenvalue below 1.
    """
    rank = gram.shape[0]
    inner = plus(diagonal(rank, 1.0), 1.0, times(transposed(factor), times(gram, factor)))
    inverse = lower_inverse(cholesky(inner))
    root = times(factor, transposed(inverse))
    posterior = times(root, transposed(root))
    shrink = times(times(transposed(lower_inverse(factor)), transposed(inverse)), transposed(root))
    log_det = 0.0
    for r in range(rank):
        log_det -= 2 * math.log(inverse[r, r])
    return posterior, shrink, symmetric(times(shrink, gram)), cholesky(posterior), log_det


@compiled()
def pull_back_condition(factor: Any, gram: Any, found: Any, grads: Any) -> Any:
    """Return the gradients of L and G.

    Args:
        factor: L.
        gram: G.
        found: what `condition` returned.
        grads: of P, T, A, the Cholesky factor of P, log det(I + G Q), and of P G.
    """
    posterior, shrink, metric, scale, _ = found
    grad_posterior, grad_shrink, grad_metric, grad_scale, grad_log_det, grad_gain = grads
    back = transposed(shrink)
    grad = plus(grad_posterior, 1.0, times(grad_gain, gram))
    add_to(grad, pull_back_cholesky(scale, grad_scale))
    grad_gram = plus(times(posterior, grad_gain), -1.0, times(posterior, times(grad, posterior)))
    grad_gram = plus(grad_gram, -1.0, times(back, times(grad_shrink, posterior)))
    add_to(grad_gram, times(back, times(grad_metric, shrink)))
    grad_covariance = plus(times(shrink, times(grad, back)), -1.0, times(metric, times(grad_metric, metric)))
    grad_covariance = plus(grad_covariance, -1.0, times(metric, times(grad_shrink, back)))
    grad_factor = times(symmetric(plus(grad_covariance, grad_log_det, metric)), factor)
    grad_factor = plus(grad_factor, 1.0, grad_factor)
    for r in range(factor.shape[0]):
        for j in range(r + 1, factor.shape[0]):
            grad_factor[r, j] = 0.0
    return grad_factor, plus(grad_gram, grad_log_det, posterior)
