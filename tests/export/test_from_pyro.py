"""Results of Pyro's inference reach ArviZ as its own converter would bring them."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from torch import Tensor

import pyro_lowrank as plr

Y = torch.tensor([[1.0, 2.0, 0.5], [0.2, 1.5, 1.1]])


def model(y: Tensor | None = None) -> None:
    """Means with a prior, seen through noise of unknown size."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("units", 3, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", 2, dim=-2):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture
def mcmc() -> Any:
    """A short run of NUTS."""
    found = MCMC(NUTS(model), num_samples=12, warmup_steps=8, disable_progbar=True)
    found.run(Y)
    return found


def test_mcmc_as_arviz_converts_it(mcmc: Any) -> None:
    dims = {"mean": ["unit"], "y": ["trial", "unit"]}
    ours, theirs = plr.from_pyro(mcmc, dims=dims), az.from_pyro(mcmc, dims=dims, log_likelihood=True)
    for group in ("posterior", "log_likelihood", "observed_data", "sample_stats"):
        # ArviZ leaves out the acceptance rates.
        assert set(ours[group].data_vars) - {"acceptance_rate"} == set(theirs[group].data_vars)
        for name, variable in theirs[group].data_vars.items():
            assert ours[group][name].dims == variable.dims
            np.testing.assert_allclose(ours[group][name], variable, rtol=1e-5)
    assert az.summary(ours).shape[0] == 4
    rates = [float(rate) for rate in mcmc.diagnostics()["acceptance rate"].values()]
    assert ours["sample_stats"].acceptance_rate.dims == ("chain",)
    assert ours["sample_stats"].acceptance_rate.values.tolist() == rates
    np.isfinite(az.loo(ours).elpd_loo)


def test_predictions_and_priors(mcmc: Any) -> None:
    prior = Predictive(model, num_samples=9)()
    predictive = Predictive(model, mcmc.get_samples())()
    data = plr.from_pyro(
        mcmc, prior=prior, posterior_predictive={"y": predictive["y"]}, log_likelihood=False, constant_data={"w": Y[0]}
    )
    assert set(data.groups()) == {
        *("posterior", "sample_stats", "prior", "prior_predictive"),
        *("posterior_predictive", "observed_data", "constant_data"),
    }
    assert set(data["prior"].data_vars) == {"scale", "mean"}
    np.testing.assert_array_equal(data["prior_predictive"]["y"][0], prior["y"])
    np.testing.assert_array_equal(data["posterior_predictive"]["y"][0], predictive["y"])


def test_draws_by_name_are_cut_into_chains() -> None:
    draws = torch.arange(12.0).reshape(6, 2)
    data = plr.from_pyro({"z": draws}, num_chains=2, dims={"z": ["latent"]})
    np.testing.assert_array_equal(data["posterior"]["z"], draws.reshape(2, 3, 2))
    with pytest.raises(ValueError, match="does not divide into num_chains=4"):
        plr.from_pyro({"z": draws}, num_chains=4)
    with pytest.raises(ValueError, match="nothing to export"):
        plr.from_pyro()


def test_a_low_rank_network_under_nuts() -> None:
    network = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=2))
    y = network.simulate(num_trials=2, num_steps=4).y
    y[0, 1, 0] = torch.nan
    run = MCMC(NUTS(network), num_samples=4, warmup_steps=2, disable_progbar=True)
    run.run(y)
    data = plr.from_pyro(run, dims={"z": ["trial", "time", "latent"]})
    assert data["posterior"]["z"].dims == ("chain", "draw", "trial", "time", "latent")
    assert np.isfinite(data["log_likelihood"]["y"]).all()
