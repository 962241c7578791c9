"""Loops over the time bins and features of a recording for `reduction`, in the letters used there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.conditional import (
    condition,
    gram_of,
    log_noise_of,
    pull_back_condition,
    regression_of,
)
from pyro_lowrank.smc.compiled.matrices import add_to


@compiled()
def any_missing(y: Any) -> Any:
    """Return whether any entry of a recording is NaN."""
    for b in range(y.shape[0]):
        for t in range(y.shape[1]):
            missing = False
            for d in range(y.shape[2]):
                missing |= y[b, t, d] != y[b, t, d]
            if missing:
                return True
    return False


@compiled()
def condition_all(factor: Any, weight: Any, variance: Any, present: Any) -> Any:
    """Return G of each pattern; of each table (covariances x patterns) regression, P, T, A, factor of P, normaliser,
    and log det(I + G Q) before it.

    Everything is float64: L `covariances x rank x rank`, C^T `rank x features`, variances `features`, and 1 or 0 where
    `patterns x features` are present or missing.
    """
    gram, log_noise = gram_of(weight, variance, present), log_noise_of(variance, present)
    regression = regression_of(gram)
    patterns, rank = gram.shape[0], gram.shape[1]
    tables = factor.shape[0] * patterns
    matrices = np.zeros((5, tables, rank, rank))
    log_dets, normalisers = np.empty(tables), np.empty(tables)
    for i in range(tables):
        pattern = i % patterns
        posterior, shrink, metric, scale, log_dets[i] = condition(factor[i // patterns], gram[pattern])
        normalisers[i] = log_dets[i] + log_noise[pattern]
        add_to(matrices[0, i], regression[pattern])
        add_to(matrices[1, i], posterior)
        add_to(matrices[2, i], shrink)
        add_to(matrices[3, i], metric)
        add_to(matrices[4, i], scale)
    return gram, matrices[0], matrices[1], matrices[2], matrices[3], matrices[4], log_dets, normalisers


@compiled()
def pull_back_tables(factor: Any, found: Any, grads: Any) -> Any:
    """Return the gradients of L `covariances x rank x rank` and G `patterns x rank x rank`.

    Args:
        factor: L.
        found: what `condition_all` returned.
        grads: of P, T and the normaliser, as `pull_back_bins` left them; of gain, scale and metric.
    """
    gram, _, posteriors, shrinks, metrics, scales, log_dets, _ = found
    grad_posterior, grad_shrink, grad_normaliser, grad_gain, grad_scale, grad_metric = grads
    patterns = gram.shape[0]
    rank = gram.shape[1]
    grad_factor, grad_gram = np.zeros((factor.shape[0], rank, rank)), np.zeros((patterns, rank, rank))
    for i in range(posteriors.shape[0]):
        n, pattern = i // patterns, i % patterns
        grad_l, grad_g = pull_back_condition(
            factor[n],
            gram[pattern],
            (posteriors[i], shrinks[i], metrics[i], scales[i], log_dets[i]),
            (grad_posterior[i], grad_shrink[i], grad_metric[i], grad_scale[i], grad_normaliser[i], grad_gain[i]),
        )
        add_to(grad_factor[n], grad_l)
        add_to(grad_gram[pattern], grad_g)
    return grad_factor, grad_gram


@compiled(fastmath=FAST, inline=True)
def _apply(zero: Any, matrices: Any, i: Any, seen: Any) -> Any:
    """Return the product of a matrix and a vector, a tuple."""
    result = zero
    for r in range(len(zero)):
        total = ZERO * seen[0]
        for j in range(len(zero)):
            total += matrices[i, r, j] * seen[j]
        result = tuple_setitem(result, r, total)
    return result


@compiled(fastmath=FAST)
def reduce_bins(
    zero: Any, y: Any, offset: Any, index: Any, features: Any, by_table: Any, vectors: Any, constant: Any, rest: Any
) -> None:
    """Write the tables of each time bin.

    Args:
        zero: as many zeros as there are latents.
        y: NaN where missing, `trials x time x features`.
        offset: d, of the same shape, or 1 in place of trials and time.
        index: of each time bin's table, `trials x time`.
        features: (C^T, C^T S^{-1}, diagonal of S^{-1}), `rank x features` and `features`.
        by_table: (regression, T, P, normaliser) of each table.
        vectors: reference, shift, linear and p, `trials x time x rank`, written to.
        constant: `trials x time`, written to.
        rest: e, shaped as y, written to; NaN where missing.
    """
    weight, scaled, precision = features
    regression, shrink, posterior, normaliser = by_table
    references, shifts, linears, projected = vectors
    for b in range(y.shape[0]):
        for t in range(y.shape[1]):
            i, trial, bin_ = index[b, t], min(b, offset.shape[0] - 1), min(t, offset.shape[1] - 1)
            seen = zero
            for d in range(y.shape[2]):
                e = y[b, t, d] - offset[trial, bin_, d]
                e = e if e == e else zero[0]
                for r in range(len(zero)):
                    seen = tuple_setitem(seen, r, seen[r] + scaled[r, d] * e)
            reference = _apply(zero, regression, i, seen)
            seen, quadratic = zero, zero[0]
            for d in range(y.shape[2]):
                e = y[b, t, d] - offset[trial, bin_, d]
                for r in range(len(zero)):
                    e -= weight[r, d] * reference[r]
                rest[b, t, d] = e
                e = e if e == e else zero[0]
                quadratic += precision[d] * e * e
                for r in range(len(zero)):
                    seen = tuple_setitem(seen, r, seen[r] + scaled[r, d] * e)
            shift, linear = _apply(zero, posterior, i, seen), _apply(zero, shrink, i, seen)
            quadratic += normaliser[i]
            for r in range(len(zero)):
                references[b, t, r], projected[b, t, r] = reference[r], seen[r]
                shifts[b, t, r], linears[b, t, r] = shift[r], linear[r]
                quadratic -= seen[r] * shift[r]
            constant[b, t] = -HALF * quadratic


@compiled(fastmath=FAST)
def pull_back_bins(
    zero: Any, index: Any, by_table: Any, projected: Any, grads: Any, sums: Any, grad_projected: Any
) -> None:
    """Write the gradient of p, and add up those of P, T and the normaliser over the time bins of each table.

    Args:
        zero: as many zeros as there are latents.
        index: of each time bin's table, `trials x time`.
        by_table: as for `reduce_bins`.
        projected: p, `trials x time x rank`.
        grads: of (shift, linear, constant).
        sums: gradients of (P, T, normaliser), added to, float64.
        grad_projected: written to.
    """
    _, shrink, posterior, _ = by_table
    grad_shift, grad_linear, grad_constant = grads
    grad_posterior, grad_shrink, grad_normaliser = sums
    for b in range(index.shape[0]):
        for t in range(index.shape[1]):
            i, grad = index[b, t], grad_constant[b, t]
            grad_normaliser[i] -= HALF * grad
            for j in range(len(zero)):
                total, p = zero[0], projected[b, t, j]
                for r in range(len(zero)):
                    explained = grad * projected[b, t, r]
                    total += posterior[i, r, j] * (grad_shift[b, t, r] + explained)
                    total += shrink[i, r, j] * grad_linear[b, t, r]
                    grad_posterior[i, r, j] += (grad_shift[b, t, r] + HALF * explained) * p
                    grad_shrink[i, r, j] += grad_linear[b, t, r] * p
                grad_projected[b, t, j] = total


@compiled(fastmath=FAST)
def pull_back_features(zero: Any, weight: Any, variance: Any, bins: Any, grads: Any) -> None:
    """Add up, over the time bins, the gradients of C^T, the variances and a shared offset, apart from those through G.

    Args:
        zero: as many zeros as there are latents.
        weight: C^T, `rank x features`.
        variance: `features`.
        bins: (e `features x bins`, NaN where missing; gradient of p and reference, `rank x bins`; gradient of the
            constant, `bins`).
        grads: of (C^T, variance, d), added to.
    """
    rest, grad_projected, reference, grad_constant = bins
    grad_weight, grad_variance, grad_offset = grads
    for d in range(rest.shape[0]):
        precision, row = ONE / variance[d], zero
        for r in range(len(zero)):
            row = tuple_setitem(row, r, weight[r, d])
        product, moved, total, square = zero, zero, zero[0], zero[0]
        for m in range(rest.shape[1]):
            e, pulled = rest[d, m], zero[0]
            here = e == e
            e = e if here else zero[0]
            for r in range(len(zero)):
                pulled += row[r] * grad_projected[r, m]
                product = tuple_setitem(product, r, product[r] + e * grad_projected[r, m])
            pulled = (pulled if here else zero[0]) - grad_constant[m] * e
            total += pulled
            square += grad_constant[m] * e * e
            for r in range(len(zero)):
                moved = tuple_setitem(moved, r, moved[r] + pulled * reference[r, m])
        grad_precision = -HALF * square
        for r in range(len(zero)):
            grad_weight[r, d] += precision * (product[r] - moved[r])
            grad_precision += row[r] * product[r]
        grad_variance[d] -= grad_precision * precision * precision
        grad_offset[d] -= total * precision


@compiled(fastmath=FAST)
def pull_back_offset(zero: Any, weight: Any, variance: Any, bins: Any, grad_offset: Any) -> None:
    """Write the gradient of d where each time bin has its own; arguments as for `pull_back_features`, bins first."""
    rest, grad_projected, grad_constant = bins
    for b in range(rest.shape[0]):
        for t in range(rest.shape[1]):
            for d in range(rest.shape[2]):
                e, pulled = rest[b, t, d], -grad_constant[b, t] * rest[b, t, d]
                for r in range(len(zero)):
                    pulled += weight[r, d] * grad_projected[b, t, r]
                grad_offset[b, t, d] = -pulled / variance[d] if e == e else zero[0]
