"""Missing entries: NaN where a recording is looked at, drawn where it is predicted."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.gaps import WithGaps
from tests.builders import gaussian_model, sites


@pytest.fixture
def model() -> plr.StateSpaceModel:
    return gaussian_model(torch.float64).requires_grad_(False)


@pytest.fixture
def y(model: plr.StateSpaceModel) -> Tensor:
    found = model.simulate(num_trials=3, num_steps=4).y
    found[0, 1] = found[2, 3, 0] = torch.nan
    return found


def test_exports_of_mcmc_show_what_is_missing(model: plr.StateSpaceModel, y: Tensor) -> None:
    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_samples=4, warmup_steps=2, disable_progbar=True)
    mcmc.run(y)
    for data in (plr.from_pyro(mcmc), az.from_pyro(mcmc, log_likelihood=False)):
        np.testing.assert_array_equal(data["observed_data"]["y"], y)
    assert np.isfinite(plr.from_pyro(mcmc)["log_likelihood"]["y"]).all()


@pytest.mark.parametrize("parallel", [False, True], ids=["one_by_one", "parallel"])
def test_predictive_draws_what_is_missing_and_keeps_the_rest(
    model: plr.StateSpaceModel, y: Tensor, parallel: bool
) -> None:
    z = torch.randn(400, 3, 4, 2, dtype=torch.float64)
    draws = Predictive(model, {"z": z}, parallel=parallel)(y)["y"]
    assert draws.shape == (400, 3, 4, 3)
    missing = y.isnan()
    assert torch.equal(draws[:, ~missing], y[~missing].expand(400, -1))
    residual = (draws - model.observation.mean(z)) / model.observation.noise_variance.sqrt()
    found = residual[:, missing]
    assert found.shape == (400, 4)
    # Standard normal: five standard errors of the mean and of the variance.
    assert found.mean().abs() < 5 / 1600**0.5
    assert (found.var() - 1).abs() < 5 * (2 / 1600) ** 0.5


def test_the_site_and_the_returned_bin_keep_the_gaps(model: plr.StateSpaceModel, y: Tensor) -> None:
    found = sites(model, y)["y"]
    torch.testing.assert_close(found["value"], y, equal_nan=True)
    assert isinstance(found["fn"], WithGaps)
    assert found["log_prob"].isfinite().all()
    torch.testing.assert_close(model(y), y, equal_nan=True)
    state: dict[str, Tensor] = {}
    torch.testing.assert_close(model.init(state, y[:, 1]), y[:, 1], equal_nan=True)


def test_gradients_pass_by_the_gaps(y: Tensor) -> None:
    model = gaussian_model(torch.float64)
    for value in (y, y.nan_to_num(nan=0.3)):
        trace = poutine.trace(model).get_trace(y)
        trace.nodes["y"]["value"] = torch.where(y.isnan(), value, y)
        gradients = torch.autograd.grad(trace.log_prob_sum(), list(model.parameters()))
        assert all(g.isfinite().all() for g in gradients)


def test_a_distribution_with_gaps_has_the_moments_and_draws_of_all_entries() -> None:
    missing = torch.tensor([[True, False], [False, False]])
    normal = torch.distributions.Normal(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.5)
    gaps = WithGaps(dist.Normal(normal.loc, 0.5).mask(~missing).to_event(1), missing).expand([5, 2])
    assert gaps.batch_shape == (5, 2)
    assert torch.equal(gaps.mean, normal.loc.expand(5, 2, 2))
    assert gaps.variance.unique().item() == 0.25
    assert gaps.sample((7,)).shape == gaps.rsample((7,)).shape == (7, 5, 2, 2)
    value = torch.tensor([[torch.nan, 1.0], [2.0, 3.0]])
    expected = (normal.log_prob(value.nan_to_num(nan=9.0)) * ~missing).sum(-1)
    torch.testing.assert_close(gaps.log_prob(value), expected.expand(5, 2))
