"""What a file or an object holds, before and after it is made a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.arrays import as_labels
from pyro_lowrank.data.clocks import agree, agreed_step, even_step, rises_evenly, time_order
from pyro_lowrank.data.counts import hide_unobserved
from pyro_lowrank.data.orientation import orient
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import warn_user

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Contents:
    """An array as it stands in a file, and what the file says about it.

    Args:
        array: the array, its axes in the order of the file.
        dims: names of its axes, or nothing.
        feature_names: names of its features, or nothing.
        trial_labels: labels of its trials, names where they differ and conditions where they do not, None where one is
            missing; or nothing.
        unit: of measurement, or nothing.
        bin_size: seconds per bin, or None where the file does not state it.
        times: seconds at which the bins stand, or None where the file does not tell.
        start: second at which the first bin begins, where the file tells it without `times`.
        invalid: begins and ends in seconds of what the file says is not to be used, `intervals x 2`, or nothing.
        trial_lengths: time bins of each trial before its padding, where trials differ, or nothing.
        remark: sentences on what was left out of the array, each with a space before it, or nothing.
        labels: lists beside the array that may tell of its trials, by name.
    """

    array: Array
    dims: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    trial_labels: tuple[str | None, ...] = ()
    unit: str = ""
    bin_size: float | None = None
    times: NDArray[np.floating] | None = None
    start: float | None = None
    invalid: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    trial_lengths: tuple[int, ...] = ()
    remark: str = ""
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """Spike times as they stand in a file, and what the file says about them.

    Args:
        trains: the spike times of each unit in seconds; or, where `by_trial`, of each trial, of each unit, since its
            begin.
        names: of the units, all different.
        by_trial: whether spike times are told for each trial, with a clock of its own.
        epochs: begin and end of each trial in seconds, `trials x 2`, or None where the file has no trials.
        observed: of each unit, begins and ends in seconds, `intervals x 2`, or None if it was observed throughout.
        invalid: begins and ends in seconds of what is not to be used of any unit, `intervals x 2`.
        labels: what the file tells of each trial, by name.
        trial_names: one per trial, or nothing.
        no_epochs: why what the file says of trials cannot be used, or nothing.
        remark: sentences on what was left out, each with a space before it, or nothing.
    """

    trains: Sequence[Any]
    names: tuple[str, ...]
    by_trial: bool = False
    epochs: NDArray[np.float64] | None = None
    observed: Sequence[NDArray[np.float64] | None] = ()
    invalid: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    trial_names: tuple[str, ...] = ()
    no_epochs: str = ""
    remark: str = ""


def recording_of(
    source: str, contents: Contents, *, time_axis: int | None = None, trials_axis: int | None = None
) -> Recording:
    """Return an array as a recording, its axes in their places.

    Args:
        source: what holds it, to begin messages with.
        contents: the array, and what is known of it.
        time_axis: axis of time, if known.
        trials_axis: axis of trials, if known.

    Raises:
        ValueError: if the array is empty, has more than three axes, or holds infinities or anything but real numbers.
    """
    _check_array(source, contents.array)
    orientation = orient(
        contents.array.shape,
        dims=contents.dims,
        num_names=len(contents.feature_names),
        num_times=0 if contents.times is None else len(contents.times),
        time_axis=time_axis,
        trials_axis=trials_axis,
    )
    dtype = np.float32 if contents.array.dtype == np.float32 else np.float64
    values: NDArray[np.floating] = np.ascontiguousarray(orientation.arrange(contents.array).astype(dtype))
    _check_values(source, values)
    values, bin_size, start_times, remark = _timed(source, contents, values)
    labelled = len(contents.trial_labels) == len(values)
    names_of_trials = tuple(label for label in contents.trial_labels if label is not None)
    unique = labelled and len(set(names_of_trials)) == len(values)
    names = _feature_names(source, contents, values.shape[-1])
    _warn_of_clocks(source, names, values)
    recording = Recording(
        values,
        trial_lengths=np.array(contents.trial_lengths, dtype=np.int64),
        bin_size=bin_size,
        feature_names=names,
        feature_units=(contents.unit,) * values.shape[-1] if contents.unit else (),
        trial_names=names_of_trials if unique else (),
        conditions=as_labels(contents.trial_labels) if labelled and not unique else None,
        start_times=start_times,
        orientation=orientation.sentence + contents.remark + remark,
    )
    if not len(contents.invalid):
        return recording
    if bin_size is None or start_times is None:
        warn_user(
            f"{source} says that parts of it are not to be used, and not when its bins are: nothing was left out."
        )
        return recording
    return hide_unobserved(recording, invalid=contents.invalid, length=0)


def is_numeric(array: Array) -> bool:
    """Return whether an array holds real numbers, integers or truth values."""
    return array.dtype.kind in "fiub"


def _check_array(source: str, array: NDArray[np.generic]) -> None:
    if not is_numeric(array):
        raise ValueError(
            f"{source} must hold real numbers, got an array of dtype {array.dtype} and shape {array.shape}."
        )
    if not 1 <= array.ndim <= 3:
        raise ValueError(
            f"{source} must hold an array of one to three axes (trials x time x features), got the shape "
            f"{array.shape}; choose a part of it, or join the axes that belong together."
        )
    if array.size == 0:
        raise ValueError(
            f"{source} must hold at least one time bin and one feature, got an array of shape {array.shape}."
        )


def _check_values(source: str, values: NDArray[np.floating]) -> None:
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        trial, time, feature = infinite[0]
        raise ValueError(
            f"{source} must hold finite numbers, or NaN for a missing entry; got {len(infinite)} infinite entries, "
            f"the first at trial {trial}, time {time}, feature {feature}. Replace them by NaN to have them left out."
        )
    if np.isnan(values).all():
        raise ValueError(f"{source} must hold at least one entry that is not missing, got NaN only.")


def _timed(
    source: str, contents: Contents, values: NDArray[np.floating]
) -> tuple[NDArray[np.floating], float | None, NDArray[np.float64] | None, str]:
    """Return the values in the order of time, the bin size, the time of the begin, and a sentence on these."""
    times, starts, length = contents.times, None, values.shape[1]
    if times is not None and len(times) != length:
        warn_user(f"{source} holds {len(times)} times, and {length} time bins were read; the times are left out.")
        times = None
    if contents.start is not None and len(values) == 1:
        starts = np.array([contents.start])
    if times is None or length < 2:
        return values, contents.bin_size, starts, ""
    order, remark = time_order(source, times)
    if order is not None:
        times, values = times[order], np.ascontiguousarray(values[:, order])
    steps = np.diff(times)
    # That they go back was told already.
    measured = None if (steps < 0).any() else even_step(source, steps)
    step = agreed_step(source, contents.bin_size, measured)
    # Times of another unit than the bins tell no begin.
    if len(values) == 1 and np.isfinite(times[0]) and agree(step, measured):
        starts = np.array([float(times[0])])
    return values, step, starts, remark


def _warn_of_clocks(source: str, names: tuple[str, ...], values: NDArray[np.floating]) -> None:
    """Say so if a feature, but not all of them, is a clock as far as its values tell."""
    # The first three bins leave few that are to be looked at as a whole.
    steps = np.diff(values[0, :3], axis=0)
    like = np.isclose(steps[:1], steps[1:], rtol=0.05, atol=0.0).all(0) & (steps != 0).all(0)
    rising = [int(feature) for feature in np.flatnonzero(like) if rises_evenly(values[0, :, feature])]
    if rising and len(rising) < values.shape[-1]:
        warn_user(
            f"In {source} feature {names[rising[0]]!r} rises by the same step in every time bin, as times do: if it is "
            "a clock, leave it out, with `recording.select(features=...)`."
        )


def _feature_names(source: str, contents: Contents, num_features: int) -> tuple[str, ...]:
    names = contents.feature_names
    if names and len(names) != num_features:
        warn_user(f"{source} names {len(names)} features, but {num_features} were read; the names are left out.")
        names = ()
    return names or tuple(f"feature_{feature}" for feature in range(num_features))
