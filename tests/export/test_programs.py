"""Programs of a user's own reach ArviZ with all that their state keeps, their data and new draws of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr

Y = torch.linspace(-2, 2, 24).reshape(2, 6, 2).abs().round()


class Walk:
    """Two latents: a random walk and a level; counts of the walk, one entry of which is masked."""

    def init(self, state: Any, y_t: Tensor) -> None:
        self.bin(state, torch.zeros(2, 1), y_t)

    def step(self, state: Any, y_t: Tensor) -> None:
        self.bin(state, state["z"], y_t)

    def bin(self, state: Any, mean: Tensor, y_t: Tensor) -> None:
        with pyro.plate("trials", 2, dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            state["level"] = pyro.sample("level", dist.Normal(state["z"][..., 0], 0.01))
            rates = pyro.deterministic("rates", (0.1 * state["z"]).exp().expand(*state["z"].shape[:-1], 2))
            with pyro.poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("y", dist.Poisson(rates).to_event(1), obs=y_t)


class Forgetful(Walk):
    """Cannot be run again along paths: it keeps none of its sites as it was drawn."""

    def bin(self, state: Any, mean: Tensor, y_t: Tensor) -> None:
        super().bin(state, mean, y_t)
        state["level"] = state["level"] + 1


@pytest.fixture
def posterior() -> Any:
    return plr.SMCFilter(Walk(), None, num_particles=200).run(Y)


def test_states_are_those_of_the_same_paths(posterior: Any) -> None:
    states = posterior.smooth_states(30)
    assert {name: tuple(value.shape) for name, value in states.items()} == {"z": (30, 2, 6, 1), "level": (30, 2, 6)}
    assert (states["z"][..., 0] - states["level"]).abs().max() < 0.1


def test_all_that_the_state_keeps_is_exported(posterior: Any) -> None:
    data = plr.to_arviz(posterior, chains=2, draws=50, thin=2, dims={"y": ["trial", "time", "unit"]})
    drawn = data["posterior"]
    assert {name: drawn[name].dims[2:] for name in drawn.data_vars} == {
        "z": ("trial", "time", "latent"),
        "level": ("trial", "time"),
        "rates": ("trial", "time", "rates_dim_0"),
    }
    assert dict(drawn.sizes) == {"chain": 2, "draw": 50, "trial": 2, "time": 3, "latent": 1, "rates_dim_0": 2}
    np.testing.assert_allclose(drawn["rates"][..., 0], np.exp(0.1 * drawn["z"][..., 0]), rtol=1e-6)
    observed = data["observed_data"]["y"]
    assert observed.dims == ("trial", "time", "unit")
    np.testing.assert_array_equal(observed[0], Y[0, ::2])
    assert observed[1].isnull().all()
    new = data["posterior_predictive"]["y"]
    assert new.dims == ("chain", "draw", *observed.dims)
    # Along the path of each draw, not along others'.
    gap = (new - drawn["rates"].values) / np.sqrt(drawn["rates"].values)
    assert abs(float(gap.mean())) < 4 / gap.size**0.5
    assert float(gap.var()) == pytest.approx(1, abs=6 * (3 / gap.size) ** 0.5)
    np.testing.assert_array_equal(data["sample_stats"]["log_evidence"][0], posterior.log_evidence)


def test_without_predictions_the_data_are_there(posterior: Any) -> None:
    data = plr.to_arviz(posterior, chains=1, draws=5, predictive=False)
    assert "posterior_predictive" not in data.groups()
    assert set(data["posterior"].data_vars) == {"z", "level"}
    np.testing.assert_array_equal(data["observed_data"]["y"][0], Y[0])


def test_draws_that_have_a_run_each(posterior: Any) -> None:
    data = plr.to_arviz([[posterior, posterior.rerun()]])
    assert dict(data["posterior"].sizes)["draw"] == 2
    assert data["posterior_predictive"]["y"].shape == (1, 2, 2, 6, 2)


def test_what_cannot_be_run_along_paths_is_said(caplog: pytest.LogCaptureFixture) -> None:
    posterior = plr.SMCFilter(Forgetful(), None, num_particles=20).run(Y)
    data = plr.to_arviz(posterior, chains=2, draws=3, method="genealogy")
    assert set(data.groups()) == {"posterior", "sample_stats", "log_likelihood"}
    # Once, not for each run.
    assert caplog.text.count("does not keep the latent site 'level' as it was drawn") == 1


def test_a_built_in_model_is_replicated_and_not_replayed() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=3), plr.GaussianObservation(rank=1, features=2))
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 5).run(torch.randn(1, 4, 2))
    assert set(posterior.smooth_states(3)) == {"z"}
    with pytest.raises(ValueError, match="use `replicate"):
        posterior.replay(posterior.smooth_states(3))
