"""How long smoothing takes: 10 trials x 500 bins, 1,000 particles, 500 paths each."""

from __future__ import annotations

import time

import pytest
import torch

import pyro_lowrank as plr


@pytest.mark.benchmark
@pytest.mark.parametrize("method", ["backward", "mcmc"])
def test_smoothing(method: str) -> None:
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=3, units=512, activation="clipped_relu"), plr.GaussianObservation(rank=3, features=64)
    )
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 1000).run(torch.randn(10, 500, 64))
    posterior.smooth(2, method=method)
    start, used = time.perf_counter(), time.process_time()
    posterior.smooth(500, method=method)
    wall, used = time.perf_counter() - start, time.process_time() - used
    print(f"{method}: {wall:.1f} s, {used:.1f} s of processor time")
