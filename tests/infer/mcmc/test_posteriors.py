"""Both kernels against the exact posterior of two parameters of a linear-Gaussian model, on a grid."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import MCMC
from pyro.ops.stats import effective_sample_size
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import exact_log_evidence
from tests.oracles.posterior_grid import NAMES, Moments, exact_moments, log_evidence, model_and_data, put_priors

KERNELS = {
    "ancestor": lambda model: plr.ParticleGibbs(model, plr.OptimalGuide(model), 6),
    "backward": lambda model: plr.ParticleGibbs(model, plr.BootstrapGuide(model), 8, sweep="backward"),
    "pmmh": lambda model: plr.PMMH(model, plr.OptimalGuide(model), 20, target_accept_prob=0.3),
    "uphill": lambda model: plr.PMMH(model, plr.OptimalGuide(model), 20, steps=plr.LangevinSteps(4)),
}


def test_the_scalar_kalman_filter_is_the_exact_evidence() -> None:
    model, y = model_and_data(3, 6)
    y = torch.where(y.isnan(), 0.3, y)
    decay, scale = torch.tensor([0.3, 0.8], dtype=y.dtype), torch.tensor([0.2, 0.5], dtype=y.dtype)
    found = log_evidence(model, y, decay, scale)
    for k in range(2):
        model.dynamics.decay = torch.nn.Parameter(decay[k])
        model.dynamics.noise_scale = torch.nn.Parameter(scale[k].reshape(1, 1))
        torch.testing.assert_close(found[k], exact_log_evidence(model, y).sum().detach())


def errors(draws: Tensor, exact: Moments) -> tuple[float, float]:
    """Return how far the mean and the variance of draws `chains x draws` are off, in Monte Carlo standard errors.

    The errors are those of the exact posterior, for as many independent draws as these are worth: a chain that is stuck
    would take its own small spread for small errors.
    """
    square = (draws - exact.mean).square()
    off_mean = (draws.mean() - exact.mean) / (exact.variance / effective_sample_size(draws)).sqrt()
    off_variance = (square.mean() - exact.variance) / (exact.spread / effective_sample_size(square).sqrt())
    return off_mean.item(), off_variance.item()


def check(kernel: str, num_samples: int, warmup_steps: int, *, ess: float, dtype: torch.dtype = torch.float64) -> None:
    model, y = model_and_data(3, 8, dtype)
    exact = exact_moments(model, y)
    put_priors(model)
    mcmc = MCMC(KERNELS[kernel](model), num_samples, warmup_steps, disable_progbar=True)
    mcmc.run(y)
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["z"].shape == (1, num_samples, 3, 8, 1)
    assert draws["z"].dtype == dtype
    for name in NAMES:
        found = draws[name].reshape(1, num_samples).double()
        assert effective_sample_size(found) > ess
        assert max(map(abs, errors(found, exact[name]))) < 4, (name, exact[name], found.mean(), found.std())


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("ancestor", torch.float64), pytest.param("backward", torch.float32, marks=pytest.mark.slow)],
)
def test_particle_gibbs_draws_from_the_posterior(kernel: str, dtype: torch.dtype) -> None:
    check(kernel, 100, 40, ess=8, dtype=dtype)


@pytest.mark.slow
def test_pmmh_draws_from_the_posterior() -> None:
    check("pmmh", 500, 200, ess=10)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_long_chains_draw_from_the_posterior(kernel: str) -> None:
    check(kernel, 8000 if kernel in ("pmmh", "uphill") else 2500, 500, ess=200)
