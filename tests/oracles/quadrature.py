"""The evidence of models with one latent, by quadrature on a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyro_lowrank as plr


@torch.no_grad()
def log_evidence_on_a_grid(
    model: plr.StateSpaceModel, y: Tensor, u: Tensor | None = None, *, half_width: float = 8.0, points: int = 601
) -> Tensor:
    """Return log p(y) of a model of rank 1, `trials`, by the trapezoid rule over the latent of every time bin.

    The grid's step should be at most half of the transition noise: the error is then that of kinks of the units, 1e-4.
    """
    if u is None:
        return _log_evidence(model, y, None, half_width, points)
    # What moves the latents differs from trial to trial.
    each = [_log_evidence(model, y[i : i + 1], u[i], half_width, points) for i in range(len(y))]
    return torch.cat(each)


def _log_evidence(model: plr.StateSpaceModel, y: Tensor, u: Tensor | None, half_width: float, points: int) -> Tensor:
    """Of trials with the same inputs, `time x inputs` or None."""
    dynamics, observation = model.dynamics, model.observation
    z = torch.linspace(-half_width, half_width, points, dtype=y.dtype).unsqueeze(-1)
    step = 2 * half_width / (points - 1)
    transition = dynamics.transition()
    first = torch.distributions.Normal(
        transition.first_mean(None if u is None else u[0]), dynamics.initial_covariance.sqrt()[0]
    )
    density, total = first.log_prob(z).exp(), torch.zeros(len(y), dtype=y.dtype)
    kernel = None
    for time, y_t in enumerate(y.unbind(1)):
        v = None if u is None else u[time]
        if time:
            if kernel is None or u is not None:
                mean = dynamics(z, None if u is None else u[time - 1].expand(points, -1))
                kernel = step * _density_around(dynamics, mean.mT).log_prob(z).exp()
            density = kernel @ density
        there = ~y_t.isnan()
        # Points x trials x features.
        entries = _log_prob_of_entries(observation.distribution(z.unsqueeze(-2), v), y_t.nan_to_num(nan=0.0))
        weighted = density * (entries * there).sum(-1).exp()
        evidence = step * weighted.sum(0)
        total, density = total + evidence.log(), weighted / evidence
    return total


def _density_around(dynamics: Any, mean: Tensor) -> torch.distributions.Distribution:
    """The transition density, of Gaussian noise or of Student-t noise of the same parameters."""
    if not dynamics.heavy_tailed:
        return torch.distributions.Normal(mean, dynamics.noise_covariance.sqrt())
    scale = dynamics.noise_scale.reshape(-1)[:1]
    return torch.distributions.StudentT(dynamics.noise_freedom, mean, scale)


def _log_prob_of_entries(distribution: Any, y_t: Tensor) -> Tensor:
    """Log density of each feature; of the parts of a joint observation model, one after the other."""
    parts = getattr(distribution, "parts", (distribution,))
    pieces = y_t.split([part.event_shape[0] for part in parts], -1)
    return torch.cat([part.base_dist.log_prob(piece) for part, piece in zip(parts, pieces, strict=True)], -1)
