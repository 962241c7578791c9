"""Small files with spikes, and texts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]


def random_spikes(units: int, stop: float, rate: float = 20.0, seed: int = 0) -> list[Array]:
    """Sorted spike times of units that fire at random, in seconds."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.uniform(0.0, stop, rng.poisson(rate * stop))) for _ in range(units)]


def nwb_file(
    path: Path,
    trains: Sequence[Array],
    trials: Sequence[tuple[float, float, str]] | None = None,
    observed: Sequence[Array] | None = None,
    series: Array | None = None,
) -> Path:
    """Path of an NWB file with these units, trials (begin, end, condition) and a time series at 100 Hz, in volts."""
    pynwb: Any = pytest.importorskip("pynwb", reason="the extra `nwb` is not installed")
    begin = datetime.datetime(2024, 6, 24, tzinfo=datetime.timezone.utc)
    file = pynwb.NWBFile(session_description="made by a test", identifier="test", session_start_time=begin)
    for row, train in enumerate(trains):
        intervals = {} if observed is None else {"obs_intervals": observed[row]}
        file.add_unit(id=100 + row, spike_times=train, **intervals)
    if trials == []:
        columns = [
            pynwb.core.VectorData(name=name, description="seconds", data=np.empty(0))
            for name in ("start_time", "stop_time")
        ]
        file.trials = pynwb.epoch.TimeIntervals(name="trials", description="none yet", columns=columns)
    elif trials is not None:
        file.add_trial_column("condition", "what was shown")
        for start, stop, condition in trials:
            file.add_trial(start_time=start, stop_time=stop, condition=condition)
    if series is not None:
        lfp = pynwb.TimeSeries(name="lfp", data=series, unit="volts", rate=100.0, conversion=1e-6)
        file.add_acquisition(lfp)
    with pynwb.NWBHDF5IO(str(path), mode="w") as opened:
        opened.write(file)
    return path
