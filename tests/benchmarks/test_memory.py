"""What memory and noise that is shared cost: an optimiser step against one of white, independent noise.

Run with `python -m pytest tests/benchmarks/test_memory.py -m benchmark -s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from tests.benchmarks.test_optimiser_step import optimiser_step
from tests.benchmarks.timing import milliseconds

KINDS: dict[str, dict[str, Any]] = {
    "white": {},
    "autoregressive, order 4": {"noise": "autoregressive", "order": 4},
    "8 noise factors": {"noise_factors": 8},
    "both": {"noise": "autoregressive", "order": 4, "noise_factors": 8},
}
# Observations that remember the latents, each under the guide that it is fitted with.
DRIVEN: dict[str, Callable[[], Any]] = {
    "coloured noise, order 1": lambda: plr.ColouredNoiseObservation(rank=3, features=64, order=1),
    "coloured noise, order 4": lambda: plr.ColouredNoiseObservation(rank=3, features=64, order=4),
    "BOLD, second order": lambda: plr.HaemodynamicObservation(rank=3, features=64, bin_size=2.0),
    "BOLD, double gamma": lambda: plr.HaemodynamicObservation(
        rank=3, features=64, bin_size=2.0, response="double_gamma"
    ),
    "calcium": lambda: plr.CalciumObservation(rank=3, features=64, bin_size=1 / 30, data="zscore"),
    "calcium, rise and drift": lambda: plr.CalciumObservation(
        rank=3, features=64, bin_size=1 / 30, rise=True, drift=60.0, data="zscore"
    ),
}


@pytest.mark.benchmark
@pytest.mark.parametrize("particles", [10, 64])
@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_optimiser_step(particles: int, gaps: bool) -> None:
    """10 trials x 50 bins x 64 features, rank 3, 512 units; with gaps one bin in a hundred is missing."""
    compare(
        {name: partial(plr.GaussianObservation, rank=3, features=64, **o) for name, o in KINDS.items()}, particles, gaps
    )


@pytest.mark.benchmark
@pytest.mark.parametrize("particles", [10, 64])
@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_optimiser_step_of_linear_memory(particles: int, gaps: bool) -> None:
    """The same of a Kalman filter per feature in each particle."""
    white = {"white": partial(plr.GaussianObservation, rank=3, features=64)}
    compare(white | DRIVEN, particles, gaps)


def compare(observations: dict[str, Callable[[], Any]], particles: int, gaps: bool) -> None:
    """Print processor times of optimiser steps that take turns."""
    torch.manual_seed(0)
    y = torch.randn(10, 50, 64)
    if gaps:
        y[torch.rand(10, 50) < 0.01] = torch.nan
    steps = []
    for build in observations.values():
        dynamics = plr.LowRankRNN(rank=3, units=512, activation="clipped_relu")
        model = plr.StateSpaceModel(dynamics, build())
        rates = isinstance(model.observation, plr.CalciumObservation)
        guide = plr.LaplaceGuide(model) if rates else plr.OptimalGuide(model)
        steps.append(optimiser_step(model, guide, y, particles, [*model.parameters()]))
    times = milliseconds(steps, rounds=25, in_a_row=5, clock=time.process_time)
    print(f"\n{particles} particles, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, ms in zip(observations, times, strict=True):
        print(f"  {name:24s} {ms:6.2f} ms, {ms / times[0]:.2f} times white")
