"""Recordings from the objects of other libraries: pynapple, MNE and xarray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.clocks import even_step
from pyro_lowrank.data.contents import recording_of
from pyro_lowrank.data.counts import hide_unobserved, joined_intervals
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.readers import xarray_contents
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.spikes import bin_spikes, check_epochs
from pyro_lowrank.errors import warn_user

if TYPE_CHECKING:
    import mne
    import pynapple
    import xarray

Times = NDArray[np.float64]

# The unit of a channel by MNE's number for it.
_MNE_UNITS = {6: "M", 107: "V", 112: "T", 201: "T/m"}
# What marks the begin of a part: of recordings that MNE, EEGLAB or BrainVision's recorder joined.
_BOUNDARY = re.compile(r"(?i)^edge|\bboundary$|^new segment")


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
        epochs: an `IntervalSet`, or begins and ends in seconds, `epochs x 2`; the time support if None. What lies in
            an epoch and outside the time support is missing.
        conditions: one label per epoch.

    Raises:
        ModuleNotFoundError: if the extra `pynapple` is not installed.
        TypeError: if the object is of another kind.
        ValueError: if `bin_size` is missing or not wanted, or an epoch holds no sample.

    Warns:
        UserWarning: if samples are not evenly spaced, so that the bin size is not known.
    """
    nap = require("pynapple", "pynapple", "Reading an object of pynapple")
    support = check_epochs(data.time_support) if hasattr(data, "time_support") else None
    intervals = support if epochs is None and support is not None else check_epochs(epochs)
    if isinstance(data, nap.TsGroup):
        if bin_size is None:
            raise ValueError("Spike times have to be binned: pass `bin_size`, in seconds.")
        trains = {str(unit): np.asarray(data[unit].index) for unit in data.index}
        recording = bin_spikes(trains, bin_size=bin_size, epochs=intervals, conditions=conditions)
        return hide_unobserved(recording, [support] * len(trains))
    if not isinstance(data, nap.Tsd | nap.TsdFrame):
        raise TypeError(f"`data` must be a TsGroup, Tsd or TsdFrame of pynapple, got {type(data).__name__}.")
    if bin_size is not None:
        raise ValueError(
            "`bin_size` is for spike times; resample a Tsd or TsdFrame with its own methods, such as `bin_average`."
        )
    recording = _sampled(data, intervals, support, conditions)
    names = tuple(str(name) for name in data.columns) if isinstance(data, nap.TsdFrame) else recording.feature_names
    return _not_empty(replace(recording, feature_names=names))


def _sampled(data: Any, intervals: Times, support: Times | None, conditions: Sequence[Any] | None) -> Recording:
    """Return the samples of a `Tsd` or `TsdFrame`, a trial per interval."""
    times, values = np.asarray(data.index, dtype=np.float64), np.asarray(data.values)
    values = values[:, np.newaxis] if values.ndim == 1 else values
    # Neighbours on two sides of what was not observed are none.
    stretch = np.searchsorted(joined_intervals(support)[0], times, "right") if support is not None else 0 * times
    spans = []
    for number, (start, stop) in enumerate(intervals):
        # Pynapple's intervals hold both their ends.
        low, high = np.searchsorted(times, start, "left"), np.searchsorted(times, stop, "right")
        if low == high:
            raise ValueError(f"Epoch {number}, from {start:g} to {stop:g} s, holds no sample.")
        spans.append(slice(int(low), int(high)))
    steps = np.concatenate([np.diff(times[span])[np.diff(stretch[span]) == 0] for span in spans])
    step = even_step(f"the {type(data).__name__}", steps)
    gaps = [bool(np.diff(stretch[span]).any()) for span in spans]
    # Bins before the first sample, where an epoch begins before the time support does.
    before = np.zeros(len(spans), dtype=np.int64)
    if step is not None:
        firsts = times[[span.start for span in spans]]
        before = np.floor((firsts - intervals[:, 0]) / step + 1e-6).astype(np.int64)
    if any(gaps) and step is None:
        raise ValueError(
            f"Epoch {gaps.index(True)} goes over a gap in the time support, and the samples are not evenly spaced: how "
            "many are missing is not known. Pass epochs within the support, or resample (`interpolate`)."
        )
    over = f" {sum(gaps)} of them go over gaps in the time support, which are missing." if any(gaps) else ""
    return Recording.from_trials(
        [
            _with_gaps(times[span], values[span], step, number) if gap or number else values[span]
            for span, gap, number in zip(spans, gaps, before.tolist(), strict=True)
        ],
        bin_size=step,
        conditions=conditions,
        start_times=[
            float(times[span.start]) - number * (step or 0.0)
            for span, number in zip(spans, before.tolist(), strict=True)
        ],
        orientation=f"{type(data).__name__} of {values.shape[1]} columns in {len(spans)} epochs.{over}",
    )


def _with_gaps(times: NDArray[np.float64], values: NDArray[Any], step: float | None, before: int) -> NDArray[Any]:
    """Return samples on a grid that begins some bins before them and goes on over gaps, where they are NaN."""
    assert step is not None
    place = np.round((times - times[0]) / step).astype(np.int64) + before
    filled = np.full((int(place[-1]) + 1, values.shape[1]), np.nan)
    filled[place] = values
    return filled


def _not_empty(recording: Recording) -> Recording:
    """Return a recording, or raise if all of it is missing."""
    if not recording.mask.any():
        raise ValueError(f"All entries are missing or marked as bad: nothing is left of {recording.orientation}")
    return recording


def from_mne(data: mne.io.BaseRaw | mne.BaseEpochs, *, picks: Any = "data") -> Recording:
    """Return the signals of an MNE `Raw`, or of `Epochs`, a trial each, in SI units (volts, tesla).

    Stretches that an annotation calls bad, and channels marked bad, are missing (NaN), so that their neighbours can be
    used; an annotation of a `Raw` that names channels is about these alone. A `Raw` that was joined of several is cut
    where MNE, or the program that recorded it, marks a boundary: each part is a trial. The conditions are the names of
    the events, or their codes where they have none.

    Args:
        data: the object; it need not be loaded.
        picks: channels, as MNE's own methods take them; by default those of data, no stimulus channels, or, where
            there are none, all but stimulus channels.

    Raises:
        ModuleNotFoundError: if the extra `mne` is not installed.
        TypeError: if the object is of another kind.
        ValueError: if no channel, no epoch or no entry is left.

    Warns:
        UserWarning: if there are no channels of data, and others were taken, or an epoch goes over a boundary.
    """
    mne = require("mne", "mne", "Reading an object of MNE")
    if not isinstance(data, mne.io.BaseRaw | mne.BaseEpochs):
        raise TypeError(f"`data` must be a Raw or Epochs of MNE, got {type(data).__name__}.")
    chosen = data.copy()
    if isinstance(chosen, mne.BaseEpochs):
        # Those that are not loaded cannot be picked from, nor counted: some may be dropped.
        chosen.load_data()
        if not len(chosen):
            raise ValueError("There is no epoch left: all were dropped; `epochs.drop_log` tells why.")
    _pick(chosen, picks)
    bad = [name in data.info["bads"] for name in chosen.ch_names]
    starts: NDArray[np.float64] | None
    if isinstance(chosen, mne.io.BaseRaw):
        trials, starts, conditions = *_parts(chosen), None
    else:
        trials, starts, conditions = _epochs(chosen)
    for trial in trials:
        trial[:, bad] = np.nan
    sampled = float(chosen.info["sfreq"])
    parts = f", in {len(trials)} parts that were joined" if conditions is None and len(trials) > 1 else ""
    waiting = sum(not projection["active"] for projection in data.info["projs"])
    parts += f"; projections that are not applied, as `apply_proj` would: {waiting}" * bool(waiting)
    recording = Recording.from_trials(
        trials,
        bin_size=1.0 / sampled,
        feature_names=chosen.ch_names,
        feature_units=[_MNE_UNITS.get(int(channel["unit"]), "") for channel in chosen.info["chs"]],
        conditions=conditions,
        start_times=starts,
        orientation=f"{type(data).__name__} of {len(chosen.ch_names)} channels at {sampled:g} Hz{parts}.",
    )
    return _not_empty(recording)


def _pick(data: Any, picks: Any) -> None:
    """Reduce an object of MNE to some channels."""
    try:
        data.pick("all" if picks is None else picks, exclude=())
    except ValueError as error:
        if not (isinstance(picks, str) and picks == "data"):
            raise
        kinds = data.get_channel_types()
        others = [name for name, kind in zip(data.ch_names, kinds, strict=True) if kind != "stim"]
        if not others:
            raise ValueError("`data` has stimulus channels alone; pass `picks='stim'` if these are wanted.") from error
        told = ", ".join(sorted(set(kinds) - {"stim"}))
        warn_user(f"There are no channels of data; those there are ({told}) were taken, and `picks` chooses others.")
        data.pick(others, exclude=())


def _parts(raw: Any) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """Return the parts that a raw recording was joined of, `time x channels`, and the seconds at which they begin."""
    marks = raw.annotations.copy()
    some = np.array([bool(names) for names in marks.ch_names], dtype=bool)
    # Of what is bad in some channels MNE takes all.
    raw.annotations.delete(np.flatnonzero(some))
    values = raw.get_data(reject_by_annotation="NaN").T
    # On the clock of the recording where that began at no known date.
    shift = raw.first_samp if marks.orig_time is None else 0
    begins, ends = (
        raw.time_as_index(times, use_rounding=True, origin=marks.orig_time) - shift
        for times in (marks.onset, marks.onset + marks.duration)
    )
    for number in np.flatnonzero(some):
        if marks.description[number].lower().startswith("bad"):
            stretch = slice(max(begins[number], 0), max(ends[number], 0))
            values[stretch, np.isin(raw.ch_names, marks.ch_names[number])] = np.nan
    joints = [bool(_BOUNDARY.search(said)) for said in marks.description]
    cuts = [int(place) for place in np.unique(begins[joints]) if 0 < place < len(values)]
    return np.split(values, cuts), raw.first_time + np.array([0, *cuts]) / float(raw.info["sfreq"])


def _epochs(epochs: Any) -> tuple[list[NDArray[Any]], NDArray[np.float64] | None, NDArray[np.str_]]:
    """Return the epochs, `time x channels`, the seconds at which they begin, if known, and their events' names."""
    values = np.array(epochs.get_data(copy=False).transpose(0, 2, 1))
    joints = []
    for number, (trial, marks) in enumerate(zip(values, epochs.get_annotations_per_epoch(), strict=True)):
        for onset, duration, said, *_ in marks:
            joints += [number] if _BOUNDARY.search(said) and epochs.tmin < onset <= epochs.tmax else []
            if said.lower().startswith("bad"):
                trial[(epochs.times >= onset) & (epochs.times <= onset + duration)] = np.nan
    if joints:
        warn_user(
            f"{len(set(joints))} epochs go over a boundary between recordings that were joined, the first is epoch "
            f"{joints[0]}; leave them out, as MNE does with `reject_by_annotation=True`."
        )
    # Events count the samples of the raw recording, whatever became of the epochs' own rate; those of epochs that were
    # made of an array count the epochs.
    starts = epochs.events[:, 0] / getattr(epochs, "_raw_sfreq", epochs.info["sfreq"]) + epochs.tmin
    if len(epochs) > 1 and np.array_equal(epochs.events[:, 0], epochs.selection):
        starts = None
    labels = {code: name for name, code in epochs.event_id.items()}
    return list(values), starts, np.array([str(labels.get(code, code)) for code in epochs.events[:, 2]])


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
