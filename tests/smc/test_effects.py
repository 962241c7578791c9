"""Models run through Pyro's effects: the same numbers as the plain path, and any user-written model."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

import pyro_lowrank as plr
from pyro_lowrank.guides.base import Guide
from tests.builders import shaken
from tests.oracles.linear import kalman_filter, linear_model
from tests.smc.test_loop import incremental_log_weights

GUIDES = [plr.OptimalGuide, plr.BootstrapGuide, plr.LaplaceGuide]


class Delegate:
    """A model or guide that is not built in, so that it runs through Pyro's effects."""

    def __init__(self, inner: Any) -> None:
        self.init, self.step = inner.init, inner.step


@pytest.mark.parametrize("guide_type", GUIDES)
@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("noise", ["diagonal", "autoregressive"])
def test_replayed_particles_get_equal_weights(guide_type: type[Guide], inputs: int, noise: str) -> None:
    """The plain path's particles, replayed through the model's and the guide's traces, weigh the same."""
    dynamics = plr.LowRankRNN(
        rank=2, units=9, inputs=inputs, input_filter=inputs > 0, activation="tanh", dtype=torch.float64
    )
    order = 2 if noise == "autoregressive" else None
    observation = plr.GaussianObservation(
        rank=2, features=3, inputs=inputs, noise=noise, order=order, dtype=torch.float64
    )
    model = plr.StateSpaceModel(dynamics, shaken(observation))
    guide = guide_type(model)
    u = torch.randn(4, 6, inputs, dtype=torch.float64) if inputs else None
    y = model.simulate(4, 6, u).y
    y[0, 2] = y[1, 3, 0] = torch.nan
    posterior = plr.SMCFilter(model, guide, 15).run(y, u)
    expected = incremental_log_weights(posterior)
    state: dict[str, Tensor] = {}
    encoding = guide.encode(y, u)
    plate = pyro.plate("particles", 15, dim=-2)
    for t in range(6):
        z = posterior.particles["z"][..., t, :]
        u_t = None if u is None else u[:, t]
        encoding_t = {name: value[:, t] for name, value in encoding.items()}
        state = {
            name: torch.stack([value[posterior.ancestors[t][:, b], b] for b in range(4)], 1)
            for name, value in state.items()
        }
        method = "init" if t == 0 else "step"
        with plate, poutine.condition(data={"z": z}):
            guide_trace = poutine.trace(getattr(guide, method)).get_trace(state, y[:, t], u_t, encoding=encoding_t)
            unaided = poutine.trace(getattr(guide, method)).get_trace(state, y[:, t], u_t)
            model_trace = poutine.trace(getattr(model, method)).get_trace(state, y[:, t], u_t)
        for trace in (guide_trace, unaided, model_trace):
            trace.compute_log_prob()
        torch.testing.assert_close(unaided.nodes["z"]["log_prob"], guide_trace.nodes["z"]["log_prob"])
        log_model = model_trace.nodes["z"]["log_prob"] + model_trace.nodes["y"]["log_prob"]
        torch.testing.assert_close(log_model - guide_trace.nodes["z"]["log_prob"], expected[t])


@pytest.mark.parametrize("guide_type", GUIDES)
def test_the_effects_path_converges_to_the_exact_evidence(guide_type: type[Guide]) -> None:
    model = linear_model(inputs=1, noise_scale=1.0)
    u = torch.randn(3, 6, 1, dtype=torch.float64)
    y = model.simulate(3, 6, u).y
    y[2, 3:] = torch.nan
    exact = kalman_filter(model, y, u)
    smc = plr.SMCFilter(Delegate(model), Delegate(guide_type(model)), 20_000)
    posterior = smc.run(y, u)
    torch.testing.assert_close(posterior.log_evidence, exact.increments.sum(0), rtol=0, atol=0.12)
    assert posterior.mean().shape == (3, 6, 2)


@pytest.mark.parametrize("guide_type", GUIDES)
def test_pyros_own_filter_runs_the_same_model_and_guide(guide_type: type[Guide]) -> None:
    model = linear_model(inputs=1, noise_scale=1.0)
    u = torch.randn(1, 6, 1, dtype=torch.float64)
    y = model.simulate(1, 6, u).y
    smc = pyro.infer.SMCFilter(model, guide_type(model), 10_000, max_plate_nesting=1)
    with torch.no_grad():
        smc.init(y[:, 0], u[:, 0])
        for t in range(1, 6):
            smc.step(y[:, t], u[:, t])
    exact = kalman_filter(model, y, u)
    spread = exact.covariance[0, -1].diagonal().sqrt()
    assert ((smc.get_empirical()["z"].mean.squeeze() - exact.mean[0, -1]).abs() < 0.1 * spread).all()


class Oscillator:
    """A noisy harmonic oscillator as in Pyro's example of a filter: no plates, keyword arguments, a time counter."""

    def __init__(self) -> None:
        self.turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])

    def init(self, state: Any, initial: Tensor) -> None:
        self.t = 0
        state["z"] = pyro.sample("z_0", dist.Delta(initial, event_dim=1))

    def step(self, state: Any, y: Tensor | None = None) -> Tensor:
        self.t += 1
        mean = state["z"] @ self.turn
        state["z"] = pyro.sample(f"z_{self.t}", dist.Normal(mean, torch.tensor(3.0)).to_event(1))
        return pyro.sample(f"y_{self.t}", dist.Normal(state["z"][..., 0], 1.0), obs=y)


class OscillatorGuide(Oscillator):
    def init(self, state: Any, initial: Tensor) -> None:
        self.t = 0
        pyro.sample("z_0", dist.Delta(initial, event_dim=1))

    def step(self, state: Any, y: Tensor | None = None) -> None:  # type: ignore[override]
        self.t += 1
        pyro.sample(f"z_{self.t}", dist.Normal(state["z"] @ self.turn, torch.tensor(4.0)).to_event(1))


def test_a_model_written_for_pyros_filter_runs_unchanged() -> None:
    ours = plr.SMCFilter(Oscillator(), OscillatorGuide(), 20_000, max_plate_nesting=0)
    theirs = pyro.infer.SMCFilter(Oscillator(), OscillatorGuide(), 20_000, max_plate_nesting=0)
    y = 3 * torch.randn(6)
    results = []
    for smc in (ours, theirs):
        smc.init(initial=torch.tensor([1.0, 0.0]))
        for y_t in y:
            smc.step(y_t)
        results.append(smc.get_empirical()["z"])
    assert ours.log_weights.shape == (20_000,)
    torch.testing.assert_close(results[0].mean, results[1].mean, rtol=0, atol=0.3)
    torch.testing.assert_close(results[0].variance, results[1].variance, rtol=0.15, atol=0)


class GlobalAndLocal:
    """Latents outside and inside a plate that is not one of trials: particles are weighed as a whole."""

    def init(self, state: Any, y: Tensor) -> None:
        state["level"] = pyro.sample("level", dist.Normal(0.0, 1.0))
        self.step(state, y)

    def step(self, state: Any, y: Tensor) -> None:
        with pyro.plate("channels", 3):
            offset = pyro.sample("offset", dist.Normal(state["level"], 1.0))
            pyro.sample("y", dist.Normal(offset, 1.0), obs=y)


class GlobalAndLocalGuide(GlobalAndLocal):
    def init(self, state: Any, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        with pyro.plate("channels", 3):
            pyro.sample("offset", dist.Normal(level, 1.5))

    def step(self, state: Any, y: Tensor) -> None:
        with pyro.plate("channels", 3):
            pyro.sample("offset", dist.Normal(state["level"], 1.5))


@pytest.mark.parametrize("max_plate_nesting", [1, 2])
def test_other_plates_are_summed_over(max_plate_nesting: int) -> None:
    y = torch.randn(2, 3)
    smc = plr.SMCFilter(GlobalAndLocal(), GlobalAndLocalGuide(), 100_000, max_plate_nesting)
    smc.init(y[0])
    smc.step(y[1])
    covariance = torch.ones(6, 6) + torch.kron(torch.eye(2), torch.eye(3)) * 2
    exact = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(y.flatten())
    assert smc.log_evidence.shape == ()
    assert (smc.log_evidence - exact).abs() < 0.05


class Scaled(PyroModule):
    """A user's model with a parameter and a subsampled plate of trials."""

    def __init__(self, size: int, indices: Tensor | None) -> None:
        super().__init__()
        self.size, self.indices = size, indices
        self.spread = PyroParam(torch.tensor(1.5), constraints.positive)

    @pyro.nn.pyro_method
    def init(self, state: Any, y: Tensor) -> None:
        self._move(state, torch.zeros_like(y), y)

    @pyro.nn.pyro_method
    def step(self, state: Any, y: Tensor) -> None:
        self._move(state, state["z"], y)

    def _move(self, state: Any, before: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", self.size, subsample=self.indices, dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(0.5 * before, self.spread).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(1), obs=y)


class ScaledGuide(Scaled):
    @pyro.nn.pyro_method
    def init(self, state: Any, y: Tensor) -> None:
        self._propose(y.new_zeros(y.shape))

    @pyro.nn.pyro_method
    def step(self, state: Any, y: Tensor) -> None:
        self._propose(state["z"])

    def _propose(self, before: Tensor) -> None:
        with pyro.plate("trials", self.size, subsample=self.indices, dim=-1):
            pyro.sample("z", dist.Normal(0.5 * before, 1.5).to_event(1))


def test_subsampled_trials_scale_the_evidence_but_not_the_weights() -> None:
    y = torch.randn(4, 5, 1)
    losses, sizes = [], []
    for size, indices in ((4, None), (12, torch.arange(4))):
        model, guide = Scaled(size, indices), ScaledGuide(size, indices)
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(20).loss(model, guide, y))
        torch.manual_seed(0)
        sizes.append(plr.SMCFilter(model, guide, 20).run(y).ess)
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-6)
    assert torch.equal(sizes[0], sizes[1])


def test_svi_trains_a_users_model() -> None:
    model, guide = Scaled(80, None), ScaledGuide(80, None)
    z = torch.zeros(80, 1)
    y = []
    for _ in range(10):
        z = 0.5 * z + 0.5 * torch.randn_like(z)
        y.append(z + torch.randn_like(z))
    svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.06}), plr.SMC_ELBO(30))
    for _ in range(50):
        svi.step(torch.stack(y, -2))
    assert model.spread.item() == pytest.approx(0.5, abs=0.15)


class Shared(Scaled):
    """With a latent that all trials have in common, and that is not weighed trial by trial therefore."""

    def step(self, state: Any, y: Tensor) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        super().step(state, y)


def test_a_site_outside_the_plate_of_trials_is_refused() -> None:
    class ModelGuide(ScaledGuide):
        def step(self, state: Any, y: Tensor) -> None:
            pyro.sample("shared", dist.Normal(0.0, 1.0))
            super().step(state, y)

    for guide in (ModelGuide(4, None), None):
        with pytest.raises(ValueError, match="'shared' lies outside the plate 'trials'"):
            plr.SMCFilter(Shared(4, None), guide, 10).run(torch.zeros(4, 3, 1))


def test_a_guide_with_unknown_sites_is_refused() -> None:
    class Guide(OscillatorGuide):
        def step(self, state: Any, y: Tensor | None = None) -> None:  # type: ignore[override]
            pyro.sample("zz", dist.Normal(0.0, 1.0))

    smc = plr.SMCFilter(Oscillator(), Guide(), 10, max_plate_nesting=0)
    smc.init(initial=torch.zeros(2))
    with pytest.raises(ValueError, match=r"guide samples \['zz'\]"):
        smc.step(torch.tensor(0.0))


def test_programs_without_init_and_step_are_refused() -> None:
    with pytest.raises(TypeError, match="must have methods `init\\(state, ...\\)` and `step"):
        plr.SMC_ELBO().loss(lambda y: y, lambda y: y, torch.zeros(2, 3, 1))
    first, second = linear_model(), linear_model()
    with pytest.raises(TypeError, match="built for another model"):
        plr.SMCFilter(first, plr.BootstrapGuide(second), 10).run(torch.randn(2, 3, 4, dtype=torch.float64))


class Counter:
    """A model whose `init` samples nothing."""

    def init(self, state: Any, y: Tensor) -> None:
        state["z"] = torch.zeros(30, 1)

    def step(self, state: Any, y: Tensor) -> None:
        state["z"] = pyro.sample("z", dist.Normal(state["z"], 1.0).to_event(1))
        pyro.sample("y", dist.Normal(state["z"][..., 0], 1.0), obs=y)


class CounterGuide(Counter):
    def init(self, state: Any, y: Tensor) -> None:
        pass

    def step(self, state: Any, y: Tensor) -> None:
        pyro.sample("z", dist.Normal(state["z"], 1.0).to_event(1))


def test_an_init_without_sites_weighs_all_particles_the_same() -> None:
    smc = plr.SMCFilter(Counter(), CounterGuide(), 30, max_plate_nesting=0)
    smc.init(torch.tensor(0.0))
    assert smc.log_evidence.item() == pytest.approx(0.0, abs=1e-6)
    smc.step(torch.tensor(0.5))
    likelihood = dist.Normal(smc.state["z"][..., 0], 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(smc.log_evidence, likelihood.logsumexp(0) - torch.tensor(30.0).log())


def test_without_a_guide_the_model_proposes() -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 6).y
    exact = kalman_filter(model, y).increments.sum(0)
    posterior = plr.SMCFilter(Delegate(model), None, 20_000).run(y)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=0.12)
    posterior = plr.SMCFilter(model, None, 20_000).run(y)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=0.12)


def test_without_a_guide_the_first_latents_may_come_before_the_first_data() -> None:
    class Later(Scaled):
        @pyro.nn.pyro_method
        def init(self, state: Any, y: Tensor) -> None:
            with pyro.plate("trials", self.size, dim=-1):
                state["z"] = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))

    y = torch.randn(4, 2, 1)
    posterior = plr.SMCFilter(Later(4, None), None, 20_000).run(y)
    # z_2 = 0.5 z_1 + noise of 1.5, seen with noise of 1.
    exact = dist.Normal(0.0, (0.25 + 1.5**2 + 1.0) ** 0.5).log_prob(y[:, 1, 0])
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=0.05)


class Repeats:
    """A guide that writes the transition of a `Scaled` down again."""

    def __init__(self, model: Scaled) -> None:
        self.model = model

    def init(self, state: Any, y: Tensor) -> None:
        self._propose(torch.zeros_like(y))

    def step(self, state: Any, y: Tensor) -> None:
        self._propose(state["z"])

    def _propose(self, before: Tensor) -> None:
        with pyro.plate("trials", self.model.size, dim=-1):
            pyro.sample("z", dist.Normal(0.5 * before, self.model.spread).to_event(1))


def test_without_a_guide_gradients_are_those_of_one_that_repeats_the_transition() -> None:
    model, y = Scaled(4, None), torch.randn(4, 5, 1)
    found = []
    for guide in (Repeats(model), None):
        torch.manual_seed(0)
        loss = plr.SMC_ELBO(50, gradient=plr.PathwiseGradient()).differentiable_loss(model, guide, y)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    assert found[0][1].abs() > 0.1
    for repeated, proposed in zip(*found, strict=True):
        torch.testing.assert_close(repeated, proposed)


def test_without_a_guide_latents_that_are_not_reparametrised_bias_the_gradient() -> None:
    class Switching(Counter):
        def step(self, state: Any, y: Tensor) -> None:
            pyro.sample("up", dist.Bernoulli(0.5))
            super().step(state, y)

    with pytest.warns(UserWarning, match="'up' is not reparametrised"):
        plr.SMC_ELBO(30, max_plate_nesting=0).differentiable_loss(Switching(), None, torch.zeros(3, 1))
