"""Particle filters inside Pyro programs: seen from outside they are one number, whoever has written the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import constraints

import pyro_lowrank as plr

TRIALS, STEPS = 5, 3


class User:
    """A model that the user has written, with sites z and y in a plate of trials."""

    def __init__(self, spread: Any = 1.0) -> None:
        self.spread = spread

    def __call__(self) -> None:
        """Pyro's handlers wrap what can be called."""

    def init(self, state: Any, y: Tensor) -> None:
        self._move(state, torch.zeros(y.shape[0], 2), y)

    def step(self, state: Any, y: Tensor) -> None:
        self._move(state, state["z"], y)

    def _move(self, state: Any, before: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", y.shape[0], dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(0.5 * before, self.spread).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(1), obs=y)


class UserModule(PyroModule):
    """The same with a parameter; `spread` may get a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = PyroParam(torch.tensor(1.5), constraints.positive)

    init = pyro.nn.pyro_method(User.init)
    step = pyro.nn.pyro_method(User.step)
    _move = User._move


def built_in() -> plr.StateSpaceModel:
    return plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=2))


@pytest.fixture(params=[User, UserModule, built_in])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def y() -> Tensor:
    return torch.randn(TRIALS, STEPS, 2)


elbo = plr.SMC_ELBO(20)


def seeded(function: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(3)
    return function(*args)


def total(program: Callable[..., Any], *args: Any) -> Tensor:
    """Return the log density of a program, with the filter's random numbers fixed."""
    return seeded(lambda: poutine.trace(program).get_trace(*args).log_prob_sum())


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_program_sees_one_factor_and_the_parameters(model: Any, y: Tensor, steps: int) -> None:
    y = y[:, :steps]
    expected = -seeded(elbo.loss, model, None, y)

    def program() -> None:
        pyro.factor("e", -elbo.differentiable_loss(model, None, y))

    trace = seeded(poutine.trace(program).get_trace)
    assert trace.log_prob_sum().item() == pytest.approx(expected, rel=1e-5)
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["e"]
    trained = [p for p in getattr(model, "parameters", list)() if p.requires_grad]
    assert len(trace.param_nodes) == len(trained)


def test_two_filters_stand_side_by_side_and_add_up(model: Any, y: Tensor) -> None:
    def program() -> None:
        pyro.factor("first", -elbo.differentiable_loss(model, None, y[:2]))
        pyro.factor("second", -elbo.differentiable_loss(model, None, y[2:]))

    expected = -seeded(lambda: sum(elbo.differentiable_loss(model, None, part).item() for part in (y[:2], y[2:])))
    assert total(program).item() == pytest.approx(expected, rel=1e-5)


def test_a_scale_scales_once_with_and_without_a_program(model: Any, y: Tensor) -> None:
    def program(model: Any) -> None:
        pyro.factor("e", -elbo.differentiable_loss(model, None, y))

    expected = -seeded(elbo.loss, model, None, y)
    with poutine.scale(scale=0.5):
        assert -seeded(elbo.loss, model, None, y) == pytest.approx(0.5 * expected, rel=1e-5)
    assert total(poutine.scale(program, scale=0.5), model).item() == pytest.approx(0.5 * expected, rel=1e-5)
    # One that is the model's own is its evidence's, in the program too.
    half = poutine.scale(model, scale=0.5)
    assert -seeded(elbo.loss, half, None, y) == pytest.approx(0.5 * expected, rel=1e-5)
    assert total(program, half).item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert total(poutine.scale(program, scale=0.5), half).item() == pytest.approx(0.25 * expected, rel=1e-5)


def test_a_mask_masks_the_evidence(model: Any, y: Tensor) -> None:
    plain = seeded(elbo.log_evidence, model, None, y)
    trials = torch.tensor([True, False, True, True, False])
    with poutine.mask(mask=False):
        assert seeded(elbo.loss, model, None, y) == 0
    with poutine.mask(mask=trials):
        found = seeded(elbo.log_evidence, model, None, y)
    torch.testing.assert_close(found, plain * trials)
    with poutine.mask(mask=torch.ones(4, TRIALS, dtype=torch.bool)), pytest.raises(ValueError, match="which trials"):
        elbo.loss(model, None, y)


def test_conditioning_a_program_leaves_the_data_of_its_filters_alone(model: Any, y: Tensor) -> None:
    def program() -> None:
        pyro.factor("e", -elbo.differentiable_loss(model, None, y))

    expected = total(program)
    for name in ("y", "z"):
        conditioned = poutine.condition(program, data={name: torch.zeros(TRIALS, 2)})
        torch.testing.assert_close(total(conditioned), expected)
        with poutine.condition(data={name: torch.zeros(TRIALS, 2)}):
            assert -seeded(elbo.loss, model, None, y) == pytest.approx(expected.item(), rel=1e-5)


def test_a_subsampled_plate_weighs_the_evidence_of_each_of_its_trials(model: Any) -> None:
    y = torch.randn(50, STEPS, 2)

    def program() -> None:
        with pyro.plate("trials", 50, subsample=torch.arange(TRIALS), dim=-1) as index:
            pyro.factor("e", elbo.log_evidence(model, None, y[index]))

    expected = -10 * seeded(elbo.loss, model, None, y[:TRIALS])
    assert total(program).item() == pytest.approx(expected, rel=1e-5)
    with pyro.plate("trials", 50, subsample=torch.arange(TRIALS), dim=-1):
        assert -seeded(elbo.loss, model, None, y[:TRIALS]) == pytest.approx(expected, rel=1e-5)


def test_a_sum_over_trials_in_their_plate_is_refused(model: Any, y: Tensor) -> None:
    def program() -> None:
        with pyro.plate("trials", TRIALS, dim=-1):
            pyro.factor("e", -elbo.differentiable_loss(model, None, y))

    with pytest.raises(ValueError, match=r"count 5 times: .*elbo.log_evidence\(model, guide, y\)"):
        total(program)


def test_plates_that_are_iterated_over_may_be_around(model: Any, y: Tensor) -> None:
    def program() -> None:
        for i in pyro.plate("animals", 2):
            pyro.factor(f"e_{i}", elbo.log_evidence(model, None, y).sum())

    expected = -seeded(lambda: sum(elbo.differentiable_loss(model, None, y).item() for _ in range(2)))
    assert total(program).item() == pytest.approx(expected, rel=1e-5)


def test_several_draws_at_once_are_refused_and_one_by_one_they_are_not(y: Tensor) -> None:
    # As many draws as particles and as trials: weights would line up with either, silently.
    network = built_in()
    network.dynamics.left = PyroSample(dist.Normal(0.0, 1.0).expand([9, 2]).to_event(2))
    network.dynamics.requires_grad_(False)

    def of_weights(y: Tensor) -> None:
        pyro.factor("e", -plr.SMC_ELBO(5).differentiable_loss(network, None, y))

    def of_a_number(y: Tensor) -> None:
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        pyro.factor("e", -plr.SMC_ELBO(5).differentiable_loss(User(spread), None, y))

    def of_a_run(y: Tensor) -> None:
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        pyro.factor("e", plr.SMCFilter(User(spread), None, 5).run(y).log_evidence.sum())

    for program in (of_weights, of_a_number, of_a_run):
        guide = AutoNormal(program)
        guide(y)
        for nesting in (0, 1):
            together = Trace_ELBO(num_particles=TRIALS, vectorize_particles=True, max_plate_nesting=nesting)
            with pytest.raises(ValueError, match="'num_particles_vectorized' of size 5 .*vectorize_particles=False"):
                together.loss(program, guide, y)
        with pytest.raises(ValueError, match=r"one draw .*Predictive\(parallel=False\)"):
            Predictive(program, num_samples=TRIALS, parallel=True)(y)
        alone = torch.tensor([Trace_ELBO(num_particles=TRIALS).loss(program, guide, y) for _ in range(3)])
        assert alone.isfinite().all()
        assert set(Predictive(program, num_samples=TRIALS)(y)) & {"spread", "dynamics.left"}


def test_priors_of_a_users_module_are_sites_of_the_program_drawn_once(y: Tensor) -> None:
    model = UserModule()
    model.spread = PyroSample(dist.LogNormal(0.0, 0.5))
    with pytest.raises(ValueError, match=r"spread have priors .*pyro.factor"):
        elbo.loss(model, None, y)
    with pytest.raises(ValueError, match=r"spread have priors .*pyro.factor"):
        plr.SMCFilter(model, None, 20).init(y[:, 0])

    def program() -> None:
        pyro.factor("e", -elbo.differentiable_loss(model, None, y))

    trace = seeded(poutine.trace(program).get_trace)
    assert trace.stochastic_nodes == ["spread"]
    spread = trace.nodes["spread"]["value"]
    assert spread.shape == ()
    torch.manual_seed(3)
    expected = -elbo.loss(User(dist.LogNormal(0.0, 0.5).sample()), None, y)
    torch.testing.assert_close(trace.nodes["e"]["fn"].log_factor.item(), expected)
    with poutine.condition(data={"spread": spread}):
        smc = plr.SMCFilter(model, None, 20)
        torch.manual_seed(1)
        smc.init(y[:, 0])
        smc.step(y[:, 1])
    own = plr.SMCFilter(User(spread), None, 20)
    torch.manual_seed(1)
    own.init(y[:, 0])
    own.step(y[:, 1])
    assert torch.equal(smc.log_evidence, own.log_evidence)


def test_smoothing_leaves_no_site_in_a_program(model: Any, y: Tensor) -> None:
    with poutine.trace() as recorder, poutine.condition(data={"z": torch.zeros(20, TRIALS, 2)}):
        paths = plr.SMCFilter(model, None, 20).run(y).smooth(4)
    assert [name for name, site in recorder.trace.nodes.items() if site["type"] == "sample"] == []
    assert paths.abs().min() > 0


def test_a_plate_around_may_have_the_names_and_dims_of_the_filter(y: Tensor) -> None:
    with pyro.plate("particles", 3, dim=-2), pyro.plate("trials", TRIALS, dim=-1):
        inside = seeded(elbo.loss, User(), None, y)
    assert inside == pytest.approx(seeded(elbo.loss, User(), None, y))


def test_svi_and_nuts_infer_what_a_users_model_has_a_prior_on() -> None:
    model = UserModule()
    model.spread = PyroSample(dist.LogNormal(0.0, 0.5))
    z = torch.zeros(60, 2)
    bins = []
    for _ in range(6):
        z = 0.5 * z + 0.4 * torch.randn_like(z)
        bins.append(z + torch.randn_like(z))
    y = torch.stack(bins, -2)

    def program(y: Tensor) -> None:
        pyro.factor("e", -plr.SMC_ELBO(40, gradient=plr.PathwiseGradient()).differentiable_loss(model, None, y))

    guide = AutoNormal(program, init_scale=0.05)
    svi = SVI(program, guide, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    for _ in range(80):
        svi.step(y)
    assert guide.median()["spread"].item() == pytest.approx(0.4, abs=0.2)
    mcmc = MCMC(NUTS(program, max_tree_depth=2), num_samples=4, warmup_steps=2, disable_progbar=True)
    mcmc.run(y)
    assert mcmc.get_samples()["spread"].shape == (4,)
