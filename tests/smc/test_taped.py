"""Programs of steps that are run from a tape have the losses and gradients that they have run step by step."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from torch import Tensor
from torch.distributions import constraints

import pyro_lowrank as plr
from pyro_lowrank.handlers import observe

TRIALS, STEPS, FEATURES, PARTICLES = 3, 6, 2, 5


class Program(PyroModule):
    """A walk by a matrix with two latent sites, seen with noise."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.turn = PyroParam(0.9 * torch.eye(2, dtype=dtype))
        self.scale = PyroParam(torch.tensor(0.5, dtype=dtype), constraints.positive)

    @pyro_method
    def init(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        self._move(state, torch.zeros(2, dtype=y.dtype), y, u)

    @pyro_method
    def step(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        self._move(state, state["z"] @ self.turn.mT + 0.1 * state["gain"].unsqueeze(-1), y, u)

    def _move(self, state: Any, mean: Tensor, y: Tensor, u: Tensor | None) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample("z", dist.MultivariateNormal(self.moved(mean), self.scale * torch.eye(2).to(y)))
            state["gain"] = pyro.sample("gain", dist.LogNormal(torch.zeros((), dtype=y.dtype), self.scale))
            self.see(state["z"] * state["gain"].unsqueeze(-1) + (0.0 if u is None else u), y)

    def moved(self, mean: Tensor) -> Tensor:
        return mean

    def see(self, mean: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(mean, self.scale).to_event(1), obs=y)


class Guide(PyroModule):
    """Proposes both latents, one of them from the data."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = PyroParam(torch.tensor(0.3, dtype=dtype))

    @pyro_method
    def init(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        self._propose(self.weight * y.nan_to_num())

    @pyro_method
    def step(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        self._propose(self.weight * y.nan_to_num() + 0.5 * state["z"])

    def _propose(self, mean: Tensor) -> None:
        with pyro.plate("trials", TRIALS, dim=-1):
            pyro.sample("z", dist.Normal(mean, 0.7).to_event(1))
            pyro.sample("gain", dist.LogNormal(mean.new_zeros(TRIALS), 0.6))


class Gaps(Program):
    """Missing entries are left out."""

    def see(self, mean: Tensor, y: Tensor) -> None:
        observe("y", dist.Normal(mean, self.scale).to_event(1), y)


class Handlers(Program):
    """Scales, masks, conditions and notes inside the step."""

    def see(self, mean: Tensor, y: Tensor) -> None:
        rate = pyro.deterministic("rate", mean.exp(), event_dim=1)
        with poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("y", dist.Gamma(2.0, rate).to_event(1), obs=y.abs() + 0.1)


class Features(Program):
    """Another plate, further left."""

    def see(self, mean: Tensor, y: Tensor) -> None:
        with pyro.plate("features", FEATURES, dim=-2):
            pyro.sample("y", dist.Normal(mean.movedim(-1, -2).squeeze(-3), self.scale), obs=y.mT)


class Store(Program):
    """A parameter of the store and an attribute with a prior, which is set."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype)
        self.shift = PyroSample(dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))

    def moved(self, mean: Tensor) -> Tensor:
        return mean + self.shift + pyro.param("drift", torch.full((2,), 0.1, dtype=mean.dtype))


class Chance(Program):
    """Random numbers that belong to no site, and a tensor that is filled."""

    def moved(self, mean: Tensor) -> Tensor:
        noise = torch.empty(2, dtype=mean.dtype).normal_()
        whole = mean.clone()
        whole[..., 0] = whole[..., 0] + 0.1 * torch.rand(())
        return whole + 0.1 * noise


class Turns(Program):
    """Control flow on values: one of two ways."""

    def moved(self, mean: Tensor) -> Tensor:
        return mean * 0.5 if mean.sum() > 0 else mean * 0.9


class Reads(Program):
    """Reads a number of a tensor."""

    def moved(self, mean: Tensor) -> Tensor:
        return mean + 0.01 * float(mean.sum())


class Counts(Program):
    """Counts its steps."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype)
        self.t = 0

    def moved(self, mean: Tensor) -> Tensor:
        self.t = 0 if mean.dim() == 1 else self.t + 1
        return mean + 0.1 * self.t


class CountsInSecret(Program):
    """Counts its steps where nobody sees it."""

    counter: ClassVar[list[int]] = [0]

    def moved(self, mean: Tensor) -> Tensor:
        self.counter[0] = 0 if mean.dim() == 1 else self.counter[0] + 1
        return mean + 0.1 * self.counter[0]


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return grad[0]


class OwnGradient(Program):
    """Has a gradient of its own."""

    def moved(self, mean: Tensor) -> Tensor:
        rounded: Tensor = Straight.apply(4 * mean)
        return rounded / 4


class Keeps(Program):
    """Keeps what it computes at its first step."""

    @cached_property
    def half(self) -> Tensor:
        return torch.tensor(0.5, dtype=torch.float64)

    def moved(self, mean: Tensor) -> Tensor:
        return mean if mean.dim() == 1 else mean * self.half


class Remembers(Program):
    """Keeps more than its latents."""

    @pyro_method
    def init(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        super().init(state, y, u)
        state["total"] = state["z"]

    @pyro_method
    def step(self, state: Any, y: Tensor, u: Tensor | None = None) -> None:
        before = state["total"]
        super().step(state, y, u)
        state["total"] = before + state["z"]


FISHER, PATHWISE = plr.FisherGradient(num_paths=3), plr.PathwiseGradient()
REPLAYED = [
    *((kind, gradient) for kind in (Program, Gaps, Handlers, Store, Turns) for gradient in (FISHER, PATHWISE)),
    *((kind, PATHWISE) for kind in (Chance, Keeps, Remembers)),
]
LEFT = [
    (Reads, FISHER, "__float__"),
    (Counts, PATHWISE, "its attribute 't'"),
    (CountsInSecret, PATHWISE, "at another time bin"),
    (OwnGradient, PATHWISE, "autograd.Function"),
    (OwnGradient, FISHER, "autograd.Function"),
]


def data(dtype: torch.dtype = torch.float64, *, gaps: bool = False) -> Tensor:
    y = torch.randn(TRIALS, STEPS, FEATURES, dtype=dtype)
    if gaps:
        y[0, 3] = y[1, 4:, 0] = torch.nan
    return y


def loss_and_gradients(elbo: Any, model: Any, guide: Any, *args: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return them from the same random numbers."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    shift = torch.tensor([0.1, 0.2]).to(args[0])
    with poutine.trace(param_only=True) as params, poutine.condition(data={"shift": shift}):
        loss = elbo.differentiable_loss(model, guide, *args)
    found = {name: site["value"].unconstrained() for name, site in params.trace.nodes.items()}
    found |= dict(model.named_parameters()) | ({} if guide is None else dict(guide.named_parameters()))
    names = sorted(found)
    grads = torch.autograd.grad(loss, [found[name] for name in names], allow_unused=True)
    return loss.detach(), [torch.zeros(()) if g is None else g for g in grads]


def check(model: Any, guide: Any, gradient: Any, *args: Tensor, **options: Any) -> None:
    """The first run is run both ways, the second from tapes; time bins along paths at once are compared then."""
    plain = plr.SMC_ELBO(PARTICLES, gradient=gradient, backend="plain", **options)
    expected = loss_and_gradients(plain, model, guide, *args)
    for _ in range(2 if gradient.along_particles else 3):
        found = loss_and_gradients(plr.SMC_ELBO(PARTICLES, gradient=gradient, **options), model, guide, *args)
        torch.testing.assert_close(found, expected)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the calls of replays."""
    from pyro_lowrank.smc.tape import Replay

    calls: list[Any] = []
    own = Replay._run

    def run(self: Replay, inputs: Any) -> Any:
        calls.append(self)
        return own(self, inputs)

    monkeypatch.setattr(Replay, "_run", run)
    return calls


@pytest.mark.parametrize(("kind", "gradient"), REPLAYED)
def test_taped_is_untaped(kind: type[Program], gradient: Any, replays: list[Any]) -> None:
    y = data(gaps=kind is Gaps)
    guided = kind is Program or not gradient.along_particles
    check(kind(), Guide() if guided else None, gradient, y)
    assert len(replays) >= 4


@pytest.mark.parametrize(("gradient", "dtype"), [(FISHER, torch.float64), (PATHWISE, torch.float32)])
def test_of_another_plate_handlers_around_inputs_and_types(gradient: Any, dtype: torch.dtype) -> None:
    check(Program(dtype), Guide(dtype), gradient, data(dtype), data(dtype))
    check(Features(dtype), None, gradient, data(dtype), max_plate_nesting=2)
    model = Program(dtype)
    with poutine.scale(scale=0.1), poutine.mask(mask=torch.tensor([True, True, False])):
        check(model, None, gradient, data(dtype))


def test_without_trials_and_without_validation(replays: list[Any]) -> None:
    class Alone:
        def init(self, state: Any, y: Tensor) -> None:
            state["z"] = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(state["z"].sum(-1, keepdim=True), 1.0).to_event(1), obs=y)

        def step(self, state: Any, y: Tensor) -> None:
            state["z"] = pyro.sample("z", dist.Normal(0.5 * state["z"], 1.0).to_event(1))
            pyro.sample("y", dist.Normal(state["z"].sum(-1, keepdim=True), 1.0).to_event(1), obs=y)

    model, y, losses = Alone(), torch.randn(9, 1).double(), []
    for backend in ("plain", "auto", "auto", "auto"):
        pyro.set_rng_seed(0)
        with pyro.validation_enabled(backend == "plain"):
            losses.append(plr.SMC_ELBO(PARTICLES, backend=backend, max_plate_nesting=0).loss(model, None, y))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
    assert replays


@pytest.mark.parametrize(("kind", "gradient", "reason"), LEFT)
def test_what_cannot_be_replayed_is_run_and_the_log_says_so_once(
    kind: type[Program], gradient: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyro_lowrank")
    check(kind(), None, gradient, data())
    (said,) = (each.getMessage() for each in caplog.records if "from a tape" in each.getMessage())
    assert kind.__name__ in said
    assert reason in said
    assert ("in moved, line" in said and __file__ in said) == (reason in ("__float__", "autograd.Function"))


def test_states_that_are_one_tensor_until_particles_are_resampled(replays: list[Any]) -> None:
    check(Remembers(), None, PATHWISE, data(), ess_threshold=0.3)
    assert replays


def test_attributes_that_a_user_sets_between_calls_are_seen() -> None:
    """What depends on them is kept from no call to the next."""

    class Tempered(Program):
        factor = 1.0

        def moved(self, mean: Tensor) -> Tensor:
            return mean * self.factor

    model, y = Tempered(), data()
    for factor in (1.0, 0.5):
        model.factor = factor
        check(model, None, FISHER, y)


def test_a_longer_recording_is_run_both_ways_once_more() -> None:
    """A program that turns into another one after some time."""

    class Late(Program):
        counter: ClassVar[list[int]] = [0]

        def moved(self, mean: Tensor) -> Tensor:
            self.counter[0] = 0 if mean.dim() == 1 else self.counter[0] + 1
            return mean + (1.0 if self.counter[0] > STEPS else 0.0)

    model = Late()
    check(model, None, PATHWISE, data())
    check(model, None, PATHWISE, torch.randn(TRIALS, 2 * STEPS, FEATURES).double())


def test_data_that_do_not_fit_raise_what_the_program_raises() -> None:
    class Spikes(Program):
        def see(self, mean: Tensor, y: Tensor) -> None:
            pyro.sample("y", dist.Poisson(mean.exp()).to_event(1), obs=y)

    model, y = Spikes(), torch.poisson(torch.ones(TRIALS, STEPS, FEATURES)).double()
    elbo = plr.SMC_ELBO(PARTICLES)
    for _ in range(2):
        elbo.loss(model, None, y)
    y[1, 5, 0] = -1.0
    with pytest.raises(ValueError, match="support"):
        elbo.loss(model, None, y)


def test_the_filter_of_a_program_and_its_smoothing_are_the_same() -> None:
    model, y = Program(), data()
    found = []
    for backend in ("plain", "auto", "auto"):
        pyro.set_rng_seed(1)
        found.append(plr.SMCFilter(model, None, PARTICLES, backend=backend).run(y).smooth(4))
    torch.testing.assert_close(found[1:], [found[0]] * 2)


@pytest.mark.slow
def test_networks_are_compiled_where_many_bins_need_their_means(replays: list[Any]) -> None:
    """With gradients, those of many bins at once."""
    pytest.importorskip("numba")

    class OfANetwork(Program):
        def __init__(self) -> None:
            super().__init__()
            self.dynamics = plr.LowRankRNN(rank=2, units=3000, dtype=torch.float64)

        def moved(self, mean: Tensor) -> Tensor:
            return mean if mean.dim() == 1 else self.dynamics(mean)

    for gradient in (FISHER, PATHWISE):
        check(OfANetwork(), None, gradient, data())
    assert len(replays) > 2 * STEPS
