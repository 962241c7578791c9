r"""A recording reduced to rank-sized tables for the optimal proposal, as one node of torch's graph.

The letters are those of `OptimalProposal`: y ~ N(C z + d, S), z ~ N(m, Q), Q = L L^T, for every covariance Q (that of
the first time bin, and that of all others) and every pattern of missing features. With W = S^{-1}, zero where missing,

    G = C^T W C,    P = (Q^{-1} + G)^{-1},    T = (I + G Q)^{-1},    A = T G,
    e = y - d - C zhat,    p = C^T W e,    q = e^T W e,

the tables are: reference zhat, shift P p, linear T p, constant -(q - p^T P p + log det(I + G Q) + log det 2 pi S) / 2,
gain P G, scale the Cholesky factor of P, metric A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.smc.compiled.residuals import (
    any_missing,
    condition_all,
    pull_back_bins,
    pull_back_features,
    pull_back_offset,
    pull_back_tables,
    reduce_bins,
)

# Type checkers do not see through arguments that are unpacked.
_reduce_bins: Any = reduce_bins


@dataclass(frozen=True)
class Bins:
    """A recording, and which of the tables each time bin uses; nothing of it has a gradient.

    Args:
        y: NaN where missing, `trials x time x features`.
        present: 1 where a feature is there, for each pattern, `patterns x features`.
        index: of the table of each time bin, `trials x time`: a pattern's number, after those of the first covariance.
    """

    y: Any
    present: Any
    index: Any

    @classmethod
    def of(cls, recording: Tensor) -> Bins:
        """Return the time bins of a recording in which NaN is missing."""
        y = array(recording)
        index = np.ones(y.shape[:2], np.int64)
        index[:, 0] = 0
        if not any_missing(y):
            return cls(y, np.ones((1, y.shape[-1])), index)
        missing = recording.isnan().reshape(-1, y.shape[-1])
        patterns, pattern = torch.unique(missing, dim=0, return_inverse=True)
        index = index * patterns.shape[0] + array(pattern.reshape(y.shape[:2]))
        return cls(y, (~patterns).numpy().astype(float), index)


class ReducedRecording(torch.autograd.Function):
    """Computes the tables; its gradient is the exact one, with the reference held fixed: nothing depends on it."""

    @staticmethod
    def forward(
        ctx: Any, bins: Bins, weight: Tensor, variance: Tensor, offset: Tensor, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return (reference, shift, linear, constant, gain, scale, metric).

        Args:
            ctx: of torch.
            bins: the recording.
            weight: C, `features x rank`.
            variance: the diagonal of S, `features`.
            offset: d, `features` or `trials x time x features`.
            factors: L of each covariance, `rank x rank`.
        """
        y, rank = bins.y, weight.shape[1]
        number = y.dtype.type
        transposed, variances = array(weight.mT), array(variance)
        factor = np.stack([array(each) for each in factors]).astype(float)
        scaled = transposed / variances
        offsets = array(offset)
        offsets = offsets.reshape((1,) * (3 - offsets.ndim) + offsets.shape)
        found = condition_all(factor, transposed.astype(float), variances.astype(float), bins.present)
        gram, regression, posterior, shrink, _, _, _, normaliser = found
        by_table = tuple(each.astype(y.dtype) for each in (regression, shrink, posterior, normaliser))
        vectors = [np.empty((*y.shape[:2], rank), y.dtype) for _ in range(4)]
        constant, remainder = np.empty(y.shape[:2], y.dtype), np.empty_like(y)
        _reduce_bins(
            *((number(0),) * rank, y, offsets, bins.index, (transposed, scaled, number(1) / variances), by_table),
            *(tuple(vectors), constant, remainder),
        )
        ctx.bins, ctx.found, ctx.factor, ctx.by_table = bins, found, factor, by_table
        ctx.arrays = transposed, variances, offsets, vectors, remainder
        # The arrays may share their memory: this is how torch notices that a tensor was changed in between.
        ctx.save_for_backward(weight, variance, offset, *factors)
        reference, shift, linear, _ = map(torch.from_numpy, vectors)
        ctx.mark_non_differentiable(reference)
        gain = posterior @ np.concatenate([gram] * len(factors))
        tables = (torch.from_numpy(each.astype(y.dtype)) for each in (gain, found[5], found[4]))
        return reference, shift, linear, torch.from_numpy(constant), *tables

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, variance, offset and factors."""
        offset = ctx.saved_tensors[2]
        bins, (weight, variance, offsets, vectors, remainder) = ctx.bins, ctx.arrays
        grad_shift, grad_linear, grad_constant, *grad_tables = (array(grad) for grad in grad_outputs[1:])
        reference, _, _, projected = vectors
        zero = (weight.dtype.type(0),) * weight.shape[0]
        tables, grad_projected = len(ctx.by_table[1]), np.empty_like(projected)
        sums = tuple(np.zeros((tables, weight.shape[0], weight.shape[0])) for _ in range(2)) + (np.zeros(tables),)
        pull_back_bins(
            zero, bins.index, ctx.by_table, projected, (grad_shift, grad_linear, grad_constant), sums, grad_projected
        )
        grad_factor, grad_gram = pull_back_tables(
            ctx.factor, ctx.found, (*sums, *(grad.astype(float) for grad in grad_tables))
        )
        # Laid out so that the bins of one feature are neighbours in memory.
        flat = tuple(each.reshape(-1, each.shape[-1]).T.copy() for each in (remainder, grad_projected, reference))
        grads = np.zeros_like(weight), np.zeros_like(variance), np.zeros_like(variance)
        pull_back_features(zero, weight, variance, (*flat, grad_constant.reshape(-1)), grads)
        curved = np.einsum("pd,pij,jd->pid", bins.present, grad_gram + np.swapaxes(grad_gram, 1, 2), weight).sum(0)
        counted = sums[2].reshape(-1, len(bins.present)).sum(0) @ bins.present
        grad_weight = grads[0] + curved / variance
        grad_variance = grads[1] + (counted - 0.5 * (curved * weight).sum(0) / variance) / variance
        grad_offset = grads[2].reshape(offset.shape) if offset.dim() == 1 else np.zeros_like(offsets)
        if offset.dim() > 1:
            pull_back_offset(zero, weight, variance, (remainder, grad_projected, grad_constant), grad_offset)
        dtype = offset.dtype
        found = grad_weight.T, grad_variance, grad_offset, *grad_factor
        return None, *(torch.from_numpy(np.ascontiguousarray(grad)).to(dtype) for grad in found)
