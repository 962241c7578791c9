"""Peak memory, and time to the first line of progress, of fits to recordings that stay on the disk.

Run with `python -m pytest tests/benchmarks/test_data_on_disk.py -m benchmark -s`: it writes 0.9 GB to a temporary
folder, and removes it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

LFP = """
import sys, numpy as np, pyro_lowrank as plr
y = np.load(sys.argv[1], mmap_mode="r")
model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=64), plr.GaussianObservation(rank=3, features=64))
plr.initialise_from_data(model, y)
plr.fit(model, plr.OptimalGuide(model), y, num_steps=40)
"""
COUNTS = """
import sys, numpy as np, pyro_lowrank as plr
y = np.load(sys.argv[1], mmap_mode="r")
model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=64), plr.PoissonObservation(rank=3, features=500))
plr.fit(model, plr.LaplaceGuide(model), y, num_steps=40, batch_size=10)
"""
PEAK = """
import resource
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
TOLD = "{:.2f} GB, first line {:.1f} s, in all {:.1f} s"
COMMAND = "import sys; from pyro_lowrank.cli import main; main(sys.argv[1:])"


def measured(program: str, *arguments: str) -> tuple[float, float, float]:
    """Return peak memory in GB, seconds to the first line that tells of progress, and seconds in all."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", program + PEAK, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first, peak, lines = float("nan"), float("nan"), []
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line)
        if first != first and any(word in line for word in ("fit:", "Training on")):
            first = time.perf_counter() - started
        if line.startswith("peak "):
            peak = int(line.split()[1]) * 1024 / 1e9
    assert child.wait() == 0, "".join(lines[-30:])
    return peak, first, time.perf_counter() - started


def lfp(path: Path) -> None:
    """An hour at 1 kHz: 64 channels that share slow oscillations."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(3_600_000, 64))
    loadings = rng.normal(size=(4, 64)).astype(np.float32)
    for start in range(0, len(file), 100_000):
        times = np.arange(start, start + 100_000)[:, None] * np.array([0.01, 0.013, 0.05, 0.051])
        noise = rng.standard_normal((100_000, 64), dtype=np.float32)
        file[start : start + 100_000] = 50 * (np.sin(times).astype(np.float32) @ loadings + 0.5 * noise)
    file.flush()


def counts(path: Path) -> None:
    """2,000 trials of 200 bins and 500 neurons."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(2000, 200, 500))
    loadings = rng.normal(size=(3, 500))
    for start in range(0, 2000, 100):
        times = np.arange(200)[:, None] * np.array([0.05, 0.07, 0.11])
        rates = np.exp(0.3 * np.sin(times) @ loadings - 1.0)
        file[start : start + 100] = rng.poisson(rates, size=(100, 200, 500))
    file.flush()


@pytest.mark.benchmark
def test_memory_and_time(tmp_path: Path) -> None:
    for name, write, program in (("LFP", lfp, LFP), ("counts", counts, COUNTS)):
        path = tmp_path / f"{name}.npy"
        write(path)
        try:
            print(f"\n{name}, Python:", TOLD.format(*measured(program, str(path))))
            if name == "LFP":
                words = ("fit", str(path), "--out", str(tmp_path / "out"), "--steps", "40", "--units", "64")
                print(f"{name}, command line:", TOLD.format(*measured(COMMAND, *words)))
        finally:
            path.unlink()
