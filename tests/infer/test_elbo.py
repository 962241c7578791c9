"""SMC_ELBO in Pyro: SVI, ELBOModule, scales, plates, parameter stores, frozen parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroParam, PyroSample
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_lowrank as plr
from tests.oracles.linear import exact_log_evidence, linear_model


@pytest.fixture(params=[False, True], ids=["global params", "module-local params"])
def local_params(request: pytest.FixtureRequest) -> Iterator[bool]:
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


def small_model(**options: Any) -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(rank=2, units=20, **options)
    return plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=5, noise_scale=0.5))


def seeded(function: Callable[[], float]) -> float:
    torch.manual_seed(7)
    return function()


def test_svi_raises_the_evidence_and_moves_every_parameter(local_params: bool) -> None:
    teacher = small_model(weights="gaussian")
    y = teacher.simulate(20, 20).y
    model = small_model()
    guide = plr.OptimalGuide(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    svi = SVI(model, guide, ClippedAdam({"lr": 0.02}), plr.SMC_ELBO(10))
    losses = [svi.step(y) for _ in range(60)]
    assert losses[-1] < losses[0] - 100
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert svi.evaluate_loss(y) == pytest.approx(losses[-1], rel=0.1)


def test_elbo_module_with_a_torch_optimiser_leaves_the_parameter_store_alone(local_params: bool) -> None:
    y = small_model().simulate(10, 10).y
    model = small_model()
    loss = plr.SMC_ELBO(10)(model, plr.OptimalGuide(model))
    optimiser = torch.optim.Adam(loss.parameters(), 0.02)
    values = []
    for _ in range(40):
        optimiser.zero_grad()
        value = loss(y)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert len(pyro.get_param_store()) == 0


def test_svi_and_elbo_module_have_the_same_loss_and_gradients(local_params: bool) -> None:
    model = small_model()
    guide = plr.OptimalGuide(model)
    y = model.simulate(5, 6).y
    elbo = plr.SMC_ELBO(10)
    torch.manual_seed(1)
    elbo(model, guide)(y).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    with poutine.trace(param_only=True) as capture:
        elbo.loss_and_grads(model, guide, y)
    assert len(capture.trace.nodes) == len(expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_the_loss_is_minus_the_log_evidence_summed_over_trials() -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 5).y
    exact = exact_log_evidence(model, y).sum().item()
    assert plr.SMC_ELBO(5000).loss(model, plr.OptimalGuide(model), y) == pytest.approx(-exact, abs=0.15)


def test_scales_scale_the_evidence_wherever_they_stand() -> None:
    model = small_model()
    guide = plr.OptimalGuide(model)
    y = model.simulate(5, 6).y
    elbo = plr.SMC_ELBO(10)
    plain = seeded(lambda: elbo.loss(model, guide, y))
    scaled_model, scaled_guide = poutine.scale(model, scale=0.25), poutine.scale(guide, scale=0.25)
    assert seeded(lambda: elbo.loss(scaled_model, scaled_guide, y)) == pytest.approx(0.25 * plain)
    with poutine.scale(scale=0.25):
        assert seeded(lambda: elbo.loss(model, guide, y)) == pytest.approx(0.25 * plain)
    with pyro.plate("trials", 50, subsample=torch.arange(5), dim=-1) as indices:
        assert seeded(lambda: elbo.loss(model, guide, y[indices])) == pytest.approx(10 * plain)
    with pytest.raises(TypeError, match=r"only `poutine.scale` and `pyro.plate` .* got .*ConditionMessenger"):
        elbo.loss(poutine.condition(model, data={}), guide, y)


def test_frozen_parameters_stay_frozen(local_params: bool) -> None:
    model = small_model()
    model.dynamics.requires_grad_(False)
    model.observation.readout.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    svi = SVI(model, plr.OptimalGuide(model), ClippedAdam({"lr": 0.1}), plr.SMC_ELBO(10))
    svi.step(model.simulate(5, 6).y)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["observation.noise_scale_unconstrained"]
    assert not any(parameter.requires_grad for parameter in model.dynamics.parameters())


def test_a_second_model_does_not_take_the_values_of_the_first() -> None:
    first, second = small_model(), small_model()
    y = first.simulate(5, 6).y
    svi = SVI(first, plr.OptimalGuide(first), ClippedAdam({"lr": 0.1}), plr.SMC_ELBO(10))
    svi.step(y)
    own = second.dynamics.left.detach().clone()
    plr.SMCFilter(second, plr.OptimalGuide(second), 10).run(y)
    second.simulate(2, 3)
    second.dynamics(torch.zeros(2))
    second(y)
    plr.SMC_ELBO(10)(second, plr.OptimalGuide(second))(y)
    assert torch.equal(second.dynamics.left, own)
    assert not torch.equal(first.dynamics.left, own)


def test_svi_on_a_second_model_warns_that_the_first_replaces_it() -> None:
    first, second = small_model(), small_model()
    y = first.simulate(5, 6).y
    SVI(first, plr.OptimalGuide(first), ClippedAdam({}), plr.SMC_ELBO(5)).step(y)
    again = SVI(second, plr.OptimalGuide(second), ClippedAdam({}), plr.SMC_ELBO(5))
    with pytest.warns(UserWarning, match=r"another value under the name .*clear_param_store") as caught:
        again.step(y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.step(y)


def test_priors_on_weights_meet_the_evidence_in_a_plain_pyro_model(local_params: bool) -> None:
    """log Zhat as a factor: an autoguide over the weights, the particle filter inside."""
    model = small_model()
    model.dynamics.initial_mean = PyroSample(pyro.distributions.Normal(0.0, 5.0).expand([2]).to_event(1))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    guide = plr.OptimalGuide(model)
    elbo = plr.SMC_ELBO(20)
    y = small_model().simulate(30, 3).y + 2

    class Bayesian(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, y: Tensor) -> None:
            pyro.factor("evidence", -elbo.differentiable_loss(self.model, guide, y))

    program = Bayesian()
    posterior = pyro.infer.autoguide.AutoNormal(program)
    svi = SVI(program, posterior, ClippedAdam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step(y) for _ in range(80)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert list(posterior.median()) == ["model.dynamics.initial_mean"]


def test_bad_data_is_refused_before_any_work() -> None:
    model = small_model(inputs=1)
    guide = plr.OptimalGuide(model)
    elbo = plr.SMC_ELBO(10)
    y, u = torch.randn(4, 6, 5), torch.randn(4, 6, 1)
    infinite = y.clone()
    infinite[:, 2] = torch.inf
    cases = [
        ((y[0], u), "3 dims, trials x time x features, got 2 .*y\\[None\\]"),
        ((y[..., :4], u), "must have 5 features .* got 4"),
        ((y.mT, u), "must have 5 features .* got 6 .*y.mT"),
        ((y, u[:, :5]), "as long as the data, 6 time bins, got 5"),
        ((y, u.repeat(1, 2, 1)), "as long as the data, 6 time bins, got 12"),
        ((y, u[:3]), "as many trials as the data, 4, got 3"),
        ((y,), "built with inputs=1, but no inputs came"),
        (
            (infinite, u),
            "infinite values, the first at index \\(0, 2, 0\\)",
        ),
        ((y[:, :0], u[:, :0]), "`y` is empty"),
        ((y, u * torch.nan), "`u` holds NaN: inputs cannot be missing"),
    ]
    for arguments, message in cases:
        for run in (elbo(model, guide), plr.SMCFilter(model, guide, 10).run):
            with pytest.raises(ValueError, match=message):
                run(*arguments)
    assert elbo(model, guide)(y[:, :1], u[:, :1]).isfinite()


def test_a_users_module_is_found_among_the_parameters() -> None:
    """The guide's own parameters are trained too."""

    class Shifted(plr.BootstrapGuide):
        def __init__(self, model: plr.StateSpaceModel) -> None:
            super().__init__(model)
            self.shift = nn.Linear(1, 1)

    model = small_model()
    names = {name for name, _ in plr.SMC_ELBO(5)(model, Shifted(model)).named_parameters()}
    assert {"guide.shift.weight", "model.dynamics.left_unconstrained"} <= names
    assert not any(name.startswith("guide") and "dynamics" in name for name in names)


def test_a_users_observation_model_is_trained(local_params: bool) -> None:
    class Laplace(plr.Observation):
        def __init__(self) -> None:
            super().__init__(features=2)
            self.spread = PyroParam(torch.tensor(3.0), constraints.positive)

        def distribution(self, z: Tensor, v: Tensor | None = None) -> pyro.distributions.TorchDistribution:
            return pyro.distributions.Laplace(z, self.spread).to_event(1)

    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=10, noise_scale=0.05), Laplace())
    guide = plr.BootstrapGuide(model)
    y = torch.distributions.Laplace(0.0, 1.0).sample((40, 10, 2))
    y[3, 4] = y[5, :, 1] = torch.nan
    svi = SVI(model, guide, ClippedAdam({"lr": 0.05}), plr.SMC_ELBO(10))
    for _ in range(60):
        svi.step(y)
    assert model.observation.spread.item() == pytest.approx(1.0, abs=0.15)
    with pytest.raises(ValueError, match="affine-Gaussian"):
        plr.OptimalGuide(model)


def test_sampled_weights_are_drawn_once_per_evaluation() -> None:
    model = small_model()
    prior = pyro.distributions.Normal(0.0, 1.0).expand([20, 2]).to_event(2)
    model.dynamics.left = PyroSample(prior)
    guide = plr.BootstrapGuide(model)
    y = torch.randn(3, 4, 5)
    with poutine.trace() as capture:
        plr.SMC_ELBO(5).differentiable_loss(model, guide, y)
    assert capture.trace.nodes["dynamics.left"]["value"].shape == (20, 2)
    assert capture.trace.stochastic_nodes == ["dynamics.left"]


def test_priors_that_nothing_infers_are_refused(local_params: bool) -> None:
    model = small_model()
    model.dynamics.left = PyroSample(pyro.distributions.Normal(0.0, 1.0).expand([20, 2]).to_event(2))
    guide = plr.BootstrapGuide(model)
    y = torch.randn(3, 4, 5)
    svi = SVI(model, guide, ClippedAdam({}), plr.SMC_ELBO(5))
    for run in (svi.step, plr.SMC_ELBO(5)(model, guide), plr.SMCFilter(model, guide, 5).run):
        with pytest.raises(ValueError, match=r"dynamics.left have priors .*pyro.factor.*poutine.condition"):
            run(y)
    with poutine.condition(data={"dynamics.left": torch.zeros(20, 2)}):
        assert plr.SMCFilter(model, guide, 5).run(y).log_evidence.isfinite().all()


def test_data_that_were_checked_are_checked_again_once_they_change() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=3))
    elbo, guide, y = plr.SMC_ELBO(4), plr.BootstrapGuide(model), torch.randn(2, 6, 3)
    for _ in range(2):
        elbo.loss(model, guide, y)
    y[0, 1, 2] = torch.inf
    with pytest.raises(ValueError, match="infinite"):
        elbo.loss(model, guide, y)
    y[0, 1, 2] = 0.0
    with pytest.raises(TypeError, match="float64"):
        elbo.loss(model, guide, y.double())
    elbo.loss(model, guide, y)
    model.double()
    with pytest.raises(TypeError, match="float64"):
        elbo.loss(model, guide, y)


@pytest.mark.parametrize("guide_of", [None, plr.BootstrapGuide, plr.OptimalGuide, plr.LaplaceGuide])
def test_fishers_gradient_is_followed_unless_told_otherwise(guide_of: Any) -> None:
    model = small_model()
    guide, y = None if guide_of is None else guide_of(model), torch.randn(3, 8, 5)
    parameters = [model.dynamics.left, model.dynamics.noise_scale_unconstrained]
    found = []
    for options in ({}, {"gradient": plr.FisherGradient()}, {"gradient": plr.PathwiseGradient()}):
        torch.manual_seed(7)
        loss = plr.SMC_ELBO(8, backend="plain", **options).differentiable_loss(model, guide, y)
        found.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-3)
