"""Latents that are drawn from the prior rank uniformly among those that are inferred from their data."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import network, shaken

BINS = 10


def nonlinear_counts() -> plr.StateSpaceModel:
    """A relu network seen through counts."""
    torch.manual_seed(11)
    dynamics = network(torch.float64, rank=2, units=8, activation="relu", noise_scale=0.5)
    observation = shaken(plr.PoissonObservation(rank=2, features=4, dtype=torch.float64))
    return plr.StateSpaceModel(dynamics, observation)


def quantities(z: Tensor) -> Tensor:
    """What is ranked: latents at begin, middle and end, and how each moves between two bins, `... x quantities`."""
    middle = z.shape[-2] // 2
    step = z[..., middle + 1, :] - z[..., middle, :]
    return torch.cat([z[..., 0, :], z[..., middle, :], z[..., -1, :], step], -1)


def p_values(model: plr.StateSpaceModel, filtered: plr.StateSpaceModel, method: str, size: Any) -> Tensor:
    """Of the chi-square test that ranks are uniform, for each quantity."""
    trials, time, particles, draws = size
    truth = model.simulate(trials, time)
    posterior = plr.SMCFilter(filtered, plr.BootstrapGuide(filtered), particles).run(truth.y)
    inferred = quantities(posterior.smooth(draws, method=method))
    ranks = (inferred < quantities(truth.z)).sum(0)
    assert (draws + 1) % BINS == 0
    counts = [torch.bincount(r * BINS // (draws + 1), minlength=BINS) for r in ranks.unbind(-1)]
    return torch.tensor([scipy.stats.chisquare(count.numpy()).pvalue for count in counts])


@pytest.mark.parametrize("method", ["backward", "mcmc"])
def test_ranks_are_uniform(method: str) -> None:
    model = nonlinear_counts()
    pyro.set_rng_seed(1)
    assert (p_values(model, model, method, (300, 8, 300, 19)) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["backward", "mcmc"])
def test_ranks_are_uniform_in_thousands_of_trials(method: str) -> None:
    model = nonlinear_counts()
    pyro.set_rng_seed(2)
    assert (p_values(model, model, method, (3000, 12, 1000, 99)) > 1e-3).all()


def test_this_test_sees_noise_that_is_too_small() -> None:
    model = nonlinear_counts()
    other = nonlinear_counts()
    with torch.no_grad():
        other.dynamics.noise_scale = model.dynamics.noise_scale.detach() / 2
    pyro.set_rng_seed(1)
    assert (p_values(model, other, "backward", (300, 8, 300, 19)) < 1e-3).any()
