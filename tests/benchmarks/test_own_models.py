"""Models of a user's own beside the built-in ones of the same arithmetic: loss and gradient, processor time.

Run with `python -m pytest tests/benchmarks/test_own_models.py -m benchmark -s`. All take turns in one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

import pyro_lowrank as plr
from tests.benchmarks.timing import milliseconds

RANK, UNITS, FEATURES, PARTICLES = 3, 512, 64, 64


class Counts(plr.ScalarObservation):
    """The built-in Poisson counts from their density alone."""

    support = constraints.nonnegative_integer

    def log_density(y: Any, eta: Any) -> Any:
        rate = math.log(1 + math.exp(eta))
        return y * math.log(rate) - rate - math.lgamma(y + 1)


class Subclass(plr.Observation):
    """The same as a distribution."""

    def __init__(self) -> None:
        super().__init__(features=FEATURES)
        self.readout = plr.AffineReadout(rank=RANK, features=FEATURES)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Poisson(functional.softplus(self.readout.bind(None)(z))).to_event(1)


class Program(pyro.nn.PyroModule):
    """The same as a program of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.dynamics = plr.LowRankRNN(rank=RANK, units=UNITS)
        self.readout = plr.AffineReadout(rank=RANK, features=FEATURES)

    @pyro.nn.pyro_method
    def init(self, state: Any, y: Tensor) -> None:
        dynamics = self.dynamics
        self._move(state, dist.MultivariateNormal(dynamics.initial_mean, dynamics.initial_covariance), y)

    @pyro.nn.pyro_method
    def step(self, state: Any, y: Tensor) -> None:
        dynamics = self.dynamics
        self._move(state, dist.MultivariateNormal(dynamics(state["z"]), dynamics.noise_covariance), y)

    def _move(self, state: Any, moved: Any, y: Tensor) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample("z", moved)
            rate = functional.softplus(state["z"] @ self.readout.weight.mT + self.readout.bias)
            pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


class Recorded(Program):
    """Numbers instead of counts."""

    def _move(self, state: Any, moved: Any, y: Tensor) -> None:
        with pyro.plate("trials", len(y), dim=-1):
            state["z"] = pyro.sample("z", moved)
            mean = state["z"] @ self.readout.weight.mT + self.readout.bias
            pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


class Proposal(pyro.nn.PyroModule):
    """A program that proposes from the data and the latents before."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = pyro.nn.PyroParam(0.1 * torch.randn(RANK, FEATURES))
        self.scale = pyro.nn.PyroParam(torch.full((RANK,), 0.3), constraints.positive)

    @pyro.nn.pyro_method
    def init(self, state: Any, y: Tensor) -> None:
        self._propose(y @ self.weight.mT)

    @pyro.nn.pyro_method
    def step(self, state: Any, y: Tensor) -> None:
        self._propose(0.9 * state["z"] + y @ self.weight.mT)

    def _propose(self, mean: Tensor) -> None:
        with pyro.plate("trials", mean.shape[-2], dim=-1):
            pyro.sample("z", dist.Normal(mean, self.scale).to_event(1))


class Delegate(torch.nn.Module):
    """A built-in model or guide that nobody knows for one."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.init, self.step = inner.init, inner.step


class Drift(plr.Dynamics):
    """The built-in network's mean in torch operations."""

    def __init__(self) -> None:
        super().__init__(rank=RANK, noise="full", noise_scale=0.1)
        self.network = plr.LowRankRNN(rank=RANK, units=UNITS)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        network = self.network
        rates = (z @ network.left.mT + network.bias).relu() - (z @ network.left.mT).relu()
        return network.decay * z + rates @ network.right.mT


def step_of(model: Any, guide: Any, y: Tensor) -> Callable[[], None]:
    loss = plr.SMC_ELBO(PARTICLES)(model, guide)
    return lambda: loss(y).backward()


@pytest.mark.benchmark
def test_own_models_beside_built_in_ones() -> None:
    torch.manual_seed(0)
    network = plr.LowRankRNN(rank=RANK, units=UNITS)
    built_in = plr.StateSpaceModel(network, plr.PoissonObservation(rank=RANK, features=FEATURES))
    gaussian = plr.StateSpaceModel(network, plr.GaussianObservation(rank=RANK, features=FEATURES))
    drift = plr.StateSpaceModel(Drift(), plr.GaussianObservation(rank=RANK, features=FEATURES))
    scalar = plr.StateSpaceModel(network, Counts(rank=RANK, features=FEATURES))
    subclass = plr.StateSpaceModel(network, Subclass())
    counts, numbers = built_in.simulate(10, 50).y, gaussian.simulate(10, 50).y
    cases: dict[str, tuple[Any, Any, Tensor]] = {
        "built-in Poisson, BootstrapGuide": (built_in, plr.BootstrapGuide(built_in), counts),
        "ScalarObservation, BootstrapGuide": (scalar, plr.BootstrapGuide(scalar), counts),
        "Observation, BootstrapGuide": (subclass, plr.BootstrapGuide(subclass), counts),
        "program of steps, no guide": (Program(), None, counts),
        "built-in Poisson, LaplaceGuide": (built_in, plr.LaplaceGuide(built_in), counts),
        "ScalarObservation, LaplaceGuide": (scalar, plr.LaplaceGuide(scalar), counts),
        "built-in network, OptimalGuide": (gaussian, plr.OptimalGuide(gaussian), numbers),
        "program and guide of steps": (Recorded(), Proposal(), numbers),
        "network and guide as programs": (Delegate(gaussian), Delegate(plr.OptimalGuide(gaussian)), numbers),
        "drift in torch, OptimalGuide": (drift, plr.OptimalGuide(drift), numbers),
    }
    found = milliseconds([step_of(*case) for case in cases.values()], clock=time.process_time)
    print(f"\n10 trials x 50 bins x {FEATURES} features, {UNITS} units, {PARTICLES} particles, milliseconds")
    against = 0.0
    for called, taken in zip(cases, found, strict=True):
        against = taken if called.startswith("built-in") else against
        print(f"  {called:36s} {taken:8.1f}   {taken / against:5.2f} times built-in")
    assert all(math.isfinite(taken) for taken in found)
