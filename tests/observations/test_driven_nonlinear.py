"""Fluorescence and BOLD of nonlinear networks of rank 1, against quadrature over all paths of a few bins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import shaken
from tests.oracles.driven_paths import Paths, all_paths

RUNS, PARTICLES = 12, 1000


def nonlinear(kind: str) -> tuple[plr.StateSpaceModel, Any]:
    """A network with two attractors that drives two features, and its guide."""
    dynamics = plr.LowRankRNN(
        rank=1, units=3, activation="tanh", decay=0.5, noise="scalar", noise_scale=0.5, dtype=torch.float64
    )
    with torch.no_grad():
        dynamics.left, dynamics.right = torch.full_like(dynamics.left, 1.5), torch.full_like(dynamics.right, 0.4)
    options: Any = {"rank": 1, "features": 2, "noise_scale": 0.2, "dtype": torch.float64}
    if kind == "bold":
        observation: Any = plr.HaemodynamicObservation(bin_size=1.0, **options)
    else:
        observation = plr.CalciumObservation(bin_size=0.3, rise=kind == "rise", rate_noise=kind != "rise", **options)
    shaken(observation, 0.2)
    with torch.no_grad():
        observation.readout.weight = torch.tensor([[1.5], [-1.0]], dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, observation)
    return model, plr.OptimalGuide(model) if kind == "bold" else plr.LaplaceGuide(model)


def recorded(model: plr.StateSpaceModel) -> Tensor:
    """Four bins, of which one entry and nothing else is missing."""
    y = model.simulate(1, 4).y.detach()
    y[0, 1, 0] = torch.nan
    return y


def exact(model: plr.StateSpaceModel, y: Tensor) -> Paths:
    """All paths."""
    return all_paths(model, y[0], points=31, reach=5.0)


def agree(found: Tensor, expected: Tensor, *, floor: float) -> None:
    """Assert that the mean of runs, `runs x ...`, is as expected: to four standard errors, and what the grid leaves."""
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4 * error + floor).all()


@pytest.mark.parametrize("kind", [pytest.param("decay", marks=pytest.mark.slow), "rise", "bold"])
def test_evidence_and_smoothed_latents_are_those_of_the_quadrature(kind: str) -> None:
    model, guide = nonlinear(kind)
    y = recorded(model)
    with torch.no_grad():
        paths = exact(model, y)
        driven = model.observation.driven_by(paths.z.unsqueeze(-1))
    evidences, means, squares, drives = [], [], [], []
    for _ in range(RUNS):
        posterior = plr.SMCFilter(model, guide, PARTICLES).run(y)
        evidences.append((posterior.log_evidence - paths.log_evidence).exp())
        z = posterior.smooth(400)
        means.append(z[:, 0, :, 0].mean(0))
        squares.append((z[:, 0, 1:, 0] * z[:, 0, :-1, 0]).mean(0))
        drives.append(posterior.deconvolve(z).drive[:, 0].mean(0))
    agree(torch.stack(evidences), torch.ones(1, dtype=y.dtype), floor=1e-3)
    agree(torch.stack(means), paths.mean(paths.z), floor=3e-3)
    agree(torch.stack(squares), paths.mean(paths.z[:, 1:] * paths.z[:, :-1]), floor=5e-3)
    agree(torch.stack(drives), paths.mean(driven), floor=5e-3)


def test_the_gradient_is_the_score() -> None:
    model, guide = nonlinear("rise")
    y = recorded(model)
    parameters = dict(model.named_parameters())
    exact(model, y).log_evidence.backward()
    score = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    assert {name.partition(".")[0] for name in score} == {"dynamics", "observation"}
    elbo = plr.SMC_ELBO(PARTICLES, gradient=plr.FisherGradient(num_paths=100))
    found: dict[str, list[Tensor]] = {name: [] for name in score}
    for _ in range(RUNS):
        model.zero_grad()
        (-elbo(model, guide)(y)).backward()
        for name in score:
            found[name].append(parameters[name].grad.clone())
    for name, expected in score.items():
        agree(torch.stack(found[name]), expected, floor=0.01 * (1 + expected.abs().max().item()))
