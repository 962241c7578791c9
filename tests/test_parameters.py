from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import gaussian_model

POSITIVE = {"dynamics.noise_scale", "observation.noise_scale"}


@pytest.fixture(params=[False, True], ids=["global_params", "module_local_params"])
def _either_place_of_parameters(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.settings.context(module_local_params=request.param):
        yield


def values(model: plr.StateSpaceModel) -> dict[str, Tensor]:
    """The parameters on the constrained scale, by name."""
    return {name: value.detach().clone() for name, value in model.named_pyro_params()}


@pytest.mark.usefixtures("_either_place_of_parameters")
def test_svi_trains_every_parameter_and_leaves_frozen_ones_alone() -> None:
    model = gaussian_model(torch.float32, inputs=2, noise="diagonal")
    frozen = {"dynamics.left", "observation.noise_scale"}
    model.dynamics.left.requires_grad_(False)
    model.observation.noise_scale_unconstrained.requires_grad_(False)
    before = values(model)
    y, u = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(2):
        svi.step(y, u)
    changed = {name for name, value in values(model).items() if not torch.equal(value, before[name])}
    assert changed == set(before) - frozen
    assert not model.dynamics.left.requires_grad


@pytest.mark.usefixtures("_either_place_of_parameters")
def test_constraints_hold_through_training() -> None:
    model = gaussian_model(torch.float32, noise="full")
    svi = SVI(model, AutoDelta(model), pyro.optim.Adam({"lr": 1.0}), Trace_ELBO())
    for _ in range(5):
        svi.step(torch.randn(4, 6, 3))
    dynamics = model.dynamics
    assert 0 < dynamics.decay < 1
    assert (model.observation.noise_scale > 0).all()
    assert (dynamics.noise_scale.diagonal() > 0).all()
    assert torch.equal(dynamics.noise_scale, dynamics.noise_scale.tril())


@pytest.mark.usefixtures("_either_place_of_parameters")
def test_a_used_model_can_be_copied_pickled_and_loaded() -> None:
    model = gaussian_model(torch.float32)
    y = torch.randn(2, 5, 3)
    model(y)
    expected = values(model)
    empty = gaussian_model(torch.float32)
    empty.load_state_dict(model.state_dict())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), empty):  # noqa: S301 (bytes of this test)
        for name, value in values(again).items():
            assert torch.equal(value, expected[name]), name


def test_a_parameter_takes_a_tensor_on_the_constrained_scale() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, noise="diagonal")
    dynamics.decay = torch.tensor(0.25)
    dynamics.noise_scale = torch.tensor([0.5, 2.0])
    dynamics.left = torch.arange(10.0).reshape(5, 2)
    torch.testing.assert_close(dynamics.decay, torch.tensor(0.25))
    torch.testing.assert_close(dynamics.noise_covariance, torch.diag(torch.tensor([0.25, 4.0])))
    assert torch.equal(dynamics.left, torch.arange(10.0).reshape(5, 2))


@pytest.mark.usefixtures("_either_place_of_parameters")
def test_a_copy_in_another_basis_and_its_original_keep_their_own_values_under_handlers() -> None:
    model = gaussian_model(torch.float32)
    y = torch.randn(4, 6, 3)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(y)
    turned = model.change_basis(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    before = values(model), values(turned)
    for program in (turned, model):
        pyro.poutine.trace(program).get_trace(y)
    for expected, program in zip(before, (model, turned), strict=True):
        for name, value in values(program).items():
            assert torch.equal(value, expected[name]), name
