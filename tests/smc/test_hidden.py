"""Programs whose steps depend on more than their state and arguments: none gives another program's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_lowrank as plr
from pyro_lowrank.errors import CannotBeReplayed
from pyro_lowrank.smc.tape import Replay, Tape

TRIALS, STEPS, PARTICLES = 2, 5, 4
PATHWISE = plr.PathwiseGradient()


class Walk(nn.Module):
    """A walk that is moved at each step."""

    def __init__(self) -> None:
        super().__init__()
        # Zeros: at first all steps are the same.
        self.shifts = nn.Parameter(torch.zeros(STEPS, 1, dtype=torch.float64))
        self.start()

    def start(self) -> None:
        """Before the first time bin."""

    def moved(self, mean: Tensor) -> Tensor:
        return mean + self.shifts[0]

    def init(self, state: Any, y: Tensor) -> None:
        self.start()
        self.see(state, torch.zeros(1, dtype=torch.float64), y)

    def step(self, state: Any, y: Tensor) -> None:
        self.see(state, self.moved(state["z"]), y)

    def see(self, state: Any, mean: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], 0.5).to_event(1), obs=y)


class Private(Walk):
    def start(self) -> None:
        self._t = 0

    def moved(self, mean: Tensor) -> Tensor:
        self._t += 1
        return mean + self.shifts[self._t]


class InADict(Walk):
    def start(self) -> None:
        self.counts = {"t": 0}

    def moved(self, mean: Tensor) -> Tensor:
        self.counts["t"] += 1
        return mean + self.shifts[self.counts["t"]]


class InAnObject(Walk):
    def start(self) -> None:
        self.clock = Clock()

    def moved(self, mean: Tensor) -> Tensor:
        self.clock.t += 1
        return mean + self.shifts[self.clock.t]


@dataclass
class Clock:
    t: int = 0


class Elsewhere(Walk):
    """Counts where no attribute shows it."""

    times: list[Iterator[int]] = []  # noqa: RUF012

    def start(self) -> None:
        self.times[:] = [iter(range(1, STEPS))]

    def moved(self, mean: Tensor) -> Tensor:
        return mean + self.shifts[next(self.times[0])]


class Inference(Walk):
    def moved(self, mean: Tensor) -> Tensor:
        with torch.inference_mode():
            sign = (3.0 * mean + 1.0).tanh()
        return mean + self.shifts[0] * 2 + sign


@pytest.fixture
def y() -> Tensor:
    return torch.randn(TRIALS, STEPS, 1, dtype=torch.float64)


def found(model: Walk, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient from the same random numbers."""
    return by(plr.SMC_ELBO(PARTICLES, **options), model, y)


def by(elbo: plr.SMC_ELBO, model: Walk, y: Tensor) -> tuple[Tensor, Tensor]:
    pyro.set_rng_seed(5)
    loss = elbo.differentiable_loss(model, None, y)
    return loss.detach(), torch.autograd.grad(loss, model.shifts)[0]


@pytest.mark.parametrize("kind", [Private, InADict, InAnObject, Elsewhere, Inference])
def test_what_parameters_at_zero_hide_is_seen_once_they_are_trained(kind: type[Walk], y: Tensor) -> None:
    model = kind()
    for seed in range(3):
        torch.testing.assert_close(
            found(model, y, gradient=PATHWISE), found(model, y, gradient=PATHWISE, backend="plain")
        )
        torch.manual_seed(seed)
        model.shifts.data += torch.randn_like(model.shifts)


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_what_counts_its_steps_is_not_run_out_of_order(backend: str, y: Tensor) -> None:
    """Along paths it would take one time bin for another."""
    model, elbo = Private(), plr.SMC_ELBO(PARTICLES, backend=backend)
    torch.nn.init.normal_(model.shifts)
    by(elbo, model, y)
    torch.testing.assert_close(by(elbo, model, y), found(model, y, gradient=PATHWISE, backend="plain"))
    with pytest.raises(CannotBeReplayed, match=r"attribute '_t'.*as data are"):
        plr.SMCFilter(model, None, PARTICLES, backend=backend).run(y).smooth(2)


class Named(Walk):
    """Counts its steps to name its sites, as programs for Pyro's own filter do."""

    def start(self) -> None:
        self.t = 0

    def moved(self, mean: Tensor) -> Tensor:
        self.t += 1
        return mean + self.shifts[0]

    def see(self, state: Any, mean: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample(f"z_{self.t}", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample(f"y_{self.t}", dist.Normal(state["z"], 0.5).to_event(1), obs=y)


class Unnamed(Named):
    """The same, but for the names."""

    def moved(self, mean: Tensor) -> Tensor:
        return mean + self.shifts[0]


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_count_that_only_names_sites_is_in_nobodys_way(backend: str, y: Tensor) -> None:
    options: Any = {"gradient": plr.FisherGradient(num_paths=3), "backend": backend}
    for _ in range(2):
        torch.testing.assert_close(found(Named(), y, **options), found(Unnamed(), y, **options))
    assert plr.SMCFilter(Named(), None, PARTICLES, backend=backend).run(y).smooth(2).shape[:2] == (2, TRIALS)


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_count_that_parameters_at_zero_hide_is_seen_by_their_gradients(backend: str, y: Tensor) -> None:
    model = Private()
    torch.nn.init.zeros_(model.shifts)
    with pytest.raises(CannotBeReplayed, match="attribute '_t'"):
        found(model, y, gradient=plr.FisherGradient(num_paths=2), backend=backend)


class Padded(Private):
    """Has shifts for more steps than are run."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts = torch.nn.Parameter(torch.zeros(2 * STEPS, 1, dtype=torch.float64))


def test_nor_is_one_that_does_not_come_to_an_end(y: Tensor) -> None:
    with pytest.raises(CannotBeReplayed, match="attribute '_t'"):
        found(Padded(), y, gradient=plr.FisherGradient(num_paths=2))


def test_what_depends_on_what_cannot_be_seen_is_not_run_out_of_order(y: Tensor) -> None:
    model, elbo = Elsewhere(), plr.SMC_ELBO(PARTICLES)
    torch.nn.init.normal_(model.shifts)
    by(elbo, model, y)
    torch.testing.assert_close(by(elbo, model, y), found(model, y, gradient=PATHWISE, backend="plain"))
    with pytest.raises(CannotBeReplayed, match="neither in its state nor among its arguments"):
        found(model, y, gradient=plr.FisherGradient(num_paths=2))


class Cached(Walk):
    """Computes once per run what depends on parameters alone."""

    def start(self) -> None:
        self.kept: Tensor | None = None

    def moved(self, mean: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.shifts.sum().exp()
        return mean * self.kept


def test_what_is_computed_once_per_run_may_be_run_along_paths(y: Tensor) -> None:
    model, options = Cached(), {"gradient": plr.FisherGradient(num_paths=2)}
    torch.testing.assert_close(found(model, y, **options), found(model, y, backend="plain", **options))


class Dropout(Walk):
    def moved(self, mean: Tensor) -> Tensor:
        return F.dropout(mean) + self.shifts[0]


def test_one_seed_gives_one_gradient_whatever_is_known_from_runs_before(y: Tensor) -> None:
    model = Dropout()
    first, *others = (found(model, y, gradient=plr.FisherGradient(num_paths=2)) for _ in range(3))
    torch.testing.assert_close(others, [first, first])


@dataclass
class Unhashable:
    """Compared by value, and so not hashable."""

    walk: Walk

    def init(self, state: Any, y: Tensor) -> None:
        self.walk.init(state, y)

    def step(self, state: Any, y: Tensor) -> None:
        self.walk.step(state, y)


class Bare:
    """Cannot be referred to weakly."""

    __slots__ = ("walk",)

    def __init__(self, walk: Walk) -> None:
        self.walk = walk

    def init(self, state: Any, y: Tensor) -> None:
        self.walk.init(state, y)

    def step(self, state: Any, y: Tensor) -> None:
        self.walk.step(state, y)


@pytest.mark.parametrize("kind", [Unhashable, Bare])
def test_programs_of_any_kind_of_class_are_not_run_both_ways_for_ever(
    kind: Callable[[Walk], Any], y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = kind(Walk()), []

    def moved(self: Walk, mean: Tensor) -> Tensor:
        calls.append(mean)
        return mean + self.shifts[0]

    monkeypatch.setattr(Walk, "moved", moved)
    for _ in range(3):
        calls.clear()
        plr.SMC_ELBO(PARTICLES, gradient=PATHWISE).loss(model, None, y)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "program",
    [
        lambda x: F.relu(h := 2 * x, inplace=True) + 2 * x + h,
        lambda x: F.relu_(2 * x) + 2 * x,
        lambda x: torch.cumsum(h := 2 * x, 0, out=torch.empty(3)) + h,
    ],
)
def test_equal_calls_are_made_again_where_a_tensor_has_been_changed(program: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    with Tape([x]) as tape:
        returned = program(x)
    torch.testing.assert_close(returned, program(x))
    replay: Replay = tape.finish((), [returned])
    assert replay([-x]) is not None
    torch.testing.assert_close(replay([-x])[0], program(-x))  # type: ignore[index]


def test_functions_that_change_tensors_and_modes_spoil_a_tape() -> None:
    x, mean, variance = torch.randn(3, 2), torch.zeros(2), torch.ones(2)
    with Tape([x]) as tape:
        F.batch_norm(x, mean, variance, training=True)
    assert "batch_norm" in tape.fault
    with Tape([x]) as tape, torch.autocast("cpu"):
        x @ x.mT
    assert "autocast" in tape.fault
