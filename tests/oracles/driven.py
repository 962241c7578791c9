"""Linear dynamics seen through linear systems: one Gaussian over all latents, states and observations, as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.driven import DrivenEmission
from tests.oracles.linear import linear_model


def driven_model(
    kind: str, *, rank: int = 2, features: int = 3, dtype: torch.dtype = torch.float64
) -> plr.StateSpaceModel:
    """Build a linear model in general position whose observations remember the latents."""
    dynamics = linear_model(rank=rank, features=features, dtype=dtype).dynamics
    builders = {
        "second_order": lambda: plr.HaemodynamicObservation(
            rank=rank, features=features, bin_size=1.5, noise_scale=0.5, dtype=dtype
        ),
        "double_gamma": lambda: plr.HaemodynamicObservation(
            rank=rank, features=features, bin_size=2.0, response="double_gamma", noise_scale=0.5, dtype=dtype
        ),
        "coloured": lambda: plr.ColouredNoiseObservation(
            rank=rank, features=features, order=2, noise_scale=0.5, dtype=dtype
        ),
    }
    observation = builders[kind]()
    with torch.no_grad():
        for parameter in observation.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return plr.StateSpaceModel(dynamics, observation)


@dataclass(frozen=True)
class Joint:
    """Latents `time x rank`, states `time x features x order`, observations `time x features`: each a mean and rows.

    A number is its mean plus its row times independent standard normal numbers.
    """

    z: tuple[Tensor, Tensor]
    s: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]

    def evidence(self, y: Tensor) -> Tensor:
        """Return log p(y) of one trial, `time x features`, NaN where missing."""
        mean, rows = self.y
        there = ~y.isnan()
        rows = rows[there]
        covariance = rows @ rows.mT
        return torch.distributions.MultivariateNormal(mean[there], covariance).log_prob(y[there])

    def given(self, y: Tensor, what: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of something, flattened, given the recording of one trial."""
        there = ~y.isnan()
        seen = self.y[1][there]
        mean, rows = what[0].flatten(), what[1].flatten(0, -2)
        gain = torch.linalg.solve(seen @ seen.mT, seen @ rows.mT).mT
        return mean + gain @ (y[there] - self.y[0][there]), rows @ rows.mT - gain @ seen @ rows.mT


def joint_of(model: plr.StateSpaceModel, steps: int) -> Joint:
    """Return the law of all, differentiable in the parameters, from the definition of the model."""
    dynamics, emission = model.dynamics, model.bind().emission
    assert isinstance(dynamics, plr.LowRankRNN)
    assert isinstance(emission, DrivenEmission)
    memory, readout = emission.memory, emission.readout
    rank, (features, order) = dynamics.rank, memory.drive.shape
    eye = torch.eye(rank, dtype=dynamics.left.dtype)
    transition = dynamics.decay * eye + dynamics.right @ dynamics.left
    offset = -dynamics.right @ dynamics.bias
    sizes = [rank * steps, features * order, features * order * steps, features * steps]
    blocks = torch.eye(sum(sizes), dtype=eye.dtype).split(sizes)
    own = blocks[0].reshape(steps, rank, -1)
    jitter = 1e-12 * torch.eye(order, dtype=eye.dtype)
    state = memory.before_mean
    rows = torch.linalg.cholesky(memory.before_covariance + jitter) @ blocks[1].reshape(features, order, -1)
    noises = torch.linalg.cholesky(memory.noise + jitter) @ blocks[2].reshape(steps, features, order, -1)
    errors = memory.variance.sqrt().unsqueeze(-1) * blocks[3].reshape(steps, features, -1)
    found: list[list[Tensor]] = [[] for _ in range(6)]
    for t in range(steps):
        if t == 0:
            z = dynamics.initial_mean
            z_rows = torch.linalg.cholesky(dynamics.initial_covariance) @ own[t]
        else:
            z = transition @ z + offset
            z_rows = transition @ z_rows + torch.linalg.cholesky(dynamics.noise_covariance) @ own[t]
        driven, driven_rows = readout.weight @ z + readout.bias, readout.weight @ z_rows
        state = (memory.transition @ state.unsqueeze(-1)).squeeze(-1) + memory.drive * driven.unsqueeze(-1)
        rows = memory.transition @ rows + memory.drive.unsqueeze(-1) * driven_rows.unsqueeze(-2) + noises[t]
        y = memory.baseline + (memory.readout * state).sum(-1) + memory.through * driven
        y_rows = (memory.readout.unsqueeze(-1) * rows).sum(-2) + memory.through.unsqueeze(-1) * driven_rows + errors[t]
        for part, value in zip(found, (z, z_rows, state, rows, y, y_rows), strict=True):
            part.append(value)
    stacked = [torch.stack(part) for part in found]
    return Joint((stacked[0], stacked[1]), (stacked[2], stacked[3]), (stacked[4], stacked[5]))
