"""Linear-Gaussian models, for which everything is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_lowrank as plr


def linear_model(
    *,
    rank: int = 2,
    features: int = 4,
    inputs: int = 0,
    dtype: torch.dtype = torch.float64,
    noise_scale: float = 0.5,
    **noise: Any,
) -> plr.StateSpaceModel:
    """Build a model that is linear, stable and has no symmetry a bug could hide behind."""
    dynamics = plr.LowRankRNN(
        rank=rank, units=7, activation="identity", inputs=inputs, decay=0.7, noise_scale=0.4, dtype=dtype
    )
    observation = plr.GaussianObservation(
        rank=rank, features=features, inputs=inputs, noise_scale=noise_scale, dtype=dtype, **noise
    )
    model = plr.StateSpaceModel(dynamics, observation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        # Eigenvalues of at most 0.9 in size, whatever was drawn.
        transition = dynamics.decay * torch.eye(rank, dtype=dtype) + dynamics.right @ dynamics.left
        growth = torch.linalg.eigvals(transition).abs().max()
        dynamics.right.copy_((dynamics.right + dynamics.decay * torch.linalg.pinv(dynamics.left)) * 0.9 / growth)
        dynamics.right.sub_(dynamics.decay * torch.linalg.pinv(dynamics.left))
    return model


@dataclass(frozen=True)
class LinearSystem:
    """z_t = A z_{t-1} + b_t + noise(Q), z_1 ~ N(m, P), y_t = C z_t + d_t + noise(S); offsets `trials x time x ...`."""

    transition: Tensor
    transition_offset: Tensor
    noise: Tensor
    initial_mean: Tensor
    initial_noise: Tensor
    readout: Tensor
    readout_offset: Tensor
    readout_noise: Tensor


def linear_system(model: plr.StateSpaceModel, num_steps: int, u: Tensor | None = None) -> LinearSystem:
    """Read the matrices off a model with `identity` activation, differentiably, from its definition."""
    d, o = model.dynamics, model.observation
    assert isinstance(d, plr.LowRankRNN)
    v = torch.zeros(1, num_steps, 0, dtype=d.left.dtype) if u is None else u
    before = torch.cat([torch.zeros_like(v[:, :1]), v[:, :-1]], 1)
    to_latents = torch.linalg.pinv(d.left) @ d.input_weights
    input_readout = getattr(o.readout, "input_weight", torch.zeros(o.features, v.shape[-1], dtype=v.dtype))
    return LinearSystem(
        transition=d.decay * torch.eye(d.rank, dtype=d.left.dtype) + d.right @ d.left,
        transition_offset=(before @ d.input_weights.mT - d.bias) @ d.right.mT,
        noise=d.noise_covariance,
        initial_mean=d.initial_mean + v[:, 0] @ to_latents.mT,
        initial_noise=d.initial_covariance,
        readout=o.readout.weight,
        readout_offset=v @ input_readout.mT + o.readout.bias,
        readout_noise=o.noise_covariance,
    )


def exact_log_evidence(model: plr.StateSpaceModel, y: Tensor, u: Tensor | None = None) -> Tensor:
    """Return log p(y) per trial by Pyro's GaussianHMM, differentiably.

    The HMM observes after a transition, the model before one: the HMM's first transition forgets its state and draws
    the first latent.
    """
    num_steps = y.shape[-2]
    s = linear_system(model, num_steps, u)
    rank = s.transition.shape[0]
    matrices = s.transition.mT.expand(num_steps, rank, rank).clone()
    matrices[0] = 0.0
    batch = s.transition_offset.shape[0]
    loc = torch.cat([s.initial_mean.expand(batch, rank)[:, None], s.transition_offset[:, 1:]], 1)
    covariance = torch.cat([s.initial_noise[None], s.noise.expand(num_steps - 1, rank, rank)])
    eye = torch.eye(rank, dtype=y.dtype)
    hmm = dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros(rank, dtype=y.dtype), eye),
        matrices,
        dist.MultivariateNormal(loc, covariance),
        s.readout.mT,
        dist.MultivariateNormal(s.readout_offset, s.readout_noise),
    )
    return hmm.log_prob(y)


@dataclass(frozen=True)
class Filtered:
    """Exact filtering means, `trials x time x rank`, covariances, and increments of the evidence, `time x trials`."""

    mean: Tensor
    covariance: Tensor
    increments: Tensor


@torch.no_grad()
def kalman_filter(model: plr.StateSpaceModel, y: Tensor, u: Tensor | None = None) -> Filtered:
    """Filter trial by trial with textbook formulas, dropping the rows of missing features."""
    s = linear_system(model, y.shape[-2], u)
    trials = y.shape[0]
    initial_means = s.initial_mean.expand(trials, -1)
    transition_offsets, readout_offsets = (x.expand(trials, -1, -1) for x in (s.transition_offset, s.readout_offset))
    means, covariances, increments = [], [], []
    for trial, recording in enumerate(y):
        mean, covariance = initial_means[trial], s.initial_noise
        for time, y_t in enumerate(recording):
            if time:
                mean = s.transition @ mean + transition_offsets[trial, time]
                covariance = s.transition @ covariance @ s.transition.mT + s.noise
            seen = ~y_t.isnan()
            c, noise = s.readout[seen], s.readout_noise[seen][:, seen]
            residual = y_t[seen] - c @ mean - readout_offsets[trial, time][seen]
            spread = c @ covariance @ c.mT + noise
            gain = covariance @ c.mT @ torch.linalg.inv(spread)
            quadratic = residual @ torch.linalg.solve(spread, residual)
            normaliser = torch.linalg.slogdet(2 * torch.pi * spread)[1]
            increments.append(-0.5 * (quadratic + normaliser))
            mean, covariance = mean + gain @ residual, covariance - gain @ c @ covariance
            means.append(mean)
            covariances.append(covariance)
    shape = y.shape[:2]
    return Filtered(
        torch.stack(means).unflatten(0, shape),
        torch.stack(covariances).unflatten(0, shape),
        torch.stack(increments).unflatten(0, shape).mT,
    )
