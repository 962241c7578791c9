"""How far gradients of the log evidence are from its score: along smoothed paths (Fisher) and along the particles.

Networks of rank 1, simulated, so that the exact evidence is an integral over one latent per time bin: forward on a
dense grid, and differentiated. The score is taken beside the truth, where it is not zero. `bias_NAME` is the length of
what the mean gradient is off by, less what is chance, over the length of the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import pyro_lowrank as plr

# In the order of the table.
GRADIENTS = {"fisher": plr.FisherGradient, "pathwise": plr.PathwiseGradient}
GUIDES = {"optimal": plr.OptimalGuide, "bootstrap": plr.BootstrapGuide}

REFERENCE: dict[str, str] = {}
GOAL = {"bias_fisher_optimal": 0.07, "bias_fisher_bootstrap": 0.07}


@dataclass(frozen=True)
class Settings:
    """Sizes of the recording, particles, and how many estimates of a gradient are averaged."""

    trials: int = 20
    bins: int = 40
    num_particles: int = 64
    repeats: int = 60
    points: int = 401


FULL, REDUCED = Settings(), Settings(trials=5, bins=10, repeats=20, points=101)


def bistable(seed: int, **options) -> plr.StateSpaceModel:
    """Return a network of rank 1 with two attractors, seen through three noisy features, in double precision."""
    torch.manual_seed(seed)
    dynamics = plr.LowRankRNN(rank=1, units=20, activation="tanh", decay=0.7, dtype=torch.float64, **options)
    model = plr.StateSpaceModel(
        dynamics, plr.GaussianObservation(rank=1, features=3, noise_scale=1.0, dtype=torch.float64)
    )
    with torch.no_grad():
        dynamics.left.copy_(torch.randn(20, 1))
        dynamics.right.copy_(0.6 * dynamics.left.mT / dynamics.left.square().sum())
        dynamics.bias.zero_()
        model.observation.readout.weight.copy_(torch.randn(3, 1))
    return model


def exact_log_evidence(model: plr.StateSpaceModel, y: torch.Tensor, points: int, reach: float = 6.0) -> torch.Tensor:
    """Return log p(y), summed over trials, by the trapezoid rule on a grid; differentiable."""
    z = torch.linspace(-reach, reach, points, dtype=y.dtype).unsqueeze(-1)
    step = 2 * reach / (points - 1)
    dynamics = model.dynamics
    moves = torch.distributions.Normal(dynamics(z).mT, dynamics.noise_covariance.sqrt()).log_prob(z).exp() * step
    density = torch.distributions.Normal(dynamics.initial_mean, dynamics.initial_covariance.sqrt()[0]).log_prob(z)
    density = density.squeeze(-1).exp().expand(len(y), -1)
    seen = model.observation.distribution(z).log_prob(y.unsqueeze(-2))  # trials x time x points
    total = torch.zeros((), dtype=y.dtype)
    for t in range(y.shape[1]):
        top = seen[:, t].amax(-1, keepdim=True)
        weighted = density * (seen[:, t] - top).exp()
        mass = weighted.sum(-1, keepdim=True) * step
        total = total + (mass.log() + top).sum()
        density = weighted / mass @ moves.mT
    return total


def flat(gradients) -> torch.Tensor:
    """Return gradients as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def recorded(seed: int, settings: Settings) -> tuple[plr.StateSpaceModel, torch.Tensor]:
    """Return a model beside the truth, and trials of the truth."""
    with torch.no_grad():
        y = bistable(seed, noise_scale=0.4).simulate(settings.trials, settings.bins).y
    return bistable(seed, noise_scale=0.3), y


def run(seed: int, settings: Settings) -> dict:
    """Compare the mean of many gradients with the score."""
    model, y = recorded(seed, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    score = flat(torch.autograd.grad(exact_log_evidence(model, y, settings.points), parameters))
    row: dict = {}
    for guide, make in GUIDES.items():
        for gradient, kind in GRADIENTS.items():
            elbo = plr.SMC_ELBO(settings.num_particles, gradient=kind())
            found = []
            for repeat in range(settings.repeats):
                torch.manual_seed(10_000 * seed + repeat)
                loss = elbo.differentiable_loss(model, make(model), y)
                found.append(-flat(torch.autograd.grad(loss, parameters)))
            found = torch.stack(found)
            # The mean is off by chance, too: that part of its squared error is known.
            chance = found.var(0).sum() / len(found)
            off = (found.mean(0) - score).square().sum()
            row[f"bias_{gradient}_{guide}"] = float((off - chance).clamp(min=0).sqrt() / score.norm())
            row[f"spread_{gradient}_{guide}"] = float(found.var(0).sum().sqrt() / score.norm())
            row[f"chance_{gradient}_{guide}"] = float(chance.sqrt() / score.norm())
    return row


def draw(figure, record: dict) -> None:
    """Draw the bias of every gradient under every guide."""
    axes = figure.subplots()
    names = [(gradient, guide) for gradient in GRADIENTS for guide in GUIDES]
    for place, (gradient, guide) in enumerate(names):
        values = [max(row[f"bias_{gradient}_{guide}"], 1e-3) for row in record["rows"]]
        axes.scatter(values, np.full(len(values), place), s=18, color="C0")
    axes.set_yticks(range(len(names)), [f"{gradient.capitalize()}, {guide} guide" for gradient, guide in names])
    title = f"{len(record['rows'])} networks, {record['settings']['num_particles']} particles"
    axes.set(xscale="log", xlabel="bias of the gradient / length of the score (none is drawn at 0.001)", title=title)
    axes.grid(axis="y", color="0.9")
    axes.invert_yaxis()
