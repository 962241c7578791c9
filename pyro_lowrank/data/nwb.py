"""What an NWB file holds: the units with their trials, or one of its time series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import Contents, SpikeTrains
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.readers import UNREADABLE, choose, unreadable

if TYPE_CHECKING:
    import pynwb

# Columns of the table of trials that are no labels.
_INTERVALS = ("start_time", "stop_time", "timeseries", "timeseries_index", "tags", "tags_index")


def read_nwb(path: Path, key: str | None) -> Contents | SpikeTrains:
    """Read the spike times of a `.nwb` file with its trials, or with `key` one of its time series."""
    pynwb = require("pynwb", "nwb", f"Reading {path}")
    try:
        with pynwb.NWBHDF5IO(str(path), mode="r") as opened:
            file = opened.read()
            return _spike_trains(path, file) if key is None else _time_series(path, file, key, pynwb)
    except UNREADABLE as error:
        if isinstance(error, _Refused):
            raise ValueError(str(error)) from None
        raise unreadable(path, "an NWB file", error) from error


class _Refused(ValueError):
    """What a file that can be read does not hold."""


def _spike_trains(path: Path, file: pynwb.NWBFile) -> SpikeTrains:
    units = file.units
    if units is None or "spike_times" not in units.colnames:
        series = [name for name, _ in _all_series(file)]
        hint = f"pass `key` to read one of its time series: {', '.join(series)}." if series else "it has no series."
        raise _Refused(f"{path} holds no units with spike times; {hint}")
    names = [str(name) for name in units.id[:]]
    trains = {name: np.asarray(units["spike_times"][row], dtype=np.float64) for row, name in enumerate(names)}
    observed: dict[str, NDArray[np.float64]] = {}
    if "obs_intervals" in units.colnames:
        for row, name in enumerate(names):
            intervals = np.asarray(units["obs_intervals"][row], dtype=np.float64).reshape(-1, 2)
            if len(intervals):
                observed[name] = intervals
    if file.trials is None:
        return SpikeTrains(trains, observed=observed)
    trials = file.trials
    labels = {}
    for name in trials.colnames:
        column = np.asarray(trials[name][:]) if name not in _INTERVALS else np.empty((0, 0))
        if column.ndim == 1 and len(column) == len(trials):
            labels[name] = column
    return SpikeTrains(
        trains,
        epochs=np.stack([np.asarray(trials[name][:], dtype=np.float64) for name in ("start_time", "stop_time")], -1),
        observed=observed,
        labels=labels,
        trial_names=tuple(f"trial_{number}" for number in trials.id[:]),
    )


def _time_series(path: Path, file: pynwb.NWBFile, key: str, pynwb: Any) -> Contents:
    series = dict(_all_series(file))
    listing = ", ".join(f"{name} {tuple(one.data.shape)}" for name, one in series.items())
    short = {name.rpartition("/")[2]: name for name in series}
    key = short.get(key, key)
    one = series[_chosen(path, key, {name: one.data.ndim for name, one in series.items()}, listing)]
    array = np.asarray(one.data[:]) * one.conversion + one.offset
    times = None if one.timestamps is None else np.asarray(one.timestamps[:], dtype=np.float64)
    dims = ("time", *("feature" for _ in array.shape[1:2]), *("" for _ in array.shape[2:]))
    return Contents(
        array, dims=dims, unit=str(one.unit), bin_size=1.0 / float(one.rate) if one.rate else None, times=times
    )


def _chosen(path: Path, key: str, dims: dict[str, int], listing: str) -> str:
    try:
        return choose(path, key, dims, listing)
    except ValueError as error:
        raise _Refused(str(error)) from None


def _all_series(file: pynwb.NWBFile) -> list[tuple[str, Any]]:
    """Return the time series of numbers in the file, each with the names of what holds it."""
    found = []
    for one in file.objects.values():
        if not (hasattr(one, "conversion") and hasattr(one, "rate") and getattr(one.data, "ndim", 0) in (1, 2)):
            continue
        names, parent = [one.name], one.parent
        while parent is not None and parent is not file:
            names.append(parent.name)
            parent = parent.parent
        found.append(("/".join(reversed(names)), one))
    return found
