"""The evidence of models with one latent, by quadrature on a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyro_lowrank as plr


@torch.no_grad()
def log_evidence_on_a_grid(
    model: plr.StateSpaceModel, y: Tensor, u: Tensor | None = None, *, half_width: float = 8.0, points: int = 2001
) -> Tensor:
    """Return log p(y) of a model of rank 1, `trials`, by the trapezoid rule over the latent of every time bin."""
    dynamics, observation = model.dynamics, model.observation
    z = torch.linspace(-half_width, half_width, points, dtype=y.dtype).unsqueeze(-1)
    step = 2 * half_width / (points - 1)
    totals = []
    for trial, recording in enumerate(y):
        inputs = None if u is None else u[trial]
        density, total = None, torch.zeros((), dtype=y.dtype)
        for time, y_t in enumerate(recording):
            v = None if inputs is None else inputs[time]
            if density is None:
                transition = dynamics.transition()
                mean = transition.first_mean(v)
                scale = dynamics.initial_covariance.sqrt()
                density = torch.distributions.Normal(mean, scale[0]).log_prob(z).exp().squeeze(-1)
            else:
                before = None if inputs is None else inputs[time - 1].expand(points, -1)
                mean = dynamics(z, before)
                kernel = _density_around(dynamics, mean.mT).log_prob(z).exp()
                density = step * kernel @ density
            there = ~y_t.isnan()
            entries = _log_prob_of_entries(observation.distribution(z, v), y_t.nan_to_num(nan=0.0))
            weighted = density * (entries * there).sum(-1).exp()
            evidence = step * weighted.sum()
            total, density = total + evidence.log(), weighted / evidence
        totals.append(total)
    return torch.stack(totals)


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
