r"""The transition's Gaussian times an encoder's, at every time bin, as one node of torch's graph.

In the letters of `EncoderProposal`, with Q = F F^T of the first time bin and of all others, and diagonal S per bin,

    Lambda = Q^{-1} + S^{-1},    P = Lambda^{-1} = L L^T,    G = P S^{-1},

so that L is the transposed inverse of the upper triangular root of Lambda. With K the lower triangle of L^T dL, its
diagonal halved, the adjoint of Lambda is -(L (K + K^T) L^T + P (dG S^{-1} + S^{-1} dG^T) P) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.smc.compiled.matrices import add_to, lower_inverse, times, transposed


@compiled()
def _precisions(factors: Any) -> Any:
    """Return F^{-1}, Q^{-1} and log det F of each factor."""
    inverse, precision = np.zeros(factors.shape), np.zeros(factors.shape)
    log_dets = np.zeros(factors.shape[0])
    for i in range(factors.shape[0]):
        add_to(inverse[i], lower_inverse(factors[i]))
        add_to(precision[i], times(transposed(inverse[i]), inverse[i]))
        for r in range(factors.shape[1]):
            log_dets[i] += math.log(factors[i, r, r])
    return inverse, precision, log_dets


@compiled(allocates=False)
def _root_of_inverse(precision: Any, variance: Any, upper: Any, root: Any) -> None:
    """Write L, lower triangular, for one bin; `upper` is scratch, for the root of Lambda."""
    rank = variance.shape[0]
    for j in range(rank - 1, -1, -1):
        for i in range(j, -1, -1):
            total = precision[i, j] + (1.0 / variance[j] if i == j else 0.0)
            for k in range(j + 1, rank):
                total -= upper[i, k] * upper[j, k]
            upper[i, j] = math.sqrt(total) if i == j else total / upper[j, j]
    for j in range(rank):
        for i in range(rank):
            total = 1.0 if i == j else 0.0
            for k in range(j, i):
                total -= upper[k, i] * root[k, j]
            root[i, j] = total / upper[i, i] if i >= j else 0.0


@compiled(allocates=False)
def _combine(variance: Any, recorded: Any, prior: Any, work: Any, out: Any) -> None:
    """Write (G, L, Q^{-1}, log det L - log det F) of every bin; where nothing was recorded L is F, and G zero."""
    factors, precision, log_dets = prior
    upper, root = work
    gain, scale, metric, constant = out
    rank = variance.shape[2]
    for b in range(variance.shape[0]):
        for t in range(variance.shape[1]):
            i = 1 if t > 0 else 0
            if recorded[b, t]:
                _root_of_inverse(precision[i], variance[b, t], upper, root)
            total = -log_dets[i]
            for r in range(rank):
                total += math.log(root[r, r] if recorded[b, t] else factors[i, r, r])
                for j in range(rank):
                    metric[b, t, r, j] = precision[i, r, j]
                    scale[b, t, r, j] = root[r, j] if recorded[b, t] else factors[i, r, j]
                    covariance = 0.0
                    if recorded[b, t]:
                        for k in range(min(r, j) + 1):
                            covariance += root[r, k] * root[j, k]
                    gain[b, t, r, j] = covariance / variance[b, t, j]
            constant[b, t] = total


@compiled(allocates=False)
def _pull_back_bin(root: Any, variance: Any, grads: Any, work: Any) -> None:
    """Write the gradient of Lambda, `total`, and add to that of S^{-1} what comes through G alone."""
    grad_gain, grad_scale, grad_constant = grads
    covariance, inner, half, total, grad_inverse = work
    rank = variance.shape[0]
    for r in range(rank):
        grad_inverse[r] = 0.0
        for j in range(rank):
            covariance[r, j] = 0.0
            for k in range(min(r, j) + 1):
                covariance[r, j] += root[r, k] * root[j, k]
    for r in range(rank):
        for j in range(rank):
            grad_inverse[j] += grad_gain[r, j] * covariance[r, j]
            low, high = max(r, j), min(r, j)
            # L^T dL; log det L adds its diagonal.
            value = grad_constant if r == j else 0.0
            for k in range(low, rank):
                value += root[k, low] * grad_scale[k, high]
            inner[r, j] = value
    for r in range(rank):
        for j in range(rank):
            half[r, j] = 0.0
            for k in range(rank):
                half[r, j] += root[r, k] * inner[k, j]
    for r in range(rank):
        for j in range(rank):
            total[r, j] = 0.0
            for k in range(rank):
                total[r, j] -= 0.5 * half[r, k] * root[j, k]
    for r in range(rank):
        for j in range(rank):
            half[r, j] = 0.0
            for k in range(rank):
                half[r, j] += covariance[r, k] * (grad_gain[k, j] / variance[j] + grad_gain[j, k] / variance[k])
    for r in range(rank):
        for j in range(rank):
            for k in range(rank):
                total[r, j] -= 0.5 * half[r, k] * covariance[k, j]


@compiled(allocates=False)
def _pull_back(variance: Any, recorded: Any, scale: Any, grads: Any, work: Any, out: Any) -> None:
    """Write the gradients of S, and add those of Q^{-1} and F (of which log det F is left to the caller)."""
    grad_gain, grad_scale, grad_metric, grad_constant = grads
    grad_variance, grad_precision, grad_factors, sums = out
    total, grad_inverse = work[3:]
    rank = variance.shape[2]
    for b in range(variance.shape[0]):
        for t in range(variance.shape[1]):
            i = 1 if t > 0 else 0
            sums[i] += grad_constant[b, t] if recorded[b, t] else 0.0
            if recorded[b, t]:
                bin_ = grad_gain[b, t], grad_scale[b, t], grad_constant[b, t]
                _pull_back_bin(scale[b, t], variance[b, t], bin_, work)
            for r in range(rank):
                grad_variance[b, t, r] = 0.0
                if recorded[b, t]:
                    grad_variance[b, t, r] = -(grad_inverse[r] + total[r, r]) / variance[b, t, r] ** 2
                for j in range(rank):
                    grad_precision[i, r, j] += grad_metric[b, t, r, j]
                    if recorded[b, t]:
                        grad_precision[i, r, j] += total[r, j]
                    elif j <= r:
                        grad_factors[i, r, j] += grad_scale[b, t, r, j]


class EncoderProducts(torch.autograd.Function):
    """Computes what the loops need of the products, in float64."""

    @staticmethod
    def forward(ctx: Any, recorded: Tensor, variance: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """Return G, L and Q^{-1} `trials x time x rank x rank`, and log det L - log det F `trials x time`.

        Args:
            ctx: of torch.
            recorded: in which bins anything was recorded, `trials x time`.
            variance: the diagonal of S, `trials x time x rank`.
            factors: F of the first time bin and of all others, `rank x rank`, lower triangular.
        """
        there, variances = array(recorded), array(variance).astype(float)
        factor = np.stack([array(each) for each in factors]).astype(float)
        inverse, precision, log_dets = _precisions(factor)
        square = (*variances.shape, variances.shape[-1])
        out = np.empty(square), np.empty(square), np.empty(square), np.empty(there.shape)
        work = tuple(np.zeros(factor.shape[1:]) for _ in range(2))
        _combine(variances, there, (factor, precision, log_dets), work, out)
        ctx.arrays = there, variances, factor, inverse, out[1]
        ctx.save_for_backward(variance, *factors)
        return tuple(torch.from_numpy(each).to(variance.dtype) for each in out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the variances and factors."""
        there, variances, factor, inverse, scale = ctx.arrays
        dtype = ctx.saved_tensors[0].dtype
        grads = tuple(array(grad).astype(float) for grad in grad_outputs)
        grad_variance = np.empty_like(variances)
        grad_precision, grad_factors, sums = np.zeros_like(factor), np.zeros_like(factor), np.zeros(len(factor))
        work = (*(np.zeros(factor.shape[1:]) for _ in range(4)), np.zeros(factor.shape[1]))
        _pull_back(variances, there, scale, grads, work, (grad_variance, grad_precision, grad_factors, sums))
        # Of Q^{-1} = F^{-T} F^{-1}, and of log det F.
        back = np.swapaxes(inverse, 1, 2)
        both = grad_precision + np.swapaxes(grad_precision, 1, 2)
        grad_factors -= np.tril(back @ inverse @ both @ back)
        grad_factors -= sums[:, None, None] * np.tril(back)
        return None, *(torch.from_numpy(grad).to(dtype) for grad in (grad_variance, *grad_factors))
