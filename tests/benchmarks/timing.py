"""How long steps take that take turns, so that a drifting machine is fair to all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def milliseconds(
    steps: Sequence[Callable[[], object]],
    rounds: int = 15,
    in_a_row: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the median time of each step; by `time.process_time` what others do on the machine is left out."""
    for step in (*steps, *steps, *steps):
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, taken in zip(steps, times, strict=True):
            start = clock()
            for _ in range(in_a_row):
                step()
            taken.append(1e3 * (clock() - start) / in_a_row)
    return [statistics.median(taken) for taken in times]
