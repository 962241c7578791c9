"""Random numbers of a generator that is handed in: the same from equal ones, and torch's own are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import Thread
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr


class Walk:
    """A program of a user's own, which draws by `pyro.sample`."""

    def init(self, state: Any, y: Tensor) -> None:
        self._move(state, y.new_zeros(1), y)

    def step(self, state: Any, y: Tensor) -> None:
        self._move(state, state["z"], y)

    def _move(self, state: Any, mean: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(1), obs=y)


def model() -> plr.StateSpaceModel:
    return plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.PoissonObservation(rank=1, features=3))


def drawing(part: str) -> Callable[[torch.Generator | None], Tensor]:
    """Return what draws with a generator; of a built-in model unless it is called otherwise."""
    built_in, y = model(), torch.ones(4, 6, 3)
    smc = plr.SMCFilter(built_in, plr.BootstrapGuide(built_in), 20, backend="plain")
    posterior = smc.run(y)

    def fitted(g: torch.Generator | None) -> Tensor:
        trained = copy.deepcopy(built_in)
        options: dict[str, Any] = {"num_steps": 2, "progress": False, "elbo": plr.SMC_ELBO(4, backend="plain")}
        plr.fit(trained, plr.BootstrapGuide(trained), y, seed=0 if g is None else g, **options)
        return trained.dynamics.bias.detach()

    def forecast(g: torch.Generator | None) -> Tensor:
        with plr.drawn_from(g):
            return posterior.forecast(3, num_draws=7).y

    return {
        "simulate": lambda g: built_in.simulate(4, 6, generator=g).y,
        "filter": lambda g: smc.run(y, generator=g).particles["z"],
        "program": lambda g: plr.SMCFilter(Walk(), None, 20).run(y[..., :1], generator=g).particles["z"],
        "smooth": lambda g: posterior.smooth(5, generator=g),
        "forecast": forecast,
        "fit": fitted,
    }[part]


@pytest.mark.parametrize("part", ["simulate", "filter", "program", "smooth", "forecast", "fit"])
def test_equal_generators_give_equal_results_and_move_on(part: str) -> None:
    draw = drawing(part)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.manual_seed(8)
    before = torch.get_rng_state()
    found = [draw(each) for each in generators]
    assert torch.equal(*found)
    assert torch.equal(before, torch.get_rng_state())
    # A generator goes on where it was.
    assert torch.equal(*(each.get_state() for each in generators))
    assert not torch.equal(draw(generators[0]), found[0])


def test_within_it_all_that_draws_does_so_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(torch.initial_seed())
    torch.manual_seed(generator.initial_seed())
    expected = torch.rand(3), pyro.sample("x", dist.Normal(torch.zeros(4), 1.0))
    before = torch.get_rng_state()
    with plr.drawn_from(generator):
        found = torch.rand(3), pyro.sample("x", dist.Normal(torch.zeros(4), 1.0))
    torch.testing.assert_close(found, expected)
    assert torch.equal(before, torch.get_rng_state())


def test_torchs_own_generator_and_none_are_torchs_own() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with plr.drawn_from(torch.default_generator):
        first = torch.rand(2)
    with plr.drawn_from(None):
        torch.testing.assert_close(torch.cat([first, torch.rand(2)]), expected)


def test_an_error_within_it_puts_torchs_state_back() -> None:
    def fails() -> None:
        with plr.drawn_from(torch.Generator()):
            raise ZeroDivisionError(torch.rand(2))

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(before, torch.get_rng_state())


def test_a_seed_is_no_generator() -> None:
    with pytest.raises(TypeError, match=r"manual_seed\(seed\)"):
        model().simulate(2, 3, generator=7)  # type: ignore[arg-type]


def test_two_threads_would_take_each_others_numbers() -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with plr.drawn_from(torch.Generator()):
                pass
        except RuntimeError as error:
            said.append(str(error))

    with plr.drawn_from(torch.Generator()):
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert "Another thread" in said[0]


def test_blocks_within_blocks_go_on_with_the_numbers_of_each() -> None:
    """Of the same generator, too: no number comes twice."""
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    before = torch.get_rng_state()
    with plr.drawn_from(first):
        found = [torch.rand(1)]
        with plr.drawn_from(first):
            found.append(torch.rand(1))
        with plr.drawn_from(second):
            others = [torch.rand(1)]
            with plr.drawn_from(first):
                found.append(torch.rand(1))
            others.append(torch.rand(1))
        found.append(torch.rand(1))
    found.append(torch.rand(1, generator=first))
    for seed, numbers in ((1, found), (2, others)):
        expected = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.cat(numbers), torch.cat([torch.rand(1, generator=expected) for _ in numbers]))
    assert torch.equal(before, torch.get_rng_state())
