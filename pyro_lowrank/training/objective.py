"""What a fit maximises: the particle filter's evidence, or that of the extended Kalman filter."""

from __future__ import annotations

from typing import Any

from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.training.recipe import Recipe

Objective = SMC_ELBO | EKFEvidence


def objective_of(
    elbo: Objective | None, num_particles: int | None, recipe: Recipe, model: Any, guide: Any
) -> Objective:
    """Return the objective that is asked for, or the particle filter's with as many particles as the recipe says."""
    if elbo is None:
        return SMC_ELBO(recipe.num_particles)
    if isinstance(elbo, EKFEvidence):
        elbo.check(model, guide)
        if num_particles is not None:
            raise ValueError(f"EKFEvidence has no particles, got num_particles={num_particles}: leave it out.")
        return elbo
    if not isinstance(elbo, SMC_ELBO):
        raise TypeError(f"`elbo` must be a SMC_ELBO, got {type(elbo).__name__}; an EKFEvidence serves too.")
    if num_particles is not None:
        raise ValueError(f"Pass `elbo` or `num_particles`, not both: the elbo has {elbo.num_particles} particles.")
    return elbo


def settings_of(elbo: Objective) -> dict[str, Any]:
    """Return, as JSON, what determines the numbers."""
    if isinstance(elbo, EKFEvidence):
        return {"objective": "EKFEvidence"}
    return {
        "num_particles": elbo.num_particles,
        "ess_threshold": elbo.scheme.ess_threshold,
        "resampler": type(elbo.scheme.resampler).__name__,
        "gradient": type(elbo.scheme.gradient).__name__,
    }
