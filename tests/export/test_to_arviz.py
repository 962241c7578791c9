"""What the filter found reaches ArviZ as it is."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.data.recording import Recording
from tests.builders import gaussian_model, network, shaken


def run_of(model: Any, y: Tensor, u: Tensor | None = None, num_particles: int = 60) -> plr.SMCPosterior:
    """A run of the filter."""
    guide = plr.OptimalGuide(model) if isinstance(model.observation, plr.GaussianObservation) else None
    smc = plr.SMCFilter(model, guide or plr.BootstrapGuide(model), num_particles=num_particles)
    return smc.run(y) if u is None else smc.run(y, u)


def test_evidence_sizes_and_data_are_those_of_the_run(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, inputs=2)
    u = torch.randn(3, 8, 2, dtype=dtype)
    y = model.simulate(num_trials=3, num_steps=8, u=u).y.clone()
    y[1, 4] = y[0, 2, 1] = torch.nan
    posterior = run_of(model, y, u)
    data = plr.to_arviz(posterior, draws=10)
    np.testing.assert_array_equal(data["sample_stats"]["log_evidence"][0], posterior.log_evidence)
    np.testing.assert_array_equal(data["sample_stats"]["ess"][0], posterior.ess)
    np.testing.assert_array_equal(data["sample_stats"]["resampled"][0], posterior.resampled)
    np.testing.assert_array_equal(data["observed_data"]["y"], y)
    np.testing.assert_array_equal(data["constant_data"]["mask"], ~y.isnan())
    np.testing.assert_array_equal(data["constant_data"]["inputs"], u)
    total = data["log_likelihood"]["y"].sum(("trial", "time"))
    np.testing.assert_allclose(total, posterior.log_evidence.sum().item(), rtol=1e-5)
    assert data["posterior"]["z"].dtype == data["posterior"]["mean"].dtype == np.dtype(str(dtype).split(".")[1])
    # New observations are there where the recording is not.
    assert np.isfinite(data["posterior_predictive"]["y"]).all()


def test_paths_and_predictions_belong_together() -> None:
    model = gaussian_model(noise_scale=0.1)
    y = model.simulate(num_trials=2, num_steps=9).y
    posterior = run_of(model, y, num_particles=300)
    data = plr.to_arviz(posterior, draws=400)
    z = torch.as_tensor(data["posterior"]["z"].values)
    with torch.no_grad():
        expected = model.observation.mean(z)
    np.testing.assert_allclose(data["posterior"]["mean"], expected)
    residual = data["posterior_predictive"]["y"] - data["posterior"]["mean"]
    spread = residual.std(("chain", "draw", "trial", "time"))
    np.testing.assert_allclose(spread, model.observation.noise_variance.detach().sqrt(), rtol=0.05)
    smoothed = posterior.smoothed()
    error = (z[0].mean(0) - smoothed.mean()) / smoothed.variance().sqrt()
    assert error.abs().max() < 5 / 400**0.5


def test_chains_are_runs_that_agree_where_there_are_enough_particles() -> None:
    model = gaussian_model(noise_scale=0.3)
    posterior = run_of(model, model.simulate(num_trials=2, num_steps=10).y, num_particles=500)
    data = plr.to_arviz(posterior, chains=4, draws=100)
    assert len(np.unique(data["sample_stats"]["log_evidence"][:, 0])) == 4
    rhat = az.rhat(data, var_names=["z"])["z"]
    assert float(rhat.max()) < 1.05
    few = plr.to_arviz(run_of(model, posterior.recording[0], num_particles=2), chains=4, draws=100)
    assert float(az.rhat(few, var_names=["z"])["z"].max()) > 1.3


def test_a_run_is_not_repeated_at_other_parameters() -> None:
    model = gaussian_model()
    posterior = run_of(model, model.simulate(num_trials=2, num_steps=5).y)
    with torch.no_grad():
        model.dynamics.bias += 0.1
    with pytest.raises(ValueError, match="parameters of the model have changed since this run"):
        plr.to_arviz(posterior, chains=2)
    assert plr.to_arviz(posterior, draws=3)["posterior"].sizes["chain"] == 1


def test_counts_have_rates_and_names() -> None:
    model = plr.StateSpaceModel(network(torch.float32), shaken(plr.PoissonObservation(rank=2, features=3)))
    y = model.simulate(num_trials=2, num_steps=6).y
    recording = Recording(y.numpy(), bin_size=0.01, feature_names=("u1", "u2", "u3"))
    data = plr.to_arviz(run_of(model, y), draws=5, recording=recording)
    assert (data["posterior"]["rates"] > 0).all()
    counts = data["posterior_predictive"]["y"]
    np.testing.assert_array_equal(counts, np.round(counts))
    assert counts.sel(feature="u2").sizes["time"] == 6
    assert counts.time.values[0] == pytest.approx(0.005)


def test_prior_predictive_comes_from_predictive() -> None:
    model = gaussian_model()
    y = model.simulate(num_trials=2, num_steps=6).y
    draws = pyro.infer.Predictive(model, num_samples=7)(num_trials=2, num_steps=6)
    data = plr.to_arviz(run_of(model, y), draws=5, prior=draws)
    np.testing.assert_array_equal(data["prior"]["z"][0], draws["z"])
    np.testing.assert_array_equal(data["prior_predictive"]["y"][0], draws["y"])


class Walk:
    """A user's own model: a random walk seen through noise."""

    def init(self, state: dict[str, Tensor], y_t: Tensor) -> None:
        self.bin(state, torch.zeros(2, 1), y_t)

    def step(self, state: dict[str, Tensor], y_t: Tensor) -> None:
        self.bin(state, state["z"], y_t)

    def bin(self, state: dict[str, Tensor], mean: Tensor, y_t: Tensor) -> None:
        with pyro.plate("trials", 2, dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], 0.5).to_event(1), obs=y_t)


class WalkGuide(Walk):
    """Proposes from the transition."""

    def bin(self, state: dict[str, Tensor], mean: Tensor, y_t: Tensor) -> None:
        with pyro.plate("trials", 2, dim=-1):
            pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))


def test_a_users_own_model_has_its_latents_and_evidence() -> None:
    posterior = plr.SMCFilter(Walk(), WalkGuide(), num_particles=100).run(torch.randn(2, 6, 1))
    data = plr.to_arviz(posterior, chains=2, draws=10)
    assert data["posterior"]["z"].shape == (2, 10, 2, 6, 1)
    assert set(data["posterior"].data_vars) == {"z"}
    np.testing.assert_array_equal(data["sample_stats"]["log_evidence"][0], posterior.log_evidence)
    assert "observed_data" not in data.groups()
