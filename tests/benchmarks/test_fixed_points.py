"""How many boxes, linear solves and seconds the list of fixed points takes, against what it is to take at most.

Run with `python -m pytest tests/benchmarks/test_fixed_points.py -m benchmark -s`. Networks lie beside the tests of the
analyzer (trained by `tests/fixed_points/trained/make.py`) or are drawn with fixed seeds, with weights of either side
correlated so that there are many fixed points. The paper's own are read from ../shared/data where they are.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points, read_weights
from tests.fixed_points.networks import ring_network, trained_networks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADER = f"{'network':46s} points  complete  index      boxes     solves   seconds   goal"
METHODS: dict[str, dict[str, Any]] = {
    "certified": {},
    "enumerate": {"method": "enumerate"},
    "search": {"method": "search", "constrained": False},
    "constrained search": {"method": "search"},
}


def drawn(rank: int, units: int, seed: int, activation: str, gain: float = 4.0) -> tuple[Any, ...]:
    """A network whose units excite the direction that excites them, at random sizes: many fixed points."""
    rng = np.random.default_rng(seed)
    left, bias = rng.normal(size=(units, rank)), np.abs(rng.normal(size=units))
    right = gain / units * (left * rng.uniform(-0.2, 1.0, size=(units, 1)) + 0.5 * rng.normal(size=left.shape)).T
    return 0.9, left, right, bias, activation


def timed(name: str, goal: str, *weights: Any, rounds: int = 5, **options: Any) -> tuple[FixedPoints, float]:
    """Find the fixed points some times, the first of which compiles, and print a row with the median.

    Returns the result and the fastest: other programs on the machine are not what is tested.
    """
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = find_fixed_points(*weights, **options)
        taken.append(time.perf_counter() - start)
    taken = taken[1:] or taken
    c = result.certificate
    total = f"{c.index_sum}/{c.expected_index_sum if c.expected_index_sum is not None else '?'}"
    counts = f"{len(result):6d}  {c.complete!s:>8} {total:>6} {c.boxes:10,} {c.solves:10,}"
    print(f"{name:46s} {counts} {statistics.median(taken):9.4f}   {goal}", flush=True)
    return result, min(taken)


def certified(name: str, goal: str, *weights: Any, **options: Any) -> tuple[FixedPoints, float]:
    """The same, of a list that must be complete with the index sum that it must have."""
    result, seconds = timed(name, goal, *weights, **options)
    certificate = result.certificate
    assert certificate.complete
    assert certificate.index_sum == certificate.expected_index_sum is not None
    return result, seconds


@pytest.mark.benchmark
def test_the_goals() -> None:
    print("\n" + HEADER)
    figure_8(METHODS)
    seconds = [
        certified(f"trained, 512 clipped_relu, {name}", "median of these 2 s", rounds=3, **weights)[1]
        for name, weights in trained_networks(rank=3)
    ]
    assert len(seconds) == 5
    assert statistics.median(seconds) <= 2
    for name, weights in trained_networks(rank=4):
        assert certified(f"trained, 512 clipped_relu, {name}", "60 s", rounds=1, **weights)[1] <= 60
    for seed in range(5):
        weights = drawn(3, 512, seed, "clipped_relu")
        assert certified(f"drawn, 512 clipped_relu, rank 3, seed {seed}", "2 s", *weights)[1] <= 2
    for seed in range(3):
        weights = drawn(4, 512, seed, "clipped_relu")
        assert certified(f"drawn, 512 clipped_relu, rank 4, seed {seed}", "60 s", *weights, rounds=1)[1] <= 60
    for activation, rank, units, gain in (
        ("clipped_relu", 2, 4096, 4.0),
        ("relu", 2, 4096, 0.15),
        ("tanh", 3, 512, 4.0),
        ("softplus", 3, 512, 0.15),
        ("relu", 3, 512, 3.0),
    ):
        name = f"drawn, {units} {activation}, rank {rank}"
        assert certified(name, "10 s", *drawn(rank, units, 0, activation, gain), rounds=1)[1] <= 10
    timed(
        "drawn, 512 clipped_relu, rank 5",
        "honest after 30 s",
        *drawn(5, 512, 0, "clipped_relu"),
        rounds=0,
        max_seconds=30,
    )
    partial, taken = timed(
        "drawn, 512 clipped_relu, rank 6",
        "honest after 10 s",
        *drawn(6, 512, 0, "clipped_relu"),
        rounds=0,
        max_seconds=10,
    )
    assert partial.certificate.complete or len(partial.certificate.open_boxes)
    assert taken < 15
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process {peak:.2f} GB (goal: 1 GB)")
    assert peak < 1


def figure_8(methods: dict[str, dict[str, Any]]) -> None:
    """The paper's network, where it is, and one like it: 17 fixed points each, by each method."""
    networks = {"drawn like Figure 8's": ring_network()}
    path = DATA / "teacher_reach_rnn.npz"
    if path.exists():
        arguments = read_weights(path)
        networks = {
            "Figure 8": tuple(arguments[n] for n in ("decay", "left", "right", "bias", "activation")),
            **networks,
        }
    for network, weights in networks.items():
        for method, options in methods.items():
            goal = "17 points, 400 solves, 0.02 s" if method == "certified" else ""
            result, seconds = timed(f"{network}, {method}", goal, *weights, **options)
            if method == "certified":
                assert result.certificate.index_sum == result.certificate.expected_index_sum == 1
                assert (len(result), result.certificate.complete) == (17, True)
                assert result.certificate.solves <= 400
                assert seconds <= 0.02


COLD = """
import sys, time
import numpy as np
from pyro_lowrank.fixed_points import find_fixed_points

rng = np.random.default_rng(0)
for rank, activation in ((2, "relu"), (3, "relu"), (3, "tanh")):
    weights = 0.8, rng.normal(size=(20, rank)), 0.3 * rng.normal(size=(rank, 20)), rng.normal(size=20)
    start, used = time.perf_counter(), time.process_time()
    find_fixed_points(*weights, activation)
    print(time.perf_counter() - start, time.process_time() - used)
"""


@pytest.mark.benchmark
def test_the_first_call_of_a_process_with_nothing_compiled(tmp_path: Path) -> None:
    print("\nfirst call, empty cache       seconds   of the processor (goal: 8 s, another rank 2 s)")
    first = []
    for turn in range(3):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / str(turn))}
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-c", COLD]
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        rows = [[float(number) for number in line.split()] for line in run.stdout.splitlines()]
        for name, (wall, used) in zip(("rank 2, relu", "another rank", "another activation"), rows, strict=True):
            print(f"{name:28s} {wall:8.2f} {used:12.2f}")
        first.append(rows[0][0])
        assert rows[1][0] <= 2
    assert min(first) <= 8
