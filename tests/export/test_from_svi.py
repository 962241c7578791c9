"""Draws of a variational posterior reach ArviZ with the data and how likely these are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

import pyro_lowrank as plr

Y = torch.tensor([[1.0, 2.0, 0.5], [0.2, 1.5, 1.1]])


def model(y: Tensor | None = None, *, scale: float = 0.5) -> None:
    """Means with a prior, seen through noise; a plate that takes some of the trials only."""
    with pyro.plate("units", 3, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.deterministic("doubled", 2 * mean)
        with pyro.plate("trials", 2, dim=-2, subsample=torch.arange(2)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture
def svi() -> Any:
    """A guide that is where it begins, at a known place."""
    guide = AutoNormal(model, init_scale=0.3, init_loc_fn=lambda site: torch.arange(3.0))
    found = SVI(model, guide, pyro.optim.Adam({"lr": 1e-9}), Trace_ELBO())
    found.step(Y, scale=0.25)
    return found


def test_draws_are_the_guides_and_likelihoods_those_of_each_draw(svi: Any) -> None:
    given: dict[str, Any] = {"model_args": (Y,), "model_kwargs": {"scale": 0.25}, "num_samples": 600, "num_chains": 2}
    data = plr.from_pyro(svi, **given, dims={"mean": ["unit"], "y": ["trial", "unit"]})
    assert set(data.groups()) == {"posterior", "log_likelihood", "observed_data"}
    mean = data["posterior"]["mean"]
    assert dict(mean.sizes) == {"chain": 2, "draw": 300, "unit": 3}
    np.testing.assert_allclose(mean.mean(("chain", "draw")), [0, 1, 2], atol=4 * 0.3 / 600**0.5)
    np.testing.assert_allclose(mean.std(("chain", "draw")), 0.3, rtol=4 / 1200**0.5)
    np.testing.assert_array_equal(data["posterior"]["doubled"], 2 * mean)
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    expected = dist.Normal(torch.as_tensor(mean.values).unsqueeze(-2), 0.25).log_prob(Y)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "trial", "unit")
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-5)


def test_predictions_stand_beside_them_and_a_point_is_one_draw_over_and_over() -> None:
    guide = AutoDelta(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(Y)
    predictive = Predictive(model, guide=guide, num_samples=4)()
    data = plr.from_pyro(
        svi, model_args=(Y,), num_samples=4, log_likelihood=False, posterior_predictive={"y": predictive["y"]}
    )
    assert set(data.groups()) == {"posterior", "posterior_predictive", "observed_data"}
    assert np.ptp(data["posterior"]["mean"].values, 1).max() == 0
    np.testing.assert_array_equal(data["posterior_predictive"]["y"][0], predictive["y"])


def test_a_low_rank_network_under_an_autoguide() -> None:
    network = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=2))
    y = network.simulate(num_trials=2, num_steps=4).y
    svi = SVI(network, AutoNormal(network), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(y)
    data = plr.from_pyro(svi, model_args=(y,), num_samples=5, dims={"z": ["trial", "time", "latent"]})
    assert data["posterior"]["z"].dims == ("chain", "draw", "trial", "time", "latent")
    assert dict(data["log_likelihood"]["y"].sizes) == {"chain": 1, "draw": 5, "y_dim_0": 2}
    for draw in range(5):
        z = torch.as_tensor(data["posterior"]["z"].values[0, draw])
        normal = dist.Normal(network.observation.mean(z), network.observation.noise_variance.sqrt())
        expected = normal.log_prob(y).sum((-2, -1)).detach()
        np.testing.assert_allclose(data["log_likelihood"]["y"][0, draw], expected, rtol=1e-4)


def test_what_holds_no_draws_is_refused(svi: Any) -> None:
    network = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=2))
    filtered = SVI(network, plr.OptimalGuide(network), pyro.optim.Adam({}), plr.SMC_ELBO(4))
    with pytest.raises(TypeError, match="OptimalGuide proposes particles .* to `to_arviz`"):
        plr.from_pyro(filtered, model_args=(torch.zeros(1, 3, 2),))
    nothing = SVI(lambda: None, lambda: None, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(TypeError, match="no latent sites"):
        plr.from_pyro(nothing)
    with pytest.raises(ValueError, match="num_samples"):
        plr.from_pyro(svi, model_args=(Y,), num_samples=0)
    with pytest.raises(ValueError, match="num_samples=4 does not divide into num_chains=3"):
        plr.from_pyro(svi, model_args=(Y,), num_samples=4, num_chains=3)
