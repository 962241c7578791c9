"""What an NWB file holds: the units with their trials, or one of its time series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.arrays import distinct
from pyro_lowrank.data.contents import Contents, SpikeTrains
from pyro_lowrank.data.opening import Refused, check_dataset, check_inside, reading
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.variables import as_word

if TYPE_CHECKING:
    import pynwb

Times = NDArray[np.float64]

# Columns of the table of trials that are no labels.
_INTERVALS = ("start_time", "stop_time", "timeseries", "timeseries_index", "tags", "tags_index")


def read_nwb(path: Path, key: str | None) -> Contents | SpikeTrains:
    """Read the spike times of a `.nwb` file with its trials, or with `key` one of its time series."""
    pynwb = require("pynwb", "nwb", f"Reading {path}")
    with reading(path, "an NWB file"):
        # Files of the format may be linked to each other; what is read of those is checked below.
        check_inside(path, links=True)
        with pynwb.NWBHDF5IO(str(path), mode="r") as opened:
            file = opened.read()
            if key is None:
                return _spike_trains(path, file, opened.manager)
            return _time_series(path, file, key, opened.manager)


def _spike_trains(path: Path, file: pynwb.NWBFile, manager: Any) -> SpikeTrains:
    units = file.units
    if units is None or "spike_times" not in units.colnames:
        series = ", ".join(_all_series(file, manager))
        hint = f"pass `key` to read one of its time series: {series}." if series else "it has no series."
        raise Refused(f"{path} holds no units with spike times; {hint}")
    for table in (units, file.trials, file.invalid_times):
        for name in () if table is None else table.colnames:
            # A list in each row is two columns, one of what it holds and one of where it ends.
            for column in (table[name], getattr(table[name], "target", None)):
                _check_inside(path, getattr(column, "data", None))
    names = units["unit_name"][:] if "unit_name" in units.colnames else units.id[:]
    observed: list[Times | None] = [None] * len(units)
    if "obs_intervals" in units.colnames:
        for row in range(len(units)):
            intervals = np.asarray(units["obs_intervals"][row], dtype=np.float64).reshape(-1, 2)
            # A unit that fires was observed, if nobody wrote down when.
            fires = len(intervals) == 0 and len(units["spike_times"][row]) > 0
            observed[row] = None if fires else intervals
    trials, labels = file.trials, {}
    for name in () if trials is None else trials.colnames:
        column = np.asarray(trials[name][:]) if name not in _INTERVALS else np.empty((0, 0))
        if column.ndim == 1 and len(column) == len(trials):
            labels[name] = column
    return SpikeTrains(
        [np.asarray(units["spike_times"][row], dtype=np.float64) for row in range(len(units))],
        distinct([as_word(name) for name in names]),
        epochs=None if trials is None else _spans(trials),
        observed=observed,
        invalid=_invalid(file, None),
        labels=labels,
        trial_names=() if trials is None else distinct([f"trial_{number}" for number in trials.id[:]]),
        remark=_other_tables(file) if trials is None else "",
    )


def _other_tables(file: pynwb.NWBFile) -> str:
    names = ", ".join(sorted(name for name in file.intervals or () if name != "invalid_times"))
    return f" Its other tables of intervals ({names}) were not used: `epochs` takes begins and ends." if names else ""


def _spans(table: Any) -> Times:
    return np.stack([np.asarray(table[name][:], dtype=np.float64) for name in ("start_time", "stop_time")], -1)


def _invalid(file: pynwb.NWBFile, series: Any) -> Times:
    """Begins and ends of what the file says is not to be used: of a series, or of the units."""
    table = file.invalid_times
    if table is None or not len(table):
        return np.empty((0, 2))
    spans = _spans(table)
    if series is None or "timeseries" not in table.colnames:
        return spans
    # An interval that names series is about these alone; of units it may be any.
    named = [[one.timeseries for one in table["timeseries"][row]] for row in range(len(table))]
    return spans[[not those or any(one is series for one in those) for those in named]]


def _time_series(path: Path, file: pynwb.NWBFile, key: str, manager: Any) -> Contents:
    series = _all_series(file, manager)
    listing = ", ".join(f"{name} {tuple(one.data.shape)}" for name, one in series.items()) or "none"
    fitting = [name for name in series if name == key] or [name for name in series if f"/{name}".endswith(f"/{key}")]
    # A container of series, such as `Fluorescence` or `DfOverF`, stands for the only one in it.
    fitting = fitting or [name for name in series if f"/{key}/" in f"/{name}"]
    if not fitting:
        raise Refused(f"`key` must name a time series of numbers in {path}, got key={key!r}; it holds: {listing}.")
    if len(fitting) > 1:
        raise Refused(f"`key` must name one time series in {path}, and {key!r} fits {', '.join(fitting)}; pass one.")
    one = series[fitting[0]]
    for part in (one.data, one.timestamps, getattr(one, "channel_conversion", None)):
        _check_inside(path, part)
    times = None if one.timestamps is None else np.asarray(one.timestamps[:], dtype=np.float64)
    names, channels = _channels(path, one)
    time = _axis_of_time(path, fitting[0], tuple(one.data.shape), times, channels)
    if time == 1 and getattr(one, "channel_conversion", None) is not None:
        raise Refused(
            f"{fitting[0]} in {path} has time along its second axis, and gains that do not fit; save its transpose."
        )
    return Contents(
        one.get_data_in_units(),
        dims=("time", "feature")[: one.data.ndim] if time == 0 else ("feature", "time"),
        feature_names=names,
        unit=str(one.unit),
        bin_size=1.0 / float(one.rate) if one.rate else None,
        times=times,
        start=float(one.starting_time) if one.starting_time is not None else None,
        invalid=_invalid(file, one),
        remark=""
        if file.trials is None
        else f" The {len(file.trials)} trials of the file were not used: one recording.",
    )


def _channels(path: Path, series: Any) -> tuple[tuple[str, ...], int]:
    """Return the names of the electrodes, or regions of interest, of a series, or nothing, and their number, or 0."""
    region = getattr(series, "electrodes", None)
    region = getattr(series, "rois", None) if region is None else region
    if region is None:
        return (), 0
    table = region.table
    name = next((name for name in ("channel_name", "label", "electrode_name") if name in table.colnames), None)
    column = table.id if name is None else table[name]
    for part in (region, column):
        _check_inside(path, part.data)
    rows, labels = np.asarray(region.data[:], dtype=np.int64), np.asarray(column[:])
    return tuple(as_word(labels[row]) for row in rows), len(rows)


def _axis_of_time(path: Path, name: str, shape: tuple[int, ...], times: Times | None, channels: int) -> int:
    """Return the axis of time: the first, as the format has it, unless times or electrodes tell otherwise."""
    if times is not None and len(times) not in shape:
        raise Refused(
            f"{name} in {path} has the shape {shape} and {len(times)} timestamps: no axis of it is time; save it again."
        )
    if len(shape) == 1:
        return 0
    turned = times is not None and len(times) != shape[0]
    return int(turned or (channels == shape[0] != shape[1] and (times is None or len(times) == shape[1])))


def _all_series(file: pynwb.NWBFile, manager: Any) -> dict[str, Any]:
    """Return the time series of numbers in the file by their paths in it, which no two share."""
    found = {}
    for one in file.objects.values():
        # An `IntervalSeries` holds begins and ends.
        if not (hasattr(one, "conversion") and hasattr(one, "rate")) or hasattr(one, "add_interval"):
            continue
        if getattr(one.data, "ndim", 0) in (1, 2) and np.dtype(one.data.dtype).kind in "fiub":
            found[str(manager.get_builder(one).path).removeprefix("root/")] = one
    return dict(sorted(found.items()))


def _check_inside(path: Path, data: Any) -> None:
    if hasattr(data, "external"):
        check_dataset(path, data)
