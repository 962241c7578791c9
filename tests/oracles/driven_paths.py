"""A nonlinear network of rank 1 seen through linear systems: evidence by quadrature over all paths of a few bins."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.driven import DrivenEmission


class Paths(NamedTuple):
    """All paths of a grid, and what they weigh.

    Attributes:
        z: latents, `paths x time`.
        log_joint: log p(z, y) of each path with the volume that it stands for, `paths`.
    """

    z: Tensor
    log_joint: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """Log p(y), differentiable in the parameters."""
        return self.log_joint.logsumexp(0)

    def mean(self, values: Tensor) -> Tensor:
        """Return what values, `paths x ...`, are expected to be given the recording."""
        return torch.einsum("p,p...->...", (self.log_joint - self.log_evidence).exp(), values)


def all_paths(model: plr.StateSpaceModel, y: Tensor, *, points: int, reach: float) -> Paths:
    """Return the paths of one trial, `time x features`, NaN where missing.

    Args:
        model: of rank 1.
        y: the recording.
        points: of the grid, for each bin.
        reach: the grid goes from minus to plus this.
    """
    dynamics, emission = model.dynamics, model.bind().emission
    assert isinstance(emission, DrivenEmission)
    steps = len(y)
    grid = torch.linspace(-reach, reach, points, dtype=y.dtype)
    next_mean = dynamics(grid.unsqueeze(-1)).squeeze(-1)
    first = torch.distributions.Normal(dynamics.initial_mean[0], dynamics.initial_covariance[0, 0].sqrt())
    moved = torch.distributions.Normal(next_mean.unsqueeze(-1), dynamics.noise_covariance[0, 0].sqrt())
    step, start = moved.log_prob(grid), first.log_prob(grid)
    index = torch.cartesian_prod(*[torch.arange(points)] * steps).reshape(-1, steps)
    log_prior = start[index[:, 0]] + sum(step[index[:, t - 1], index[:, t]] for t in range(1, steps))
    driven = emission.drive(grid.unsqueeze(-1))  # points x features
    found = log_prior + steps * torch.log(grid[1] - grid[0])
    for feature in range(y.shape[-1]):
        found = found + _log_likelihood(emission, driven[:, feature][index], y[:, feature], feature)
    return Paths(grid[index], found)


def _log_likelihood(emission: DrivenEmission, driven: Tensor, y: Tensor, feature: int) -> Tensor:
    """Return log p(y | path) of a feature, `paths`: one Gaussian over the bins that are there, written out."""
    memory, steps = emission.memory, len(y)
    a, b, h = memory.transition[feature], memory.drive[feature], memory.readout[feature]
    powers = [torch.linalg.matrix_power(a, k) for k in range(steps + 1)]
    responses = torch.stack([h @ powers[k] @ b for k in range(steps)])
    # Whatever is added to a state shows in all bins after it.
    mean = torch.stack(
        [memory.baseline[feature] + h @ powers[t + 1] @ memory.before_mean[feature] for t in range(steps)]
    )
    rows = [[powers[t - s] if s <= t else 0 * a for s in range(steps)] for t in range(steps)]
    covariance = memory.variance[feature] * torch.eye(steps, dtype=y.dtype)
    for t in range(steps):
        for r in range(steps):
            own = sum(rows[t][s] @ memory.noise[feature] @ rows[r][s].mT for s in range(steps))
            before = powers[t + 1] @ memory.before_covariance[feature] @ powers[r + 1].mT
            place = torch.zeros_like(covariance)
            place[t, r] = 1.0
            covariance = covariance + place * (h @ (own + before) @ h)
    kernel = torch.stack(
        [torch.cat([responses[: t + 1].flip(0), responses.new_zeros(steps - t - 1)]) for t in range(steps)]
    )
    expected = mean + driven @ kernel.mT + memory.through[feature] * driven
    there = ~y.isnan()
    law = torch.distributions.MultivariateNormal(torch.zeros_like(y[there]), covariance[there][:, there])
    return law.log_prob(y[there] - expected[:, there])
