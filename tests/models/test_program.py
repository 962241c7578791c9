from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, network, shaken, sites
from tests.dynamics.test_trajectory import INPUTS, inputs_for, log_prob_by_loop

VARIANTS = pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)


def likelihood_by_loop(model: Any, y: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
    """The sum over time and features of the log densities of the entries that are there, per trial."""
    v = None if u is None else model.dynamics.transition().drift.effective_inputs(u)
    total = torch.zeros(y.shape[0], dtype=y.dtype)
    for t in range(y.shape[1]):
        normal = dist.Normal(
            model.observation.mean(z[:, t], None if v is None else v[:, t]), model.observation.noise_variance.sqrt()
        )
        seen = ~y[:, t].isnan()
        total = total + normal.log_prob(y[:, t].nan_to_num()).masked_fill(~seen, 0.0).sum(-1)
    return total


@VARIANTS
def test_it_has_one_site_for_the_latents_and_one_for_the_recording(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, **options)
    y = torch.randn(4, 6, 3, dtype=dtype)
    found = sites(model, y, inputs_for(options, dtype))
    assert list(found) == ["z", "y"]
    assert not found["z"]["is_observed"]
    assert found["y"]["is_observed"]
    assert found["z"]["value"].shape == (4, 6, 2)
    assert found["z"]["value"].dtype == dtype
    assert found["y"]["value"] is y
    for site in found.values():
        assert site["log_prob"].shape == (4,)
        assert [(frame.name, frame.dim, frame.size) for frame in site["cond_indep_stack"]] == [("trials", -1, 4)]


@VARIANTS
def test_its_density_is_prior_times_likelihood(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, activation="tanh", **options)
    y, u = torch.randn(4, 6, 3, dtype=dtype), inputs_for(options, dtype)
    found = sites(model, y, u)
    z = found["z"]["value"]
    assert_close(found["z"]["log_prob"], log_prob_by_loop(model.dynamics, z, u), factor=20)
    assert_close(found["y"]["log_prob"], likelihood_by_loop(model, y, z, u), factor=20)


def test_gradients_of_its_density_are_those_of_prior_times_likelihood() -> None:
    model = gaussian_model(activation="tanh", inputs=2, input_filter=True)
    y, u, z = (torch.randn(4, 6, size, dtype=torch.float64) for size in (3, 2, 2))
    y[0, 2, 1] = y[1, 4] = torch.nan
    actual = poutine.trace(poutine.condition(model, {"z": z})).get_trace(y, u).log_prob_sum()
    expected = (log_prob_by_loop(model.dynamics, z, u) + likelihood_by_loop(model, y, z, u)).sum()
    parameters = list(model.parameters())
    for left, right in zip(
        torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert_close(left, right)


def test_missing_entries_add_nothing(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype)
    y = torch.randn(4, 6, 3, dtype=dtype)
    y[torch.rand(4, 6, 3) < 0.4] = torch.nan
    y[2] = torch.nan
    found = sites(model, y)
    assert_close(found["y"]["log_prob"], likelihood_by_loop(model, y, found["z"]["value"], None), factor=20)
    assert found["y"]["log_prob"][2] == 0


def test_a_feature_that_is_missing_throughout_equals_a_model_without_it(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype)
    smaller = plr.StateSpaceModel(model.dynamics, plr.GaussianObservation(rank=2, features=2, dtype=dtype))
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(smaller.observation.readout, name).copy_(getattr(model.observation.readout, name)[[0, 2]])
        smaller.observation.noise_scale = model.observation.noise_scale[[0, 2]].detach()
    z, y = torch.randn(4, 6, 2, dtype=dtype), torch.randn(4, 6, 3, dtype=dtype)
    expected = sites(poutine.condition(smaller, {"z": z}), y[..., [0, 2]])["y"]["log_prob"]
    y[..., 1] = torch.nan
    assert_close(sites(poutine.condition(model, {"z": z}), y)["y"]["log_prob"], expected, factor=5)


@pytest.mark.parametrize("link", ["softplus", "exp"])
def test_padding_changes_no_likelihood_and_no_gradient(link: str, dtype: torch.dtype) -> None:
    observation = shaken(plr.PoissonObservation(rank=2, features=3, link=link, dtype=dtype))
    model = plr.StateSpaceModel(network(dtype), observation)
    y, z = torch.randint(0, 5, (4, 6, 3)).to(dtype), torch.randn(4, 9, 2, dtype=dtype)
    padded = torch.cat([y, torch.full((4, 3, 3), torch.nan, dtype=dtype)], 1)
    results = []
    for recording, latents in ((y, z[:, :6]), (padded, z)):
        log_prob = sites(poutine.condition(model, {"z": latents}), recording)["y"]["log_prob"]
        results.append((log_prob, *torch.autograd.grad(log_prob.sum(), list(observation.parameters()))))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, factor=5)


def test_a_subsampled_plate_around_it_scales_it_and_is_the_only_one() -> None:
    model = gaussian_model(torch.float32)
    y = torch.randn(100, 6, 3)

    def program() -> None:
        with pyro.plate("trials", 100, subsample_size=10, dim=-1) as index:
            model(y[index])

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    for name in ("z", "y"):
        site = trace.nodes[name]
        assert [(f.name, f.size) for f in site["cond_indep_stack"]] == [("trials", 10)]
        assert site["scale"] == 10
        assert_close(site["log_prob_sum"], 10 * site["unscaled_log_prob"].sum(), factor=5)
    index = trace.nodes["trials"]["value"]
    assert torch.equal(trace.nodes["y"]["value"], y[index])


def test_a_plate_of_another_size_is_refused() -> None:
    model = gaussian_model(torch.float32)
    with (
        pyro.plate("trials", 7, dim=-1),
        pytest.raises(ValueError, match="'trials' around the model has 7 trials, the data 4"),
    ):
        model(torch.randn(4, 6, 3))


def test_a_scale_around_it_scales_it() -> None:
    model = gaussian_model()
    y = torch.randn(4, 6, 3, dtype=torch.float64)
    scaled = poutine.trace(poutine.scale(model, scale=0.25)).get_trace(y)
    z = scaled.nodes["z"]["value"]
    plain = poutine.trace(poutine.condition(model, {"z": z})).get_trace(y)
    assert_close(scaled.log_prob_sum(), 0.25 * plain.log_prob_sum())


def test_without_a_recording_it_samples_one(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, inputs=2)
    u = torch.randn(5, 6, 2, dtype=dtype)
    found = sites(model, None, u)
    assert not found["y"]["is_observed"]
    assert found["y"]["value"].shape == (5, 6, 3)
    assert model(None, u).shape == (5, 6, 3)
    alone = gaussian_model(dtype)
    assert alone(num_trials=4, num_steps=7).shape == (4, 7, 3)
    assert alone(num_steps=7).shape == (1, 7, 3)
    with pyro.plate("trials", 5, dim=-1):
        assert alone(num_steps=7).shape == (5, 7, 3)


@VARIANTS
def test_one_time_bin_works(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, **options)
    y, u = torch.randn(4, 1, 3, dtype=dtype), inputs_for(options, dtype, steps=1)
    found = sites(model, y, u)
    z = found["z"]["value"]
    assert_close(found["z"]["log_prob"], log_prob_by_loop(model.dynamics, z, u), factor=20)
    assert_close(found["y"]["log_prob"], likelihood_by_loop(model, y, z, u), factor=20)


def test_a_full_rank_network_is_a_model_too(dtype: torch.dtype) -> None:
    dynamics = shaken(plr.FullRankRNN(units=3, dtype=dtype), 0.1)
    readout = plr.UnitReadout(units=3, dtype=dtype)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(readout=readout, dtype=dtype))
    y = torch.randn(4, 6, 3, dtype=dtype)
    found = sites(model, y)
    z = found["z"]["value"]
    assert_close(found["z"]["log_prob"], log_prob_by_loop(dynamics, z, None), factor=20)
    assert_close(found["y"]["log_prob"], likelihood_by_loop(model, y, z, None), factor=20)


@pytest.mark.parametrize("inputs", ["none", "shared", "own"])
def test_further_plates_around_it_are_dims_in_front_of_the_trials(inputs: str, dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, inputs=0 if inputs == "none" else 2)
    y, z = torch.randn(3, 4, 6, 3, dtype=dtype), torch.randn(3, 4, 6, 2, dtype=dtype)
    y[1, 2, 3] = y[2, 0, 1, 1] = torch.nan
    u = {"none": None, "shared": torch.randn(4, 6, 2, dtype=dtype), "own": torch.randn(3, 4, 6, 2, dtype=dtype)}[inputs]

    def program() -> None:
        with pyro.plate("animals", 3, dim=-2):
            model(y, u)

    together = sites(poutine.condition(program, {"z": z}))
    assert {frame.name for frame in together["y"]["cond_indep_stack"]} == {"trials", "animals"}
    for animal in range(3):
        own = u[animal] if inputs == "own" else u
        alone = sites(poutine.condition(model, {"z": z[animal]}), y[animal], own)
        for name in ("z", "y"):
            assert_close(together[name]["log_prob"][animal], alone[name]["log_prob"], factor=20)
    drawn = sites(program)["z"]["value"]
    assert drawn.shape == (3, 4, 6, 2)
    assert not torch.equal(drawn[0], drawn[1])


def test_dims_in_front_without_their_plate_are_refused() -> None:
    model = gaussian_model(torch.float32)
    with pytest.raises(ValueError, match=r"`y` must have 3 dims, .* got 4 with shape \(3, 4, 6, 3\)"):
        model(torch.randn(3, 4, 6, 3))
    with pyro.plate("animals", 2, dim=-2), pytest.raises(ValueError, match=r"with pyro.plate\('animals', 3, dim=-2\)"):
        model(torch.randn(3, 4, 6, 3))
    with pyro.plate("animals", 3, dim=-2), pytest.raises(ValueError, match="must have 3 features .* got 4"):
        model(torch.randn(3, 4, 6, 4))
