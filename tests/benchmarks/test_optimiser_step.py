"""How long an optimiser step and an online step take: compiled loops, plain tensor operations, Pyro's effects, Pyro.

Run with `python -m pytest tests/benchmarks -m benchmark -s`. Values and gradients are compared in the same run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.benchmarks.timing import milliseconds
from tests.smc.test_effects import Delegate


def gaussian() -> tuple[Any, Any, Tensor]:
    """10 trials x 50 bins x 64 features, rank 3, 512 units."""
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=3, units=512, activation="clipped_relu"), plr.GaussianObservation(rank=3, features=64)
    )
    return model, plr.OptimalGuide(model), torch.randn(10, 50, 64)


def spikes() -> tuple[Any, Any, Tensor]:
    """10 trials x 200 bins x 40 features, which are the units, rank 2, a convolutional encoder."""
    readout = plr.UnitReadout(units=40, source="currents", scale=0.5)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=40), plr.PoissonObservation(readout=readout))
    guide = plr.EncoderGuide(model, plr.ConvEncoder(features=40, rank=2, kernel_sizes=(21, 11, 1), channels=(64, 64)))
    return model, guide, model.simulate(num_trials=10, num_steps=200).y


def spikes_without_encoder() -> tuple[Any, Any, Tensor]:
    """10 trials x 200 bins x 40 features, which are the units, rank 2, a Laplace guide."""
    model, _, y = spikes()
    return model, plr.LaplaceGuide(model), y


def optimiser_step(
    model: object, guide: object, y: Tensor, num_particles: int, parameters: list[Tensor], backend: str = "auto"
) -> Callable[[], None]:
    elbo = plr.SMC_ELBO(num_particles, backend=backend)
    optimiser = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        optimiser.zero_grad()
        elbo.differentiable_loss(model, guide, y).backward()
        optimiser.step()

    return step


def assert_compiled_is_plain(model: Any, guide: Any, y: Tensor, num_particles: int, parameters: list[Tensor]) -> None:
    """Compare loss and gradients on fewer time bins: over many, float32 particles part at ties of resampling."""
    found = []
    for backend in ("compiled", "plain"):
        torch.manual_seed(0)
        loss = plr.SMC_ELBO(num_particles, backend=backend).differentiable_loss(model, guide, y[:, :5])
        found.append((loss.detach(), *torch.autograd.grad(loss, parameters)))
    for compiled, plain in zip(*found, strict=True):
        assert (compiled - plain).norm() <= 1e-3 * plain.norm().clamp(min=1.0)


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("build", "particles"),
    [(gaussian, 10), (gaussian, 64), (spikes, 64), (spikes_without_encoder, 64)],
    ids=["gaussian 10", "gaussian 64", "spikes", "laplace"],
)
def test_optimiser_step(build: Callable[[], tuple[Any, Any, Tensor]], particles: int) -> None:
    torch.manual_seed(0)
    model, guide, y = build()
    parameters: list[Tensor] = [*model.parameters(), *guide.parameters()]
    assert_compiled_is_plain(model, guide, y, particles, parameters)
    backends = ["compiled", "plain"]
    steps = [optimiser_step(model, guide, y, particles, parameters, backend) for backend in backends]
    if build is gaussian:
        steps.append(optimiser_step(Delegate(model), Delegate(guide), y, particles, parameters))
    compiled, plain, *effects = milliseconds(steps, rounds=9, in_a_row=5)  # as in a training
    print(f"\n{build.__doc__} {particles} particles, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"  compiled {compiled:.1f} ms, plain {plain:.1f} ms, plain / compiled {plain / compiled:.1f}", end="")
    print("".join(f"; Pyro's effects {ms:.1f} ms, effects / plain {ms / plain:.1f}" for ms in effects))
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.benchmark
def test_arithmetic_of_the_compiled_loops() -> None:
    """Sum and product of every unit's current and drive, per second, beside the matrix product of torch."""
    torch.manual_seed(0)
    model, guide, y = gaussian()
    rank, units, particles, trials = 3, 512, 256, 10
    elbo = plr.SMC_ELBO(particles, resampler=plr.NoResampling(), backend="compiled")
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    with torch.no_grad():
        forward, product = milliseconds([lambda: elbo.loss(model, guide, y), lambda: a @ b])
    operations = 4 * rank * units * particles * trials * (y.shape[1] - 1)
    print(
        f"\nForward filter: {operations / forward / 1e6:.1f} GFLOP/s (multiplications and additions by M and N alone)"
    )
    print(f"Matrix product: {2 * 1024**3 / product / 1e6:.1f} GFLOP/s, {torch.get_num_threads()} threads")


class Walk:
    """A user's model, with the data noise of the built-in one: what Pyro's own filter runs too."""

    def __init__(self, dynamics: Any, observation: Any, trials: int) -> None:
        self.dynamics, self.observation, self.trials = dynamics, observation, trials

    def init(self, state: dict[str, Tensor], y_t: Tensor) -> None:
        self._bin(state, torch.zeros(3), y_t)

    def step(self, state: dict[str, Tensor], y_t: Tensor) -> None:
        self._bin(state, self.dynamics(state["z"]), y_t)

    def _bin(self, state: dict[str, Tensor], mean: Tensor, y_t: Tensor) -> None:
        with pyro.plate("trials", self.trials, dim=-1):
            state["z"] = pyro.sample("z", pyro.distributions.Normal(mean, 0.1).to_event(1))
            mean_y = self.observation.mean(state["z"])
            pyro.sample("y", pyro.distributions.Normal(mean_y, 1.0).to_event(1), obs=y_t)


class WalkGuide(Walk):
    """The transition of `Walk` as its proposal."""

    def _bin(self, state: dict[str, Tensor], mean: Tensor, y_t: Tensor) -> None:
        with pyro.plate("trials", self.trials, dim=-1):
            pyro.sample("z", pyro.distributions.Normal(mean, 0.1).to_event(1))


def online(smc: Any, y: Tensor) -> Callable[[], None]:
    smc.init(y)
    return lambda: smc.step(y)


@pytest.mark.benchmark
def test_online_step() -> None:
    torch.manual_seed(0)
    model, _, _ = gaussian()
    print("\nOne online step, 1000 particles, 64 features, 512 units, rank 3")
    for trials in (1, 10):
        y = torch.randn(trials, 64)
        with torch.no_grad():
            parts = (model.dynamics, model.observation, trials)
            steps = [
                online(plr.SMCFilter(model, guide, 1000, 1, backend=backend), y)
                for guide in (plr.OptimalGuide(model), plr.BootstrapGuide(model))
                for backend in ("compiled", "plain")
            ]
            users = (Walk(*parts), WalkGuide(*parts))
            steps += [online(smc(*users, 1000, 1), y) for smc in (plr.SMCFilter, pyro.infer.SMCFilter)]
            steps.append(online(plr.SMCFilter(users[0], None, 1000, 1), y))
            times = milliseconds(steps, in_a_row=10)  # as in a stream of time bins
        print(f"  {trials:2d} trials: optimal guide {times[0]:.2f} ms (plain {times[1]:.2f}), ", end="")
        print(f"bootstrap {times[2]:.2f} (plain {times[3]:.2f}), ", end="")
        print(f"a user's model {times[4]:.2f}, the same in pyro.infer.SMCFilter {times[5]:.2f}, ", end="")
        print(f"without a guide {times[6]:.2f}")


@pytest.mark.benchmark
def test_online_step_of_spikes() -> None:
    torch.manual_seed(0)
    observation = plr.PoissonObservation(rank=3, features=64)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=512, activation="clipped_relu"), observation)
    print("\nOne online step, 1000 particles, 64 features, 512 units, rank 3, spikes")
    for trials in (1, 10):
        y = model.simulate(num_trials=trials, num_steps=1).y[:, 0]
        told = []
        for guide in (plr.LaplaceGuide(model), plr.BootstrapGuide(model)):
            steps = [online(plr.SMCFilter(model, guide, 1000, backend=name), y) for name in ("compiled", "plain")]
            compiled, plain = milliseconds(steps, in_a_row=10)  # as in a stream of time bins
            told.append(f"{type(guide).__name__} {compiled:.2f} ms (plain {plain:.2f})")
        print(f"  {trials:2d} trials:", ", ".join(told))


@pytest.mark.benchmark
def test_memory_of_a_filter_run() -> None:
    """Without gradients, memory grows with time x particles x trials x rank."""
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=512), plr.GaussianObservation(rank=3, features=8))
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 64)
    print("\ntime bins  bytes of the posterior per particle, trial, bin and latent")
    for num_steps in (100, 1000):
        posterior = smc.run(torch.randn(10, num_steps, 8))
        kept = sum(
            value.numel() * value.element_size()
            for value in (*posterior.particles.values(), posterior.log_weights, posterior.ancestors)
        )
        print(f"{num_steps:9d}  {kept / (64 * 10 * num_steps * 3):.1f}")
        assert kept < 10 * 64 * 10 * num_steps * 3


@pytest.mark.benchmark
def test_memory_of_training_on_a_long_recording() -> None:
    """10 trials x 10,000 bins, 64 particles, 512 units: the memory that a step adds to that of the process."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak from Linux's /proc")
    code = r"""
import re, torch, pyro_lowrank as plr
model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=512, activation="clipped_relu"),
                            plr.GaussianObservation(rank=3, features=8))
elbo = plr.SMC_ELBO(64, backend="compiled")
y = torch.randn(10, {bins}, 8)
elbo.differentiable_loss(model, plr.OptimalGuide(model), y).backward()
print(float(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) / 1e6)
"""
    peaks = [python_output(code.format(bins=bins)) for bins in (10, 10_000)]
    print(f"\nPeak memory: {peaks[0]:.2f} GB for 10 bins, {peaks[1]:.2f} GB for 10,000")
    assert peaks[1] - peaks[0] < 1.0


def python_output(code: str) -> float:
    """Return the number that a fresh interpreter prints."""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout)
