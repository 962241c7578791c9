"""How many boxes, linear solves and seconds the certified list of fixed points takes.

Run with `python -m pytest tests/benchmarks/test_fixed_points.py -m benchmark -s`. Networks are drawn with fixed seeds,
with weights of either side correlated so that there are many fixed points; the trained ones are read where they are.
"""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADER = f"{'network':44s} points complete index  boxes    solves   seconds"


def drawn(rank: int, units: int, seed: int, activation: str, gain: float = 4.0) -> tuple[Any, ...]:
    """A network whose units excite the direction that excites them, at random sizes: many fixed points."""
    rng = np.random.default_rng(seed)
    left, bias = rng.normal(size=(units, rank)), np.abs(rng.normal(size=units))
    right = gain / units * (left * rng.uniform(-0.2, 1.0, size=(units, 1)) + 0.5 * rng.normal(size=left.shape)).T
    return 0.9, left, right, bias, activation


def timed(name: str, *weights: Any, rounds: int = 3, **options: Any) -> tuple[FixedPoints, float]:
    """Find the fixed points some times, the first of which compiles; print a row; return the result and the median."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = find_fixed_points(*weights, **options)
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken[1:])
    c = result.certificate
    total = f"{c.index_sum}/{c.expected_index_sum if c.expected_index_sum is not None else '?'}"
    row = f"{name:44s} {len(result):6d} {c.complete!s:>8} {total:>5} {c.boxes:8,} {c.solves:8,} {seconds:9.4f}"
    print(row, flush=True)
    return result, seconds


def teacher(name: str) -> tuple[Any, ...] | None:
    path = DATA / name
    if not path.exists():
        return None
    with np.load(path) as weights:
        return float(weights["decay"]), weights["U"], weights["V"], -weights["b_rec"]


@pytest.mark.benchmark
def test_certified() -> None:
    print("\n" + HEADER)
    for name in ("teacher_reach_rnn.npz", "teacher_reach_rnn_128.npz"):
        weights = teacher(name)
        if weights is not None:
            result, _ = timed(name, *weights)
            assert len(result) == 17
            assert result.certificate.complete
    cases = [
        *(("clipped_relu", 3, 512, seed) for seed in range(5)),
        *(("clipped_relu", 4, 512, seed) for seed in range(3)),
        ("clipped_relu", 2, 4096, 0),
        ("relu", 2, 4096, 0),
        ("tanh", 3, 512, 0),
        ("softplus", 3, 512, 0),
    ]
    for activation, rank, units, seed in cases:
        gain = 0.15 if activation in ("relu", "softplus") else 4.0
        result, _ = timed(
            f"{units} {activation} units, rank {rank}, seed {seed}", *drawn(rank, units, seed, activation, gain)
        )
        assert result.certificate.complete
        if result.certificate.expected_index_sum is not None:
            assert result.certificate.index_sum == result.certificate.expected_index_sum
    timed("512 clipped_relu units, rank 5, 30 seconds", *drawn(5, 512, 0, "clipped_relu"), rounds=1, max_seconds=30)
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


@pytest.mark.benchmark
def test_the_methods_side_by_side() -> None:
    weights = teacher("teacher_reach_rnn.npz")
    if weights is None:
        pytest.skip("needs teacher_reach_rnn.npz beside the checkout")
    print("\n" + HEADER)
    for method in ("certified", "enumerate", "search"):
        timed(f"Figure 8 network, {method}", *weights, method=method)
