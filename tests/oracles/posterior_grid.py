"""The posterior of two parameters of a linear-Gaussian model of rank 1, from its exact evidence on a dense grid."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import linear_model, linear_system

NAMES = ("dynamics.decay", "dynamics.noise_scale")


def priors(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Return the priors of the two parameters, of shapes () and (1, 1)."""
    one = torch.ones((), dtype=dtype)
    return {
        "dynamics.decay": dist.Beta(6 * one, 3 * one),
        "dynamics.noise_scale": dist.LogNormal(-one.expand(1, 1), 0.5 * one).to_event(2),
    }


def model_and_data(trials: int, steps: int, dtype: torch.dtype = torch.float64) -> tuple[plr.StateSpaceModel, Tensor]:
    """Return a model whose parameters are fixed yet, and a recording with a gap and a shorter trial."""
    model = linear_model(rank=1, features=2, noise_scale=0.5, dtype=dtype)
    y = model.simulate(trials, steps).y
    y[0, 2, 1] = torch.nan
    y[-1, -2:] = torch.nan
    return model, y


def put_priors(model: plr.StateSpaceModel) -> None:
    """Give the two parameters their priors."""
    found = priors(model.dynamics.left.dtype)
    model.dynamics.decay = PyroSample(found["dynamics.decay"])
    model.dynamics.noise_scale = PyroSample(found["dynamics.noise_scale"])


@torch.no_grad()
def log_evidence(model: plr.StateSpaceModel, y: Tensor, decay: Tensor, scale: Tensor) -> Tensor:
    """Return log p(y), summed over trials, at decays and noise scales of one shape, by a scalar Kalman filter."""
    system = linear_system(model, y.shape[1])
    coupling = (model.dynamics.right @ model.dynamics.left).squeeze()
    weight, offset = system.readout[:, 0], system.readout_offset[0, 0]
    variance, shift = system.readout_noise.diagonal(), system.transition_offset[0, 1, 0]
    total = torch.zeros_like(decay)
    for trial in y:
        mean = system.initial_mean.reshape(-1)[0].expand_as(decay)
        spread = system.initial_noise[0, 0].expand_as(decay)
        for t, y_t in enumerate(trial):
            if t:
                growth = decay + coupling
                mean, spread = growth * mean + shift, growth.square() * spread + scale.square()
            # One feature after the other: they are independent given the latent.
            for i in (~y_t.isnan()).nonzero().flatten():
                predicted = weight[i].square() * spread + variance[i]
                residual = y_t[i] - offset[i] - weight[i] * mean
                total = total - 0.5 * (residual.square() / predicted + (2 * math.pi * predicted).log())
                gain = weight[i] * spread / predicted
                mean, spread = mean + gain * residual, spread * (1 - gain * weight[i])
    return total


class Moments(NamedTuple):
    """The mean of a parameter, its variance, and the standard deviation of the squared distance from the mean."""

    mean: float
    variance: float
    spread: float


def exact_moments(model: plr.StateSpaceModel, y: Tensor, size: int = 150) -> dict[str, Moments]:
    """Return the posterior moments of each parameter, from a grid of `size` squared points."""
    prior = priors(y.dtype)
    edge = torch.linspace(0, 1, size + 2, dtype=y.dtype)[1:-1]
    log_scale = torch.linspace(-4.0, 2.0, size, dtype=y.dtype)
    decay, scale = torch.meshgrid(edge, log_scale.exp(), indexing="ij")
    log_density = log_evidence(model, y, decay, scale) + scale.log()
    log_density = log_density + prior["dynamics.decay"].log_prob(decay)
    log_density = log_density + prior["dynamics.noise_scale"].log_prob(scale[..., None, None])
    weight = torch.softmax(log_density.flatten(), 0).reshape(size, size)
    # Nothing is cut off at the edges of the grid.
    assert max(weight[:, [0, -1]].sum(), weight[[0, -1]].sum()) < 1e-4
    found = {}
    for name, value in zip(NAMES, (decay, scale), strict=True):
        mean = (weight * value).sum()
        square = (value - mean).square()
        variance = (weight * square).sum()
        spread = (weight * (square - variance).square()).sum().sqrt()
        found[name] = Moments(mean.item(), variance.item(), spread.item())
    return found
