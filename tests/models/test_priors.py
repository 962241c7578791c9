"""Priors on any parameter, by `PyroSample`."""

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
from pyro.nn import PyroSample
from torch import Tensor
from torch.distributions import constraints, transform_to

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, network, shaken, sites

NAMES = (
    "dynamics.decay",
    "dynamics.left",
    "dynamics.right",
    "dynamics.bias",
    "dynamics.input_weights",
    "dynamics.initial_mean",
    "dynamics.noise_scale",
    "dynamics.initial_noise_scale",
    "observation.readout.weight",
    "observation.readout.input_weight",
    "observation.readout.bias",
    "observation.noise_scale",
)


@pytest.fixture(params=[False, True], ids=["global_params", "module_local_params"], autouse=True)
def _either_place_of_parameters(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.settings.context(module_local_params=request.param):
        yield


def owner_of(model: Any, name: str) -> tuple[Any, str]:
    *path, last = name.split(".")
    return model.get_submodule(".".join(path)), last


def put_prior(model: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...]]:
    """Give a parameter a prior around its value; return a value to condition on and the event shape."""
    module, last = owner_of(model, name)
    value = getattr(module, last).detach()
    if name == "dynamics.decay":
        prior: Any = dist.Beta(torch.tensor(8.0, dtype=dtype), torch.tensor(2.0, dtype=dtype))
    elif name.endswith("noise_scale"):
        prior = dist.LogNormal(value.log(), 0.3).to_event(value.dim())
    else:
        prior = dist.Normal(value, 0.3).to_event(value.dim())
    setattr(module, last, PyroSample(prior))
    return prior.sample(), tuple(value.shape)


def model_with_inputs(dtype: torch.dtype) -> plr.StateSpaceModel:
    return gaussian_model(
        dtype, inputs=2, input_filter=True, activation="tanh", noise="diagonal", initial_noise="scalar"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_sampled_parameter_is_one_site_and_its_value_is_used(name: str, dtype: torch.dtype) -> None:
    model = model_with_inputs(dtype)
    y, u, z = (torch.randn(4, 6, size, dtype=dtype) for size in (3, 2, 2))
    value, shape = put_prior(model, name, dtype)
    found = sites(poutine.condition(model, {"z": z, name: value}), y, u)
    assert set(found) == {"z", "y", name}
    assert found[name]["value"].shape == shape
    assert found[name]["cond_indep_stack"] == ()
    module, last = owner_of(model, name)
    assert_close(found[name]["log_prob_sum"], module._pyro_samples[last].log_prob(value))
    setattr(module, last, torch.nn.Parameter(value))
    expected = sites(poutine.condition(model, {"z": z}), y, u)
    for site in ("z", "y"):
        assert_close(found[site]["log_prob"], expected[site]["log_prob"], factor=5)


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_draws_have_the_density_of_each_on_its_own(name: str) -> None:
    # As many draws as time bins: a wrong alignment of the two would broadcast silently.
    model = model_with_inputs(torch.float64)
    y, u = (torch.randn(4, 6, size, dtype=torch.float64) for size in (3, 2))
    y[1, 2] = y[0, 3, 1] = torch.nan
    z = torch.randn(6, 4, 6, 2, dtype=torch.float64)
    _, shape = put_prior(model, name, torch.float64)
    module, last = owner_of(model, name)
    values = torch.stack([module._pyro_samples[last].sample() for _ in range(6)])

    def vectorised() -> None:
        with pyro.plate("draws", 6, dim=-2):
            model(y, u)

    together = sites(poutine.condition(vectorised, {"z": z, name: values.reshape(6, 1, *shape)}))
    for k in range(6):
        alone = sites(poutine.condition(model, {"z": z[k], name: values[k]}), y, u)
        for site in ("z", "y"):
            assert_close(together[site]["log_prob"][k], alone[site]["log_prob"])


@pytest.mark.parametrize("parallel", [False, True], ids=["one_by_one", "parallel"])
def test_prior_predictive_draws_of_weights_latents_and_recordings(parallel: bool) -> None:
    model = model_with_inputs(torch.float32)
    for name in NAMES:
        put_prior(model, name, torch.float32)
    u = torch.randn(4, 6, 2)
    draws = Predictive(model, num_samples=7, parallel=parallel)(None, u)
    assert set(draws) == {"z", "y", *NAMES}
    assert draws["z"].shape == (7, 4, 6, 2)
    assert draws["y"].shape == (7, 4, 6, 3)
    assert draws["dynamics.left"].squeeze(1).shape == (7, 6, 2)
    # Every draw has weights, latents and noise of its own.
    for value in draws.values():
        assert len(torch.unique(value.reshape(7, -1), dim=0)) == 7


@pytest.mark.parametrize("source", ["currents", "rates"])
def test_readouts_of_units_follow_vectorised_weights(source: str) -> None:
    observation = plr.GaussianObservation(readout=plr.UnitReadout(units=6, source=source, dtype=torch.float64))
    model = plr.StateSpaceModel(network(inputs=2), shaken(observation))
    y, u = (torch.randn(4, 6, size, dtype=torch.float64) for size in (6, 2))
    z = torch.randn(6, 4, 6, 2, dtype=torch.float64)
    names = ("dynamics.left", "dynamics.input_weights", "observation.readout.scale")
    values = {}
    for name in names:
        _, shape = put_prior(model, name, torch.float64)
        values[name] = torch.randn(6, 1, *shape, dtype=torch.float64)

    def vectorised() -> None:
        with pyro.plate("draws", 6, dim=-2):
            model(y, u)

    together = sites(poutine.condition(vectorised, {"z": z, **values}))["y"]["log_prob"]
    for k in range(6):
        given = {"z": z[k], **{name: value[k, 0] for name, value in values.items()}}
        assert_close(together[k], sites(poutine.condition(model, given), y, u)["y"]["log_prob"])


def test_a_prior_on_a_covariance_factor_is_sampled_too() -> None:
    model = gaussian_model(noise="full")
    factor = transform_to(constraints.corr_cholesky)(torch.randn(1, dtype=torch.float64))
    model.dynamics.noise_scale = PyroSample(dist.LKJCholesky(2, torch.tensor(1.0, dtype=torch.float64)))
    y, z = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(4, 6, 2, dtype=torch.float64)
    found = sites(poutine.condition(model, {"z": z, "dynamics.noise_scale": factor}), y)
    model.dynamics.noise_scale = torch.nn.Parameter(factor)
    assert_close(found["z"]["log_prob"], sites(poutine.condition(model, {"z": z}), y)["z"]["log_prob"])


def test_the_elbo_is_the_same_with_vectorised_particles() -> None:
    model = gaussian_model(activation="tanh")
    put_prior(model, "dynamics.left", torch.float64)
    put_prior(model, "observation.readout.weight", torch.float64)
    y = torch.randn(3, 5, 3, dtype=torch.float64)
    guide = AutoNormal(model, init_scale=0.05)
    guide(y)
    losses = []
    for vectorize in (False, True):
        pyro.set_rng_seed(3)
        elbo = Trace_ELBO(num_particles=60, vectorize_particles=vectorize, max_plate_nesting=1)
        losses.append(elbo.loss(model, guide, y))
    spread = torch.tensor([Trace_ELBO().loss(model, guide, y) for _ in range(40)]).std().item()
    assert abs(losses[0] - losses[1]) < 5 * spread * (2 / 60) ** 0.5


def test_svi_learns_a_posterior_over_weights_and_trains_the_rest() -> None:
    model = gaussian_model(torch.float32, activation="identity")
    put_prior(model, "observation.readout.weight", torch.float32)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    y, decay = model.simulate(num_trials=4, num_steps=10).y, model.dynamics.decay.item()
    losses = [svi.step(y) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert model.dynamics.decay.item() != decay
    assert guide.median()["observation.readout.weight"].shape == (3, 2)
