"""The exact posterior of a linear-Gaussian model, by conditioning one large Gaussian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import linear_system


class Posterior(NamedTuple):
    """Means, `trials x time x rank`, and the covariance of all latents of a trial, `time * rank` squared."""

    mean: Tensor
    covariance: Tensor


@torch.no_grad()
def smooth(model: plr.StateSpaceModel, y: Tensor) -> Posterior:
    """Return p(z | y) of a model with `identity` activation and no inputs, for a complete recording."""
    num_trials, num_steps, _ = y.shape
    system = linear_system(model, num_steps)
    rank = system.transition.shape[0]
    # z = propagate (noise + offsets): block (t, s) is the transition matrix to the power t - s.
    powers = [torch.linalg.matrix_power(system.transition, k) for k in range(num_steps)]
    zero = torch.zeros_like(powers[0])
    rows = [torch.cat([powers[t - s] if s <= t else zero for s in range(num_steps)], 1) for t in range(num_steps)]
    propagate = torch.cat(rows)
    noise = torch.block_diag(system.initial_noise, *[system.noise] * (num_steps - 1))
    offsets = torch.cat([system.initial_mean.reshape(1, rank), system.transition_offset[0, 1:]]).flatten()
    mean, covariance = propagate @ offsets, propagate @ noise @ propagate.mT
    readout = torch.block_diag(*[system.readout] * num_steps)
    spread = readout @ covariance @ readout.mT + torch.block_diag(*[system.readout_noise] * num_steps)
    gain = covariance @ readout.mT @ torch.linalg.inv(spread)
    residual = (y - system.readout_offset[0]).flatten(1) - readout @ mean
    means = mean + residual @ gain.mT
    return Posterior(means.reshape(num_trials, num_steps, rank), covariance - gain @ readout @ covariance)
