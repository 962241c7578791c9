"""What a run, an online filter and a guide leave behind goes to another process and works there."""

from __future__ import annotations

import pickle
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_lowrank as plr
from tests.infer.test_programs import User


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 (its own)


def seeded(function: Any) -> Any:
    torch.manual_seed(2)
    return function()


def poisson() -> plr.StateSpaceModel:
    return plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=9, inputs=1, input_filter=True), plr.PoissonObservation(rank=2, features=3)
    )


def gaussian() -> plr.StateSpaceModel:
    return plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))


def encoder(model: plr.StateSpaceModel) -> plr.EncoderGuide:
    return plr.EncoderGuide(model, plr.ConvEncoder(features=3, rank=2, channels=(4,), kernel_sizes=(3, 1)))


PAIRS = [
    (gaussian, plr.OptimalGuide),
    (gaussian, plr.BootstrapGuide),
    (gaussian, encoder),
    (poisson, plr.LaplaceGuide),
]


def data_of(model: plr.StateSpaceModel) -> tuple[torch.Tensor, ...]:
    inputs = model.dynamics.num_inputs
    u = torch.randn(4, 6, inputs)
    return (model.simulate(u=u).y, u) if inputs else (model.simulate(4, 6).y,)


@pytest.mark.parametrize(("model_of", "guide_of"), PAIRS)
def test_a_posterior_smooths_and_runs_again_elsewhere(model_of: Any, guide_of: Any) -> None:
    model = model_of()
    data = data_of(model)
    # Reading the parameters under Pyro's handlers leaves references to them in the values.
    with pyro.poutine.trace():
        posterior = plr.SMCFilter(model, guide_of(model), 20).run(*data)
    posterior.smooth(2)
    other = again(posterior)
    for method in ("backward", "mcmc"):
        ours, theirs = (seeded(lambda p=p: p.smooth(5, method=method)) for p in (posterior, other))  # noqa: B023
        assert torch.equal(ours, theirs)
    assert torch.equal(*(seeded(lambda p=p: p.rerun().log_evidence) for p in (posterior, other)))


@pytest.mark.parametrize(("model_of", "guide_of"), PAIRS)
def test_an_online_filter_goes_on_elsewhere_with_the_parameters_it_began_with(model_of: Any, guide_of: Any) -> None:
    model = model_of()
    guide, data = guide_of(model), data_of(model)
    smc = plr.SMCFilter(model, guide, 20, lag=2)
    smc.init(*(value[:, 0] for value in data))
    smc.step(*(value[:, 1] for value in data))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    other = again(smc)
    for each in (smc, other):
        torch.manual_seed(1)
        each.step(*(value[:, 2] for value in data))
    assert torch.equal(smc.log_evidence, other.log_evidence)
    assert torch.equal(*(seeded(lambda s=s: s.posterior().smooth(3)) for s in (smc, other)))


def test_runs_of_a_users_model_go_elsewhere_too() -> None:
    y = torch.randn(4, 5, 2)
    posterior = plr.SMCFilter(User(), None, 20).run(y)
    assert torch.equal(*(seeded(lambda p=p: p.smooth(3)) for p in (posterior, again(posterior))))
    smc = plr.SMCFilter(User(), None, 20)
    smc.init(y[:, 0])
    other = again(smc)
    for each in (smc, other):
        torch.manual_seed(1)
        each.step(y[:, 1])
    assert torch.equal(smc.log_evidence, other.log_evidence)


@pytest.mark.parametrize("local", [False, True], ids=["global params", "module-local params"])
def test_autoguides_and_trained_models_go_elsewhere(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model = gaussian()
        (y,) = data_of(model)
        guide = AutoNormal(model)
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(y)
        SVI(model, plr.OptimalGuide(model), pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(y)
        other = again(guide)
        assert torch.equal(guide.median(y)["z"], other.median(y)["z"])
        copied = again(model)
        for name, value in model.state_dict().items():
            assert torch.equal(value, copied.state_dict()[name])


def test_a_value_knows_its_parameter_after_a_pickle() -> None:
    model = gaussian()
    with pyro.poutine.trace():
        decay = model.dynamics.decay
    both = again((model, decay))
    assert both[1].unconstrained() is both[0].dynamics.decay_unconstrained
