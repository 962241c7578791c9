"""Recordings from the objects of other libraries: pynapple, MNE and xarray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_lowrank.data.contents import even_step, recording_of
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.readers import xarray_contents
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.spikes import bin_spikes, check_epochs

if TYPE_CHECKING:
    import mne
    import pynapple
    import xarray


# The unit of a channel by MNE's number for it.
_MNE_UNITS = {6: "M", 107: "V", 112: "T", 201: "T/m"}


def from_pynapple(
    data: pynapple.TsGroup | pynapple.TsdFrame | pynapple.Tsd,
    *,
    bin_size: float | None = None,
    epochs: Any = None,
    conditions: Sequence[Any] | None = None,
) -> Recording:
    """Return the spikes of a `TsGroup`, binned, or the samples of a `Tsd` or `TsdFrame`, one trial per epoch.

    Args:
        data: the object.
        bin_size: seconds per bin, for a `TsGroup`; sampled data have their own.
        epochs: an `IntervalSet`, or begins and ends in seconds, `epochs x 2`; the time support if None.
        conditions: one label per epoch.

    Raises:
        ModuleNotFoundError: if the extra `pynapple` is not installed.
        TypeError: if the object is of another kind.
        ValueError: if `bin_size` is missing or not wanted, or an epoch holds no sample.

    Warns:
        UserWarning: if samples are not evenly spaced, so that the bin size is not known.
    """
    nap = require("pynapple", "pynapple", "Reading an object of pynapple")
    intervals = check_epochs(data.time_support if epochs is None and hasattr(data, "time_support") else epochs)
    if isinstance(data, nap.TsGroup):
        if bin_size is None:
            raise ValueError("Spike times have to be binned: pass `bin_size`, in seconds.")
        trains = {str(unit): np.asarray(data[unit].index) for unit in data.index}
        return bin_spikes(trains, bin_size=bin_size, epochs=intervals, conditions=conditions)
    if not isinstance(data, nap.Tsd | nap.TsdFrame):
        raise TypeError(f"`data` must be a TsGroup, Tsd or TsdFrame of pynapple, got {type(data).__name__}.")
    if bin_size is not None:
        raise ValueError(
            "`bin_size` is for spike times; resample a Tsd or TsdFrame with its own methods, such as `bin_average`."
        )
    times, values = np.asarray(data.index, dtype=np.float64), np.asarray(data.values)
    values = values[:, np.newaxis] if values.ndim == 1 else values
    trials, starts, steps = [], [], []
    for number, (start, stop) in enumerate(intervals):
        # Pynapple's intervals hold both their ends.
        low, high = np.searchsorted(times, start, "left"), np.searchsorted(times, stop, "right")
        if low == high:
            raise ValueError(f"Epoch {number}, from {start:g} to {stop:g} s, holds no sample.")
        trials.append(values[low:high])
        starts.append(float(times[low]))
        steps.append(np.diff(times[low:high]))
    names = tuple(str(name) for name in data.columns) if isinstance(data, nap.TsdFrame) else ()
    return Recording.from_trials(
        trials,
        bin_size=even_step(f"the {type(data).__name__}", np.concatenate(steps)),
        feature_names=names,
        conditions=conditions,
        start_times=starts,
        orientation=f"{type(data).__name__} of {values.shape[1]} columns in {len(trials)} epochs.",
    )


def from_mne(data: mne.io.BaseRaw | mne.BaseEpochs, *, picks: Any = "data") -> Recording:
    """Return the signals of an MNE `Raw`, as one trial, or of `Epochs`, a trial each, in SI units (volts, tesla).

    Stretches of a `Raw` that an annotation calls bad, and channels marked bad, are missing (NaN), so that their
    neighbours can be used. The conditions are the names of the events.

    Args:
        data: the object.
        picks: channels, as MNE's own methods take them; those of data (no stimulus channels) by default.

    Raises:
        ModuleNotFoundError: if the extra `mne` is not installed.
        TypeError: if the object is of another kind.
    """
    mne = require("mne", "mne", "Reading an object of MNE")
    if not isinstance(data, mne.io.BaseRaw | mne.BaseEpochs):
        raise TypeError(f"`data` must be a Raw or Epochs of MNE, got {type(data).__name__}.")
    info = data.info
    chosen = data.copy().pick(picks, exclude=()) if picks is not None else data
    names = tuple(chosen.ch_names)
    conditions = None
    if isinstance(chosen, mne.io.BaseRaw):
        values = chosen.get_data(reject_by_annotation="NaN")[np.newaxis]
        starts = np.array([chosen.first_time])
    else:
        values = chosen.get_data(copy=True)
        # Events count the samples of the raw recording, whatever became of the epochs' own rate.
        starts = chosen.events[:, 0] / getattr(chosen, "_raw_sfreq", info["sfreq"]) + chosen.tmin
        labels = {code: name for name, code in chosen.event_id.items()}
        conditions = np.array([labels[code] for code in chosen.events[:, 2]])
    bad = [name in info["bads"] for name in names]
    values = np.array(values.transpose(0, 2, 1))
    values[..., bad] = np.nan
    return Recording(
        values,
        bin_size=1.0 / float(info["sfreq"]),
        feature_names=names,
        feature_units=tuple(_MNE_UNITS.get(int(channel["unit"]), "") for channel in chosen.info["chs"]),
        conditions=conditions,
        start_times=starts,
        orientation=f"{type(data).__name__} of {len(names)} channels at {info['sfreq']:g} Hz.",
    )


def from_xarray(data: xarray.DataArray, *, time_axis: int | None = None, trials_axis: int | None = None) -> Recording:
    """Return the values of a `DataArray`, its dimensions taken by their names, as `read_recording` takes a file's.

    Args:
        data: with a dimension such as `time`, and perhaps `trial` and `channel` (or `unit`, `neuron`, ...). The labels
            of the features name them; times give the bin size where their attribute `units` says seconds or the like,
            or where they are time differences.
        time_axis: axis of time, if names do not tell.
        trials_axis: axis of trials, if names do not tell.

    Raises:
        ModuleNotFoundError: if the extra `netcdf` is not installed.
        TypeError: if the object is of another kind.
        ValueError: as of `read_recording`.
    """
    xarray = require("xarray", "netcdf", "Reading an object of xarray")
    if isinstance(data, xarray.Dataset):
        raise TypeError(f"`data` must be one DataArray; choose one of the Dataset: {', '.join(map(str, data))}.")
    if not isinstance(data, xarray.DataArray):
        raise TypeError(f"`data` must be a DataArray of xarray, got {type(data).__name__}.")
    name = f"The DataArray {data.name!r}" if data.name is not None else "The DataArray"
    return recording_of(name, xarray_contents(name, data, {}), time_axis=time_axis, trials_axis=trials_axis)
