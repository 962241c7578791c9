"""Programs of steps run again along paths: the same densities, however their operations count dims and name sites."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.smc.effects import EffectsKernel, FromModel
from pyro_lowrank.smc.replayed import ReplayedTransitions

TRIALS, PARTICLES, DRAWS = 3, 7, 4


class Walk:
    """A random walk in two dims, seen with noise."""

    def site(self, y: Tensor) -> str:
        return "z"

    def mean(self, z: Tensor) -> Tensor:
        return 0.9 * z

    def rate(self, z: Tensor) -> Tensor:
        return z.exp()

    def init(self, state: Any, y: Tensor) -> None:
        self._move(state, torch.zeros(2, dtype=y.dtype), y)

    def step(self, state: Any, y: Tensor) -> None:
        self._move(state, self.mean(state["z"]), y)

    def _move(self, state: Any, mean: Tensor, y: Tensor) -> None:
        with pyro.plate("trials", TRIALS, dim=-1):
            state["z"] = pyro.sample(self.site(y), dist.Normal(mean, 0.5).to_event(1))
            pyro.sample("y", dist.Poisson(self.rate(state["z"])).to_event(1), obs=y)


class CountingFromTheLeft(Walk):
    """Takes the first dim of what it drew for the particles."""

    def rate(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), TRIALS, 2).exp()


class Renaming(Walk):
    """Calls its site by the data: another name at nearly every time bin."""

    def site(self, y: Tensor) -> str:
        return f"z{int(y.sum())}"


def transitions(model: Any, num_steps: int = 3) -> tuple[ReplayedTransitions, Tensor]:
    y = torch.poisson(torch.ones(TRIALS, num_steps, 2, dtype=torch.float64))
    kernel = EffectsKernel(model, FromModel(), PARTICLES, 1)
    return ReplayedTransitions(kernel, kernel.calls(y)), y


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, TRIALS, 2, dtype=torch.float64)


@pytest.mark.parametrize("draws", [DRAWS, PARTICLES])
@pytest.mark.parametrize(("model", "broadcasts"), [(Walk(), True), (Renaming(), True), (CountingFromTheLeft(), False)])
def test_pairs_have_the_density_of_their_step(model: Any, broadcasts: bool, draws: int) -> None:
    """Also where a program goes wrong on draws in a dim of their own: with an error, or with other numbers."""
    replayed, y = transitions(model)
    for time in range(2):
        before, after = draw(PARTICLES), draw(draws)
        found = replayed.pairs(time, {"z": before})({"z": after})
        moved = dist.Normal(0.9 * before, 0.5).to_event(1).log_prob(after.unsqueeze(1))
        seen = dist.Poisson(after.exp()).to_event(1).log_prob(y[:, time + 1])
        torch.testing.assert_close(found, (moved + seen.unsqueeze(1)).movedim(1, -1))
    assert set(replayed.tapes.kept.broadcasts.values()) == {broadcasts}


@pytest.mark.parametrize("model", [Walk(), Renaming()])
def test_the_joint_density_along_paths(model: Any) -> None:
    replayed, y = transitions(model, 5)
    z = draw(5, DRAWS)
    found = replayed.log_joint([{"z": z_t} for z_t in z])
    before = torch.cat([torch.zeros_like(z[:1]), 0.9 * z[:-1]])
    moved = dist.Normal(before, 0.5).to_event(1).log_prob(z)
    seen = dist.Poisson(z.exp()).to_event(1).log_prob(y.movedim(1, 0).unsqueeze(1))
    torch.testing.assert_close(found, (moved + seen).sum(0).mean(0))


def test_where_sites_are_kept_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, own = [], ReplayedTransitions._homes

    def homes(self: Any, *args: Any) -> Any:
        looked.append(args)
        return own(self, *args)

    monkeypatch.setattr(ReplayedTransitions, "_homes", homes)
    y = torch.poisson(torch.ones(TRIALS, 6, 2))
    plr.SMC_ELBO(PARTICLES).loss_and_grads(Walk(), None, y)
    plr.SMCFilter(Walk(), None, PARTICLES).run(y).smooth(3)
    # At the first time bin and at a later one, of each of the two runs; smoothing never asks for the first.
    assert len(looked) <= 3


class OfANetwork(pyro.nn.PyroModule, Walk):
    """A walk by the drift of a network that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.dynamics = plr.LowRankRNN(rank=2, units=5, dtype=torch.float64)

    def mean(self, z: Tensor) -> Tensor:
        return self.dynamics(z)


class OfANetworkWithGain(OfANetwork):
    """One with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def mean(self, z: Tensor) -> Tensor:
        return self.gain * self.dynamics(z)


@pytest.mark.parametrize("kind", [OfANetwork, OfANetworkWithGain])
def test_parameters_stay_that_the_store_has_under_their_names(
    kind: type[OfANetwork],
) -> None:
    """As after `SVI` with another model that holds a network by the same name."""
    observation = plr.GaussianObservation(rank=2, features=2, dtype=torch.float64)
    other = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5, dtype=torch.float64), observation)
    pyro.poutine.trace(other).get_trace(num_trials=1, num_steps=2)
    assert "dynamics.left" in pyro.get_param_store()
    model = kind()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    posterior = plr.SMCFilter(model, None, PARTICLES).run(torch.ones(TRIALS, 4, 2, dtype=torch.float64))
    posterior.smooth(DRAWS)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
