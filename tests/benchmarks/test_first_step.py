"""How long the import takes, and the first optimiser step with an empty cache, then of another rank and number type.

Run with `python -m pytest tests/benchmarks/test_first_step.py -m benchmark -s`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = r"""
import sys, time, torch
import pyro_lowrank as plr

def step(rank, dtype):
    shape = {"rank": rank, "features": 16, "dtype": dtype}
    options = {"bin_size": 0.03, "data": "fluorescence"} if sys.argv[2] == "Calcium" else {}
    observation = getattr(plr, sys.argv[2] + "Observation")(**shape, **options)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=rank, units=64, dtype=dtype), observation)
    encoder = [plr.ConvEncoder(16, rank, dtype=dtype)] if sys.argv[1] == "EncoderGuide" else []
    guide = getattr(plr, sys.argv[1])(model, *encoder)
    y = torch.ones(4, 20, 16, dtype=dtype)
    start, spent = time.perf_counter(), time.process_time()
    plr.SMC_ELBO(16)(model, guide)(y).backward()
    return f"{time.perf_counter() - start:.1f} s ({time.process_time() - spent:.1f} s of processor time)"

print("first", step(3, torch.float32), "| rank 2", step(2, torch.float32), "| float64", step(3, torch.float64))
"""


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("guide", "likelihood"),
    [
        ("OptimalGuide", "Gaussian"),
        ("BootstrapGuide", "Poisson"),
        ("LaplaceGuide", "Poisson"),
        ("EncoderGuide", "Poisson"),
        ("LaplaceGuide", "Calcium"),
    ],
)
def test_first_step_from_an_empty_cache(guide: str, likelihood: str, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, guide, likelihood],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    print(f"\n{guide}, {likelihood}: {done.stdout.strip()}")
    assert list(tmp_path.rglob("*.nbi")), "nothing was compiled into the cache, so that nothing was measured"


@pytest.mark.benchmark
def test_import_of_the_package_beyond_that_of_torch() -> None:
    code = "import time, torch; start = time.perf_counter(); import pyro_lowrank; print(time.perf_counter() - start)"
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    # The best of a few: other processes can only add to the time.
    print(f"\nimport pyro_lowrank: {min(float(each.stdout) for each in done):.2f} s beyond torch")
