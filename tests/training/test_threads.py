"""Fits in threads of one process, and Ctrl-C that code in C turns into something else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.training.interrupts import interrupts_kept


def new_model() -> plr.StateSpaceModel:
    torch.manual_seed(5)
    return plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8), plr.GaussianObservation(rank=2, features=3))


def fitted(y: Tensor, callback: Callable[[Any], None] | None = None) -> Tensor:
    model = new_model()
    plr.fit(model, plr.OptimalGuide(model), y, num_steps=4, num_particles=6, seed=1, progress=False, callback=callback)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_second_thread_is_refused_and_the_first_gets_the_numbers_of_a_fit_alone() -> None:
    y = new_model().simulate(5, 6).y
    alone = fitted(y)
    assert torch.equal(fitted(y), alone)
    begun, refused = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def wait(report: Any) -> None:
        begun.set()
        assert refused.wait(60)

    def first() -> None:
        found["first"] = fitted(y, wait)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with pytest.raises(RuntimeError, match=r"Another thread .* or in processes"):
            plr.fit(model, plr.OptimalGuide(model), y, num_steps=4, num_particles=6, seed=1, progress=False)
    finally:
        refused.set()
        thread.join()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    # What follows: the first was not disturbed, and afterwards this thread may fit.
    assert torch.equal(found["first"], alone)
    assert torch.equal(fitted(y), alone)


def test_threads_one_after_the_other_leave_the_callers_generator_alone() -> None:
    y = new_model().simulate(5, 6).y
    alone, found = fitted(y), []
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(fitted_quietly(y)))
        thread.start()
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(each, alone) for each in found)
    assert len(found) == 2


def fitted_quietly(y: Tensor) -> Tensor:
    """Fit, with the seed of the model's first values kept from the caller, too."""
    with torch.random.fork_rng():
        return fitted(y)


def test_a_fit_within_a_fit_is_in_the_same_thread() -> None:
    y = new_model().simulate(5, 6).y
    alone = fitted(y)
    inner: list[Tensor] = []

    def once_more(report: Any) -> None:
        if not inner:
            inner.append(fitted(y))

    assert torch.equal(fitted(y, once_more), alone)
    assert torch.equal(inner[0], alone)


class Interrupted(plr.SMC_ELBO):
    """Is interrupted at its third call, and does with the exception what code in C may do."""

    def __init__(self, then: str) -> None:
        super().__init__(6)
        self.then, self.calls = then, 0

    def loss_and_history(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as interrupt:
                if self.then == "with its cause":
                    raise SystemError("returned a result with an exception set") from interrupt
                if self.then == "without it":
                    raise SystemError("returned NULL without setting an exception") from None
        if self.then == "by itself" and self.calls == 2:
            raise SystemError("a bug")
        return super().loss_and_history(*args, **kwargs)


@pytest.fixture
def _interrupts() -> Any:
    """A shell turns interrupts off for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize(("then", "steps"), [("with its cause", 2), ("without it", 2), ("dropped", 3)])
def test_an_interrupt_that_code_in_c_changes_or_drops_ends_the_fit(then: str, steps: int) -> None:
    model = new_model()
    y = model.simulate(5, 6).y
    result = plr.fit(model, plr.OptimalGuide(model), y, num_steps=6, elbo=Interrupted(then), progress=False)
    assert (result.interrupted, result.steps) == (True, steps)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_interrupts")
def test_other_errors_of_the_interpreter_are_not_taken_for_interrupts() -> None:
    model = new_model()
    y = model.simulate(5, 6).y
    with pytest.raises(SystemError, match="a bug"):
        plr.fit(model, plr.OptimalGuide(model), y, num_steps=6, elbo=Interrupted("by itself"), progress=False)
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        raise KeyboardInterrupt
