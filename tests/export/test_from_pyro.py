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
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormal, AutoNormalMessenger
from pyro.infer.mcmc.api import StreamingMCMC
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


@pytest.fixture
def network() -> plr.StateSpaceModel:
    return plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), plr.GaussianObservation(rank=2, features=3))


def test_names_of_data_name_their_likelihood_as_far_as_it_goes(network: plr.StateSpaceModel) -> None:
    y = network.simulate(num_trials=2, num_steps=4).y
    run = MCMC(NUTS(network, max_tree_depth=1), num_samples=4, warmup_steps=1, disable_progbar=True)
    run.run(y)
    data = plr.from_pyro(run, dims={"y": ["trial", "time", "feature"], "z": ["trial", "time", "latent"]})
    assert data["observed_data"]["y"].dims == ("trial", "time", "feature")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "trial")
    for draw in range(4):
        z = torch.as_tensor(data["posterior"]["z"].values[0, draw])
        normal = dist.Normal(network.observation.mean(z), network.observation.noise_variance.sqrt())
        expected = normal.log_prob(y).sum((-2, -1)).detach()
        np.testing.assert_allclose(data["log_likelihood"]["y"][0, draw], expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"`dims` of 'y' must name the 3 dims"):
        plr.from_pyro(run, dims={"y": ["trial", "time"]})


def test_what_draws_of_the_posterior_lack_was_observed() -> None:
    prior = Predictive(model, num_samples=9)()
    data = plr.from_pyro({name: prior[name] for name in ("scale", "mean")}, prior=prior)
    assert set(data["prior"].data_vars) == {"scale", "mean"}
    assert set(data["prior_predictive"].data_vars) == {"y"}
    for other in ("posterior_predictive", "predictions"):
        data = plr.from_pyro(prior=prior, **{other: {"y": prior["y"]}})
        assert set(data["prior_predictive"].data_vars) == {"y"}
    assert set(plr.from_pyro(prior=prior)["prior"].data_vars) == {"scale", "mean", "y"}


@pytest.mark.parametrize("num_draws", [1, 3])
def test_few_draws_are_draws(num_draws: int) -> None:
    run = MCMC(NUTS(model, max_tree_depth=1), num_samples=num_draws, warmup_steps=1, disable_progbar=True)
    run.run(Y)
    data = plr.from_pyro(run)
    assert data["posterior"].sizes["draw"] == num_draws
    rates = [float(chain["acceptance rate"]) for chain in run._diagnostics]
    assert data["sample_stats"]["acceptance_rate"].values.tolist() == rates


def test_samplers_without_draws_are_refused() -> None:
    streaming = StreamingMCMC(NUTS(model), num_samples=3, warmup_steps=1, disable_progbar=True)
    streaming.run(Y)
    with pytest.raises(TypeError, match="got StreamingMCMC, which keeps no draws"):
        plr.from_pyro(streaming)
    with pytest.raises(ValueError, match="no draws yet: call its `run` first"):
        plr.from_pyro(MCMC(NUTS(model), num_samples=3))


def test_a_guide_that_starts_from_the_priors_mean_is_told_that_there_is_none(network: plr.StateSpaceModel) -> None:
    y = network.simulate(num_trials=2, num_steps=4).y
    with pytest.raises(NotImplementedError, match="no closed form: .*AutoHierarchicalNormalMessenger.* AutoNormal"):
        AutoHierarchicalNormalMessenger(network)(y)
    # What the message advises works.
    for guide in (AutoNormal(network), AutoNormalMessenger(network)):
        guide(y)
        assert guide.median(y)["z"].shape == (2, 4, 2)
    trajectory = network.dynamics.trajectory(4)
    with pytest.raises(NotImplementedError, match="variance of a network's trajectory has no closed form"):
        _ = trajectory.variance
