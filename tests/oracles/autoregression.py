"""Linear dynamics whose features remember their own past, by dense matrices and an augmented Kalman filter."""

from __future__ import annotations

import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import LinearSystem, linear_system


def autocovariance(coefficients: Tensor, num_steps: int) -> Tensor:
    """Return the covariance of so many bins of one stationary process with innovations of variance 1.

    By the Lyapunov equation of its companion matrix, and then its recursion.
    """
    order = len(coefficients)
    companion = torch.cat([coefficients[None], torch.eye(order, dtype=coefficients.dtype)[:-1]])
    noise = torch.zeros(order * order, dtype=coefficients.dtype)
    noise[0] = 1.0
    eye = torch.eye(order * order, dtype=coefficients.dtype)
    state = torch.linalg.solve(eye - torch.kron(companion, companion), noise).reshape(order, order)
    lags = list(state[0].unbind())
    while len(lags) < num_steps:
        lags.append((coefficients * torch.stack(lags[: -order - 1 : -1])).sum())
    index = torch.arange(num_steps)
    return torch.stack(lags[: max(num_steps, order)])[(index - index[:, None]).abs()]


def expected_of_own_past(deviation: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each bin given those before that are not NaN, `time` each: one feature."""
    covariance = autocovariance(coefficients, len(deviation))
    there = ~deviation.isnan()
    means, scales = [], []
    for t in range(len(deviation)):
        past = there[:t].nonzero().flatten()
        weights = torch.linalg.solve(covariance[past][:, past], covariance[past, t])
        means.append((weights * deviation[past]).sum())
        scales.append((covariance[t, t] - (weights * covariance[past, t]).sum()).sqrt())
    return torch.stack(means), torch.stack(scales)


def outlooks(model: plr.StateSpaceModel, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each entry's own past has expected of it, less the feature's mean, and how surely, as `y`."""
    coefficients, center = model.observation.autoregression.coefficients, model.observation.readout.bias
    found = [
        [expected_of_own_past(y[b, :, i] - center[i], coefficients[i]) for i in range(y.shape[2])]
        for b in range(len(y))
    ]
    mean, scale = (torch.stack([torch.stack([f[k] for f in row], -1) for row in found]) for k in (0, 1))
    return mean, scale


def exact_increments(model: plr.StateSpaceModel, y: Tensor) -> Tensor:
    """Return log p(y_t | y_{<t}), `time x trials`: each bin is Gaussian around what latents and own past expect."""
    s, o = linear_system(model, y.shape[1]), model.observation
    means, scales = outlooks(model, y)
    rows = []
    for trial, recording in enumerate(y):
        mean, covariance = s.initial_mean.reshape(-1), s.initial_noise
        row = []
        for t, y_t in enumerate(recording):
            if t:
                mean = s.transition @ mean + s.transition_offset[0, t]
                covariance = s.transition @ covariance @ s.transition.mT + s.noise
            there = ~y_t.isnan()
            scale = scales[trial, t][there]
            c = scale[:, None] * s.readout[there]
            noise = scale[:, None] * s.readout_noise[there][:, there] * scale
            residual = y_t[there] - o.readout.bias[there] - means[trial, t][there] - c @ mean
            spread = c @ covariance @ c.mT + noise
            gain = covariance @ c.mT @ torch.linalg.inv(spread)
            quadratic = residual @ torch.linalg.solve(spread, residual)
            row.append(-0.5 * (quadratic + torch.linalg.slogdet(2 * torch.pi * spread)[1]))
            mean, covariance = mean + gain @ residual, covariance - gain @ c @ covariance
        rows.append(torch.stack(row))
    return torch.stack(rows, 1)


def augmented_increments(model: plr.StateSpaceModel, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(y_t | y_{<t}), `time x trials`, and filtered means of latents, of recordings without gaps.

    By a Kalman filter of latents, this bin of all features and the bins before, of which the first is seen exactly.
    """
    s, o = linear_system(model, y.shape[1]), model.observation
    rank, features = s.transition.shape[0], y.shape[2]
    order = o.autoregression.order
    increments, filtered = [], []
    for recording in y:
        mean = torch.zeros(rank + features * order, dtype=y.dtype)
        covariance = torch.zeros(len(mean), len(mean), dtype=y.dtype)
        for t, y_t in enumerate(recording):
            mean, covariance = _moved(s, o, mean, covariance, t)
            seen = slice(rank, rank + features)
            spread = covariance[seen, seen]
            gain = covariance[:, seen] @ torch.linalg.inv(spread)
            residual = y_t - o.readout.bias - mean[seen]
            quadratic = residual @ torch.linalg.solve(spread, residual)
            increments.append(-0.5 * (quadratic + torch.linalg.slogdet(2 * torch.pi * spread)[1]))
            mean, covariance = mean + gain @ residual, covariance - gain @ covariance[seen]
            filtered.append(mean[:rank])
    return torch.stack(increments).unflatten(0, y.shape[:2]).mT, torch.stack(filtered).unflatten(0, y.shape[:2])


def _moved(s: LinearSystem, o: plr.Observation, mean: Tensor, covariance: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Predict the augmented state: latents, this bin, those before."""
    rank, features = s.transition.shape[0], len(s.readout)
    order, size = o.autoregression.order, len(mean)
    step, offset = torch.zeros(size, size, dtype=mean.dtype), torch.zeros(size, dtype=mean.dtype)
    step[:rank, :rank] = s.transition
    offset[:rank] = s.transition_offset[0, t]
    latents = s.noise
    if t == 0:
        step[:rank, :rank], offset[:rank], latents = 0.0, s.initial_mean.reshape(-1), s.initial_noise
    weights, scales = [], []
    for coefficients in o.autoregression.coefficients:
        known = min(t, order)
        gamma = autocovariance(coefficients, known + 1)
        weights.append(torch.linalg.solve(gamma[:known, :known], gamma[0, 1:]))
        scales.append((gamma[0, 0] - weights[-1] @ gamma[0, 1:]).sqrt())
    readout = torch.stack(scales)[:, None] * s.readout
    own = torch.arange(features)
    for lag in range(min(t, order)):
        step[rank + own, rank + lag * features + own] = torch.stack([w[lag] for w in weights])
    step[rank + own, :rank] = readout @ step[:rank, :rank].clone()
    offset[rank + own] = readout @ offset[:rank].clone()
    for lag in range(1, order):
        step[rank + lag * features + own, rank + (lag - 1) * features + own] = 1.0
    root = torch.zeros(size, rank + features, dtype=mean.dtype)
    root[:rank, :rank] = torch.linalg.cholesky(latents)
    root[rank + own, :rank] = readout @ root[:rank, :rank].clone()
    root[rank + own, rank:] = torch.stack(scales)[:, None] * torch.linalg.cholesky(s.readout_noise)
    return step @ mean + offset, step @ covariance @ step.mT + root @ root.mT
