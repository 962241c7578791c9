from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_lowrank.handlers import leave_out, observe, surroundings, trials_plate
from pyro_lowrank.observations.recording import RecordingDistribution
from tests.builders import assert_close, sites


def test_surroundings_multiply_scales_and_list_plates() -> None:
    assert surroundings().scale == 1.0
    assert surroundings().plates == {}
    with poutine.scale(scale=0.5), pyro.plate("sessions", 3, dim=-2), pyro.plate("trials", 100, 10, dim=-1):
        around = surroundings()
    assert around.scale == 0.5 * 10
    assert around.plates == {"sessions": 3, "trials": 10}


def test_surroundings_leave_no_site_behind() -> None:
    with poutine.trace() as recorder, pyro.plate("trials", 3):
        surroundings()
    assert [name for name in recorder.trace.nodes if name.startswith("_surroundings")] == []


def test_surroundings_draw_no_random_number() -> None:
    state = torch.get_rng_state()
    surroundings()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("around", [False, True])
def test_one_plate_over_trials_is_opened_whether_or_not_there_is_one(around: bool) -> None:
    def inner() -> None:
        with trials_plate(4):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    def outer() -> None:
        with pyro.plate("trials", 40, subsample_size=4, dim=-1):
            inner()

    x = sites(outer if around else inner)["x"]
    assert [frame.name for frame in x["cond_indep_stack"]] == ["trials"]
    assert x["value"].shape == (4,)
    assert x["scale"] == (10.0 if around else 1.0)


def test_a_plate_of_another_size_than_the_data_is_refused() -> None:
    with pyro.plate("trials", 7, dim=-1):
        trials_plate(7)
        trials_plate(None)
        with pytest.raises(ValueError, match="plate 'trials' around the model has 7 trials, the data 4; pass the data"):
            trials_plate(4)


def test_leaving_out_entries_is_the_marginal_of_independent_ones(dtype: torch.dtype) -> None:
    loc, value = torch.randn(5, 2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    missing = torch.tensor([[True, False, False], [False, True, True]])
    full = dist.Normal(loc, 0.5)
    expected = full.log_prob(value).masked_fill(missing, 0.0).sum(-1)
    assert_close(leave_out(full.to_event(1), missing).log_prob(value), expected)
    assert_close(leave_out(full, missing).log_prob(value).sum(-1), expected)


def test_leaving_out_time_bins_of_correlated_features_is_their_marginal(dtype: torch.dtype) -> None:
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=dtype)
    bins = dist.MultivariateNormal(torch.randn(4, 3, 2, dtype=dtype), scale_tril=factor)
    value = torch.randn(3, 4, 2, dtype=dtype)
    missing = torch.zeros(3, 4, 2, dtype=torch.bool)
    missing[0, 2] = missing[1, 0] = True
    seen = (~missing[..., 0]).to(dtype)
    expected = (bins.log_prob(value.movedim(1, 0)).mT * seen).sum(-1)
    assert_close(leave_out(RecordingDistribution(bins), missing).log_prob(value), expected)
    nested = dist.MultivariateNormal(bins.loc.movedim(0, 1), scale_tril=factor).to_event(1)
    assert_close(leave_out(nested, missing).log_prob(value), expected)


def test_single_missing_entries_of_correlated_features_are_refused() -> None:
    correlated = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    missing = torch.tensor([[True, True], [True, False], [False, False]])
    with pytest.raises(ValueError, match="entries of a MultivariateNormal cannot be left out one by one"):
        leave_out(correlated, missing)


def test_an_observed_site_keeps_finite_gradients_where_entries_are_missing() -> None:
    loc = torch.zeros(2, 3, requires_grad=True)
    value = torch.tensor([[1.0, torch.nan, 2.0], [torch.nan, torch.nan, torch.nan]])

    def program() -> None:
        with pyro.plate("trials", 2):
            observe("y", dist.Normal(loc, 1.0).to_event(1), value)

    trace = poutine.trace(program).get_trace()
    trace.log_prob_sum().backward()
    assert torch.equal(loc.grad, torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))


def test_a_site_without_a_value_is_sampled() -> None:
    y = sites(lambda: observe("y", dist.Normal(torch.zeros(3), 1.0).to_event(1), None))["y"]
    assert not y["is_observed"]
    assert y["value"].shape == (3,)
