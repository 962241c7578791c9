"""Recordings as the models take them, read from files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import Contents, SpikeTrains, recording_of
from pyro_lowrank.data.counts import hide_unobserved, rebin
from pyro_lowrank.data.hdf5 import read_hdf5
from pyro_lowrank.data.matlab import read_mat
from pyro_lowrank.data.nwb import read_nwb
from pyro_lowrank.data.phy import is_phy, read_phy
from pyro_lowrank.data.readers import read_netcdf, read_npy, read_npz
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.spikes import bin_spikes, bin_trials, check_epochs, check_spikes
from pyro_lowrank.data.tables import read_csv
from pyro_lowrank.errors import check_positive

READERS: dict[str, Callable[[Path, str | None], Contents | SpikeTrains]] = {
    ".csv": read_csv,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".mat": read_mat,
    ".nc": read_netcdf,
    ".npy": read_npy,
    ".npz": read_npz,
    ".nwb": read_nwb,
}


def read_recording(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    time_axis: int | None = None,
    trials_axis: int | None = None,
    bin_size: float | None = None,
    epochs: Any = None,
    conditions: str | None = None,
) -> Recording:
    """Read a recording from a `.npy`, `.npz`, `.csv`, `.h5`, xarray `.nc`, MATLAB `.mat` or NWB `.nwb` file, or of Phy.

    Which axis is which is decided in this order: the arguments; the names of the dimensions (`time`, `trial`,
    `channel`, `unit`, ...); the number of features that the file names; the shape. A 1-d array is one feature over
    time, of a 2-d array the longer axis is time (the first where both are equally long), a 3-d array is
    `trials x time x features`. `Recording.orientation` tells the outcome. Nothing is ever unpickled.

    Spike times are binned, see `bin_spikes`: those of an `.nwb` file in the epochs of its table of trials, or, without
    one, from its first spike to its last. Where the file says when a unit was observed, or which times are not valid,
    it is missing otherwise. Rows that are not in the order of time are sorted. So are those of a folder that Phy or
    Kilosort wrote (clusters called good, seconds by the `sample_rate` in `params.py`, which is not run), and those of a
    `.npz` or `.h5` file with `spike_times` in seconds and as many of `spike_unit`.

    A damaged or hostile file, in whatever way, raises `ValueError` with its name before much time or memory is spent;
    numbers that lie in another file are not read.

    Shapes: `Recording.data` is `trials x time x features`, with one trial or one feature where the file has no
    such axis.

    Args:
        path: the file. A `.csv` file has a row per time bin; its header, if any, names the features, an empty cell
            is a missing entry, a column of times (`time`, `t_ms`, `Timestamp`, dates) gives the bin size, and one that
            counts the rows is left out. A cell array in a `.mat` file holds the trials, `time x features` or the other
            way round, or vectors with the spike times of one unit each, or trials x units of these.
        key: which array of a `.npz` or `.h5` file (`group/name`), variable of a `.mat` (`struct.field` for a field) or
            `.nc` file or time series of an `.nwb` file, by its name or path (or that of what holds one alone, as
            `Fluorescence`); needed where several have two or more axes. Without it an `.nwb` file is
            read for its units.
        time_axis: axis of time in the file's array.
        trials_axis: axis of trials in the file's array, or among cells of spike times.
        bin_size: seconds per bin, for spike times; counts in shorter bins are summed.
        epochs: for spike times, begins and ends in seconds, `epochs x 2`, in place of those in the file.
        conditions: what tells the condition of each trial, a column of the table of trials or an array of the file; one
            called `condition` if None and there is one.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the extra that the kind of file needs is not installed: `netcdf`, `matlab` or `nwb`.
        ValueError: if the file is of another kind, truncated or damaged; if `key` or an axis does not fit it; if
            the array is empty, has more than three axes, or holds infinities or anything but real numbers; if spike
            times come without `bin_size`, or cannot be binned.

    Example:
        >>> np.save("eeg.npy", np.zeros((500, 64), dtype=np.float32))
        >>> recording = read_recording("eeg.npy")
        >>> recording.data.shape
        (1, 500, 64)
        >>> print(recording.orientation)
        2-d array (500, 64): took axis 0 as time because it is the longer axis, axis 1 as features;
        pass `time_axis` to override.
    """
    path = Path(path)
    contents = _contents(path, key, trials_axis)
    try:
        if isinstance(contents, SpikeTrains):
            return _binned(path, contents, bin_size, epochs, conditions)
        if epochs is not None:
            raise ValueError(f"`epochs` is for spike times, and {path} holds an array.")
        recording = recording_of(str(path), contents, time_axis=time_axis, trials_axis=trials_axis)
        recording = _labelled(path, recording, contents, conditions)
        return recording if bin_size is None else rebin(recording, bin_size)
    except (TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _contents(path: Path, key: str | None, trials_axis: int | None) -> Contents | SpikeTrains:
    """Return what a file, or a folder of Phy, holds."""
    if path.is_dir() and is_phy(path):
        return read_phy(path, key)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise FileNotFoundError(
            f"`path` must be a recording ({', '.join(READERS)}, or a folder of Phy with spike_times.npy), but there is "
            f"{what} at {path}."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"`path` must end in one of {', '.join(READERS)}, got {path.name!r}; save it as one of these.")
    return read_mat(path, key, trials_axis) if reader is read_mat else reader(path, key)


def _labelled(path: Path, recording: Recording, contents: Contents, conditions: str | None) -> Recording:
    """Return an array with the conditions of its trials, where the file tells them."""
    fitting = {name: one for name, one in contents.labels.items() if len(one) == recording.num_trials}
    if conditions is not None and conditions not in fitting:
        raise ValueError(
            f"`conditions` must name an array in {path} with an entry for each of {recording.num_trials} trials, got "
            f"{conditions!r}; it has {', '.join(fitting) or 'none'}."
        )
    labels = fitting.get("condition" if conditions is None else conditions)
    return recording if labels is None else replace(recording, conditions=labels)


def _binned(
    path: Path, contents: SpikeTrains, bin_size: float | None, epochs: Any, conditions: str | None
) -> Recording:
    if bin_size is None:
        raise ValueError(
            f"{path} holds spike times, which have to be binned: pass `bin_size` in seconds, such as 0.02 (on the "
            "command line, `--bin 0.02`)."
        )
    if not contents.names:
        raise ValueError(f"{path} holds no unit: there are no spikes to bin.")
    labels = contents.labels.get("condition" if conditions is None else conditions)
    if labels is None and conditions is not None:
        columns = ", ".join(contents.labels) or "nothing"
        raise ValueError(
            f"`conditions` must name a column of the trials in {path}, got {conditions!r}; it has {columns}."
        )
    own = epochs is None and contents.epochs is not None
    if epochs is None and contents.epochs is None and contents.no_epochs:
        raise ValueError(f"{path}: {contents.no_epochs}; pass `epochs`, such as epochs=[(0.0, 1.5), (2.0, 3.5)].")
    if contents.by_trial:
        return _binned_by_trial(path, contents, bin_size, epochs, labels)
    remark = contents.remark
    trains = [check_spikes(train, name) for train, name in zip(contents.trains, contents.names, strict=True)]
    if epochs is None:
        epochs = contents.epochs
    if epochs is None:
        epochs = _extent(path, np.concatenate(trains), contents.observed, bin_size, len(trains))
        seen = any(intervals is not None and len(intervals) for intervals in contents.observed)
        reach = "of all that was observed" if seen else "from the first spike to the last"
        remark += f" The file has no trials: one epoch {reach}."
    recording = bin_spikes(
        contents.trains,
        contents.names,
        bin_size=bin_size,
        epochs=epochs,
        trial_names=contents.trial_names if own else (),
        conditions=labels if own else None,
    )
    recording = hide_unobserved(recording, contents.observed, contents.invalid)
    return replace(recording, orientation=recording.orientation + remark)


def _binned_by_trial(path: Path, contents: SpikeTrains, bin_size: float, epochs: Any, labels: Any) -> Recording:
    """Bin spike times that start again with each trial; `epochs` are on the clocks of the trials."""
    number, remark, starts = len(contents.trains), contents.remark, None
    spikes = np.concatenate(
        [check_spikes(*each) for row in contents.trains for each in zip(row, contents.names, strict=True)]
    )
    if epochs is not None:
        intervals = check_epochs(epochs)
        if len(intervals) not in (1, number):
            raise ValueError(
                f"{path} holds {number} trials with spike times since the begin of each: `epochs` must be one begin "
                f"and end for all of them, or one for each, got {len(intervals)}."
            )
        intervals = np.broadcast_to(intervals, (number, 2))
    elif contents.epochs is not None:
        starts = contents.epochs[:, 0]
        intervals = check_epochs(contents.epochs) - starts[:, np.newaxis]
    else:
        first, last = _extent(path, spikes, (), bin_size, len(contents.names), from_zero=True)[0]
        intervals = np.tile([first, last], (number, 1))
        remark += f" The file does not tell how long they are: from {first:g} to {last:g} s, where the last spike is."
    recording = bin_trials(
        contents.trains,
        contents.names,
        bin_size=bin_size,
        epochs=intervals,
        start_times=starts,
        conditions=labels,
    )
    return replace(recording, orientation=recording.orientation + remark)


def _extent(
    path: Path, spikes: NDArray[np.float64], observed: Any, bin_size: float, units: int, *, from_zero: bool = False
) -> NDArray[np.float64]:
    """One epoch from the first spike, or what was observed, to the last."""
    bin_size = check_positive("bin_size", bin_size)
    if not spikes.size:
        raise ValueError(f"{path} holds no spikes, and no trials to count them in.")
    seen = [intervals for intervals in observed if intervals is not None and len(intervals)]
    low = min([spikes.min(), *(intervals.min() for intervals in seen), *[0.0] * from_zero])
    first = float(np.floor(low / bin_size) * bin_size)
    # Whole bins, the last of which holds the last spike.
    last = first + bin_size * (np.floor((spikes.max() - first) / bin_size) + 1)
    end = max([last, *(intervals.max() for intervals in seen)])
    bins = (end - first) / bin_size
    if bins * units > max(5e6, 1000 * spikes.size):
        raise ValueError(
            f"The {spikes.size} spikes in {path} reach from {spikes.min():g} to {spikes.max():g} s, which is "
            f"{bins:.3g} bins of {bin_size:g} s: is one of them wrong, or `bin_size` not in seconds? If neither, pass "
            "`epochs`."
        )
    return np.array([[first, end]])
