"""A step of the Gaussian filter's objective, compiled beside tensor operations: 10 trials x 100 bins x 30 features.

Run with `python -m pytest tests/benchmarks/test_gaussian_filter.py -m benchmark -s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

import pyro_lowrank as plr
from tests.benchmarks.timing import milliseconds


@pytest.mark.benchmark
@pytest.mark.parametrize("kind", [plr.GaussianObservation, plr.PoissonObservation])
def test_a_step(kind: type[plr.Observation]) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=64, noise_scale=0.3), kind(rank=3, features=30))
    y = model.simulate(10, 100).y.detach()

    found = [plr.EKFEvidence(backend=backend)(model, None)(y).detach() for backend in ("compiled", "plain")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=0.0)

    def step(backend: str) -> Callable[[], None]:
        loss = plr.EKFEvidence(backend=backend)(model, None)
        return lambda: loss(y).backward()

    elbo = plr.SMC_ELBO(10)(model, plr.LaplaceGuide(model))
    steps = [step("plain"), step("compiled"), lambda: elbo(y).backward()]
    plain, quick, particles = milliseconds(steps, rounds=7, clock=time.process_time)
    print(
        f"\n{kind.__name__}: {quick:.1f} ms of processor time compiled, {plain / quick:.1f} times as fast as tensor "
        f"operations; {particles / quick:.1f} times as fast as 10 particles under LaplaceGuide"
    )
