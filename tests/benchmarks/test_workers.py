"""Six fits of 100 steps in two processes of one thread against one, process starts and imports included.

Run with `OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_workers.py -m benchmark -s` on two idle cores:
what others do on the machine is told, and spoils the ratio.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

import pyro_lowrank as plr

BINS = 50


def factory(rank: int) -> tuple[Any, Any]:
    """A network of the size of that of an EEG."""
    dynamics = plr.LowRankRNN(rank=rank, units=512, activation="clipped_relu")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=64))
    return model, plr.OptimalGuide(model)


@pytest.mark.benchmark
def test_two_workers_against_one() -> None:
    torch.manual_seed(0)
    y = factory(3)[0].simulate(40, BINS).y
    options: dict[str, Any] = {"ranks": (2, 3), "folds": 3, "num_steps": 100, "batch_size": 20, "num_particles": 128}
    options |= {"num_filter_particles": 100, "num_draws": 5, "progress": False}
    # What is compiled is kept on disk: neither has to wait for it.
    plr.cross_validate(factory, y, **{**options, "num_steps": 1})
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for num_workers, taken in seconds.items():
            start = time.perf_counter()
            plr.cross_validate(factory, y, num_workers=num_workers, **options)
            taken.append(time.perf_counter() - start)
    one, two = (min(taken) for taken in seconds.values())
    print(f"\n{torch.get_num_threads()} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"  one process {one:.1f} s, two workers {two:.1f} s: {one / two:.2f} times as fast")
