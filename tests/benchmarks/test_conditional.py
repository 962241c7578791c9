"""One sweep of conditional SMC beside the filter alone and the plain loop: 1,000 bins, 50 particles, one trial.

Run with `python -m pytest tests/benchmarks/test_conditional.py -m benchmark -s`. All take turns in one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch

import pyro_lowrank as plr
from tests.benchmarks.timing import milliseconds


@pytest.mark.benchmark
@pytest.mark.parametrize("guide_of", [plr.OptimalGuide, plr.LaplaceGuide])
def test_a_sweep(guide_of: Callable[[plr.StateSpaceModel], plr.Guide]) -> None:
    torch.manual_seed(0)
    kind = plr.GaussianObservation if guide_of is plr.OptimalGuide else plr.PoissonObservation
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), kind(rank=2, features=20))
    y, guide = model.simulate(1, 1000).y, guide_of(model)
    smc, plain = (plr.SMCFilter(model, guide, 50, backend=backend) for backend in ("compiled", "plain"))
    z = smc.run(y).smooth(1)[0]
    cases: dict[str, Callable[[], object]] = {
        "filter": lambda: smc.run(y),
        "sweep, ancestor sampling": lambda: smc.run(y, reference=z).smooth(1, method="genealogy"),
        "sweep, backward sampling": lambda: smc.run(y, reference=z, ancestor_sampling=False).smooth(1),
    }
    found = milliseconds(list(cases.values()), clock=time.process_time)
    found += milliseconds(
        [lambda: plain.run(y, reference=z).smooth(1, method="genealogy")], rounds=2, clock=time.process_time
    )
    print(f"\n{guide_of.__name__}, rank 2, 50 units, 20 features, milliseconds of processor time")
    for called, taken in zip((*cases, "sweep, ancestor sampling, plain"), found, strict=True):
        print(f"  {called:32s} {taken:8.1f}")
    assert all(math.isfinite(taken) for taken in found)
