"""The Gaussian filter's two loops over time, compiled: forward with quadratics, and back with the cotangents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import compiled, run_side_by_side
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO
from pyro_lowrank.dynamics.compiled.arrays import array, chunks, padded
from pyro_lowrank.dynamics.compiled.network import form_of, weights_of
from pyro_lowrank.dynamics.compiled.units import stepper
from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.kalman.gaussians import Cotangents, Gaussians, Start, Tables
from pyro_lowrank.kalman.likelihoods import Pulls


class CompiledLoops:
    """The loops of a network, trial by trial: what those of tensor operations return, up to rounding.

    Args:
        drift: the network at fixed parameter values.
        with_inputs: whether inputs will come.

    Raises:
        NoCompiledForm: if it has none.
    """

    def __init__(self, drift: Drift, *, with_inputs: bool) -> None:
        self._form = form_of(drift, with_inputs=with_inputs)
        assert isinstance(drift, Network)
        self._weights = weights_of(drift, self._form)

    def forward(self, start: Start, pulls: Pulls) -> Gaussians:
        """Filter with a quadratic in place of each time bin's log likelihood."""
        trials, bins, rank = pulls.reference.shape
        quadratics = [array(each) for each in (pulls.reference, pulls.score, pulls.information)]
        quadratics.append(self._table(pulls.fallback, (trials, 0, rank, rank)))
        fixed = array(start.root), array(start.noise_root)
        first, v = array(start.mean), self._table(start.v if self._form.inputs else None, (trials, bins, 0))
        last = np.full(trials, bins) if start.last is None else start.last.numpy()
        square = (rank, rank)
        sizes = ((bins, rank), (bins, *square), (bins, rank), (bins, *square), (bins - 1, *square), (bins,))
        found = [np.empty((trials, *size), first.dtype) for size in sizes]
        step = stepper(self._form)

        def run(rows: slice) -> None:
            cut = [each[rows] for each in (first, v, last, *quadratics, *found)]
            _forward(step, self._weights, *fixed, *cut)

        self._run(run, trials, bins)
        mean, root, predicted, predicted_root, jacobian, cost = (torch.from_numpy(each) for each in found)
        return Gaussians(mean, root, predicted, predicted_root, jacobian, start.noise_root, cost)

    def back(self, tables: Tables) -> Cotangents:
        """Return the cotangents of each step."""
        trials, bins, rank = tables.score.shape
        square, later = (rank, rank), bins - 1
        given = [array(each) for each in (tables.sigma, tables.gain, tables.score, tables.direct)]
        given += [self._table(tables.third, (trials, bins, 0, rank)), array(tables.jacobian), array(tables.spread)]
        given.append(padded(tables.score.new_empty(trials, later, 0) if tables.bend is None else tables.bend))
        sizes = ((bins, rank), (bins, *square), (later, *square), (bins, rank), (bins, *square))
        found = [np.empty((trials, *size), given[0].dtype) for size in sizes]
        self._run(lambda rows: _back(self._weights, *(each[rows] for each in (*given, *found))), trials, bins)
        return Cotangents(*(torch.from_numpy(each) for each in found))

    def _table(self, tensor: Tensor | None, shape: tuple[int, ...]) -> Any:
        """Return an array, one of nothing where there is no tensor."""
        return np.empty(shape, self._form.dtype) if tensor is None else array(tensor)

    def _run(self, run: Callable[[slice], None], trials: int, bins: int) -> None:
        work = trials * bins * self._weights.bias.size * self._form.rank
        run_side_by_side([partial(run, rows) for rows in chunks(trials, work)])


@compiled(inner=True, allocates=False)
def _product(a: Any, b: Any, found: Any, start: Any) -> None:
    """Write the product of two matrices into the columns from `start` on."""
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = ZERO * a[0, 0]
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            found[i, start + j] = total


@compiled(inner=True, allocates=False)
def _triangular(wide: Any, found: Any) -> None:
    """Write the lower-triangular L with L L^T = A A^T, by Gram and Schmidt on the rows of A, which it spoils."""
    rank, columns = wide.shape
    for i in range(rank):
        square = ZERO * wide[0, 0]
        for c in range(columns):
            square += wide[i, c] * wide[i, c]
        length = np.sqrt(square)
        scale = ONE / length if length > ZERO else ZERO * length
        found[i, i] = length
        for c in range(columns):
            wide[i, c] *= scale
        for j in range(i + 1, rank):
            along = ZERO * square
            for c in range(columns):
                along += wide[i, c] * wide[j, c]
            for c in range(columns):
                wide[j, c] -= along * wide[i, c]
            found[j, i], found[i, j] = along, ZERO


@compiled(inner=True, allocates=False)
def _factorise(matrix: Any) -> Any:
    """Write the Cholesky factor over the lower triangle of a matrix; return whether there is one."""
    rank = matrix.shape[0]
    for j in range(rank):
        for i in range(j, rank):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i > j:
                matrix[i, j] = total / matrix[j, j]
            elif total > ZERO:
                matrix[j, j] = np.sqrt(total)
            else:
                return False
    return True


@compiled(inner=True, allocates=False)
def _precision(root: Any, information: Any, weighed: Any, factor: Any) -> Any:
    """Write G L and the factor of I + L^T G L; return whether there is one."""
    _product(information, root, weighed, 0)
    rank = root.shape[0]
    for i in range(rank):
        for j in range(i + 1):
            factor[i, j] = ONE if i == j else ZERO
            for k in range(rank):
                factor[i, j] += root[k, i] * weighed[k, j]
    return _factorise(factor)


@compiled(inner=True, allocates=False)
def _condition(
    mean: Any, root: Any, reference: Any, score: Any, weighed: Any, factor: Any, eta: Any, found: Any, found_root: Any
) -> Any:
    """Write mean and root given a bin's data, and return the cost, from the factor of the precision."""
    rank, cost = mean.shape[0], ZERO * mean[0]
    for i in range(rank):
        total = ZERO * cost
        for k in range(rank):
            total += root[k, i] * score[k] - weighed[k, i] * (mean[k] - reference[k])
        for k in range(i):
            total -= factor[i, k] * eta[k]
        eta[i] = total / factor[i, i]
        cost += np.log(factor[i, i])
    for i in range(rank - 1, -1, -1):
        total = eta[i]
        for k in range(i + 1, rank):
            total -= factor[k, i] * eta[k]
        eta[i] = total / factor[i, i]
        cost += eta[i] * eta[i] / (ONE + ONE)
    for r in range(rank):
        total = mean[r]
        for k in range(rank):
            total += root[r, k] * eta[k]
        found[r] = total
        for i in range(rank):
            total = root[r, i]
            for k in range(i):
                total -= factor[i, k] * found_root[r, k]
            found_root[r, i] = total / factor[i, i]
    return cost


@compiled()
def _forward(
    step: Any,
    weights: Any,
    first_root: Any,
    noise_root: Any,
    first: Any,
    v: Any,
    last: Any,
    reference: Any,
    score: Any,
    information: Any,
    fallback: Any,
    mean: Any,
    root: Any,
    predicted: Any,
    predicted_root: Any,
    jacobian: Any,
    cost: Any,
) -> None:
    trials, bins, rank = mean.shape
    wide, eta = np.empty((rank, 2 * rank), mean.dtype), np.empty(rank, mean.dtype)
    weighed, factor = np.empty((rank, rank), mean.dtype), np.empty((rank, rank), mean.dtype)
    for b in range(trials):
        predicted[b, 0], predicted_root[b, 0] = first[b], first_root
        for t in range(bins):
            if t > 0:
                step(weights, mean[b, t - 1], v[b, t - 1], predicted[b, t], jacobian[b, t - 1])
                _product(jacobian[b, t - 1], root[b, t - 1], wide, 0)
                wide[:, rank:] = noise_root
                if t > last[b]:
                    predicted[b, t] = mean[b, t - 1]
                    wide[:, :rank], wide[:, rank:] = root[b, t - 1], ZERO
                _triangular(wide, predicted_root[b, t])
            here = predicted_root[b, t]
            peak = _precision(here, information[b, t], weighed, factor)
            if not peak and fallback.shape[1] > 0:
                peak = _precision(here, fallback[b, t], weighed, factor)
            if not peak:
                factor[:] = np.nan
            pulls = reference[b, t], score[b, t], weighed, factor, eta
            cost[b, t] = _condition(predicted[b, t], here, *pulls, mean[b, t], root[b, t])


@compiled(inner=True, allocates=False)
def _pull_back(weights: Any, bend: Any, grad: Any, found: Any) -> None:
    """Add the gradient of the latents, from that of the Jacobian of the step from them."""
    left, right, rank = weights.left, weights.right, grad.shape[0]
    for i in range(bend.shape[0]):
        total = ZERO * grad[0, 0]
        for r in range(rank):
            for d in range(rank):
                total += grad[r, d] * right[r, i] * left[d, i]
        total *= bend[i]
        for d in range(rank):
            found[d] += total * left[d, i]


@compiled(inner=True, allocates=False)
def _between(a: Any, b: Any, scratch: Any, found: Any) -> None:
    """Write A^T B A."""
    rank = a.shape[0]
    _product(b, a, scratch, 0)
    for i in range(rank):
        for j in range(rank):
            total = ZERO * a[0, 0]
            for k in range(rank):
                total += a[k, i] * scratch[k, j]
            found[i, j] = total


@compiled()
def _back(
    weights: Any,
    sigma: Any,
    gain: Any,
    score: Any,
    direct: Any,
    third: Any,
    jacobian: Any,
    spread: Any,
    bend: Any,
    mean: Any,
    covariance: Any,
    of_jacobian: Any,
    of_score: Any,
    information: Any,
) -> None:
    trials, bins, rank = score.shape
    half = ONE / (ONE + ONE)
    of_mean, back = np.empty(rank, score.dtype), np.empty(rank, score.dtype)
    of_covariance, scratch = np.empty((rank, rank), score.dtype), np.empty((rank, rank), score.dtype)
    for b in range(trials):
        of_mean[:], of_covariance[:] = ZERO, ZERO
        for t in range(bins - 1, -1, -1):
            s, k, a, seen = sigma[b, t], gain[b, t], score[b, t], information[b, t]
            _between(s, of_covariance, scratch, seen)
            for i in range(rank):
                for j in range(rank):
                    seen[i, j] = -half * s[i, j] - seen[i, j]
            for place in range(third.shape[2]):
                for d in range(rank):
                    of_mean[d] += seen[place // rank, place % rank] * third[b, t, place, d]
            for d in range(rank):
                back[d], of_score[b, t, d] = ZERO, ZERO
                for i in range(rank):
                    back[d] += of_mean[i] * k[i, d]
                    of_score[b, t, d] += of_mean[i] * s[i, d]
                mean[b, t, d] = back[d] + a[d]
            _between(k, of_covariance, scratch, covariance[b, t])
            for i in range(rank):
                for j in range(rank):
                    covariance[b, t, i, j] += half * (back[i] * a[j] + back[j] * a[i]) + direct[b, t, i, j]
            if t > 0:
                step = jacobian[b, t - 1]
                _product(covariance[b, t], spread[b, t - 1], of_jacobian[b, t - 1], 0)
                for i in range(rank):
                    of_mean[i] = ZERO
                    for j in range(rank):
                        of_jacobian[b, t - 1, i, j] *= ONE + ONE
                        of_mean[i] += mean[b, t, j] * step[j, i]
                _between(step, covariance[b, t], scratch, of_covariance)
                _pull_back(weights, bend[b, t - 1], of_jacobian[b, t - 1], of_mean)
