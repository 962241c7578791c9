"""Observation models that a user writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_lowrank as plr
from tests.builders import assert_close, network, sites


class Laplace(plr.Observation):
    """Laplace noise around a linear readout of latents and inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(features=3)
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=dtype))
        self.hidden = nn.Linear(2, 3, dtype=dtype)
        self.width = PyroParam(torch.tensor(0.5, dtype=dtype), constraints.positive)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        mean = (self.weight @ z.unsqueeze(-1)).squeeze(-1) + self.hidden(torch.zeros_like(z) if v is None else v)
        return dist.Laplace(mean, self.width).to_event(1)


class Correlated(plr.Observation):
    """Features with correlated noise: a time bin is missing as a whole or not at all."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        return dist.MultivariateNormal(z, torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=z.dtype))


@pytest.fixture(params=[False, True], ids=["global_params", "module_local_params"])
def _either_place_of_parameters(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.settings.context(module_local_params=request.param):
        yield


def model_of(dtype: torch.dtype, observation: Any = None) -> plr.StateSpaceModel:
    return plr.StateSpaceModel(network(dtype, inputs=2), observation or Laplace(dtype))


def test_its_density_enters_that_of_the_model_with_missing_entries(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    y, u = torch.randn(4, 6, 3, dtype=dtype), torch.randn(4, 6, 2, dtype=dtype)
    y[0, 1, 2] = y[2, 3] = torch.nan
    found = sites(model, y, u)
    z, own = found["z"]["value"], model.observation
    loc = z @ own.weight.mT + own.hidden(u)
    entries = dist.Laplace(loc, own.width).log_prob(y.nan_to_num()).masked_fill(y.isnan(), 0.0)
    assert_close(found["y"]["log_prob"], entries.sum((1, 2)), factor=5)


def test_correlated_features_may_miss_whole_time_bins(dtype: torch.dtype) -> None:
    model = model_of(dtype, Correlated(features=2))
    y, u = torch.randn(4, 6, 2, dtype=dtype), torch.randn(4, 6, 2, dtype=dtype)
    y[0, 3] = y[2, 5] = torch.nan
    found = sites(model, y, u)
    entries = model.observation.distribution(found["z"]["value"]).log_prob(y.nan_to_num())
    assert_close(found["y"]["log_prob"], entries.masked_fill(y.isnan().any(-1), 0.0).sum(-1), factor=5)
    y[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="a MultivariateNormal cannot be left out one by one"):
        model(y, u)


@pytest.mark.usefixtures("_either_place_of_parameters")
@pytest.mark.parametrize("objective", ["Trace_ELBO", "SMC_ELBO"])
def test_svi_trains_its_parameters(objective: str) -> None:
    model = model_of(torch.float32)
    own = model.observation
    guide: Any = AutoNormal(model) if objective == "Trace_ELBO" else plr.BootstrapGuide(model)
    loss: Any = Trace_ELBO() if objective == "Trace_ELBO" else plr.SMC_ELBO(num_particles=8)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    for _ in range(2):
        svi.step(torch.randn(4, 6, 3), torch.randn(4, 6, 2))
    assert set(before) == {"weight", "hidden.weight", "hidden.bias", "width_unconstrained"}
    for name, value in own.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_a_prior_of_its_own_is_sampled_once_for_all_trials_and_time_bins() -> None:
    model = model_of(torch.float32)
    model.observation.weight = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    y, u = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    weight = sites(model, y, u)["observation.weight"]
    assert weight["value"].shape == (3, 2)
    draws = Predictive(model, num_samples=6, parallel=True)(None, u)
    assert draws["observation.weight"].shape == (6, 1, 3, 2)
    assert draws["y"].shape == (6, 4, 6, 3)
    loss = plr.SMC_ELBO(num_particles=8)
    trace = poutine.trace(loss.differentiable_loss).get_trace(model, plr.BootstrapGuide(model), y, u)
    assert [name for name in trace.nodes if name.endswith("weight") and trace.nodes[name]["type"] == "sample"] == [
        "observation.weight"
    ]


def test_it_is_simulated() -> None:
    u = torch.randn(4, 6, 2)
    assert model_of(torch.float32).simulate(u=u).y.shape == (4, 6, 3)


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="`features` must be at least 1, got features=0"):
        Correlated(features=0)
