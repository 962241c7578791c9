"""How long an optimiser step takes, and what the plain path saves over Pyro's effects in the same run.

Run with `python -m pytest tests/benchmarks -m benchmark -s`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.smc.test_effects import Delegate

TRIALS, TIME, FEATURES, RANK, UNITS = 10, 50, 64, 3, 512


def milliseconds(steps: list[Callable[[], object]], rounds: int = 15) -> list[float]:
    """Return the median time of each step; the steps take turns, so that a drifting machine is fair to all."""
    for step in steps * 3:
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


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


@pytest.mark.benchmark
def test_optimiser_step() -> None:
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=RANK, units=UNITS, activation="clipped_relu"),
        plr.GaussianObservation(rank=RANK, features=FEATURES),
    )
    guide = plr.OptimalGuide(model)
    y = torch.randn(TRIALS, TIME, FEATURES)
    parameters: list[Tensor] = list(model.parameters())
    print(f"\n{TRIALS} trials x {TIME} bins x {FEATURES} features, rank {RANK}, {UNITS} units, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("particles    compiled  plain path  through Pyro's effects  plain / compiled  effects / plain")
    for num_particles in (10, 64):
        losses = []
        for backend in ("compiled", "plain"):
            torch.manual_seed(0)
            losses.append(plr.SMC_ELBO(num_particles, backend=backend).loss(model, guide, y))
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        compiled, plain, effects = milliseconds(
            [
                optimiser_step(model, guide, y, num_particles, parameters, "compiled"),
                optimiser_step(model, guide, y, num_particles, parameters, "plain"),
                optimiser_step(Delegate(model), Delegate(guide), y, num_particles, parameters),
            ]
        )
        print(f"{num_particles:9d}  {compiled:7.1f} ms  {plain:7.1f} ms  {effects:19.1f} ms", end="")
        print(f"  {plain / compiled:16.1f}  {effects / plain:15.1f}")
    assert model.dynamics.left.isfinite().all()


@pytest.mark.benchmark
def test_memory_of_a_filter_run() -> None:
    """Without gradients, memory grows with time x particles x trials x rank."""
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=RANK, units=UNITS), plr.GaussianObservation(rank=RANK, features=8))
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 64)
    print("\ntime bins  bytes of the posterior per particle, trial, bin and latent")
    for num_steps in (100, 1000):
        posterior = smc.run(torch.randn(TRIALS, num_steps, 8))
        kept = sum(
            value.numel() * value.element_size()
            for value in (*posterior.particles.values(), posterior.log_weights, posterior.ancestors)
        )
        print(f"{num_steps:9d}  {kept / (64 * TRIALS * num_steps * RANK):.1f}")
        assert kept < 10 * 64 * TRIALS * num_steps * RANK
