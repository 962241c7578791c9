"""What a file or an object holds, before and after it is made a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.orientation import orient
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import warn_user

Array = NDArray[np.generic]

# Seconds in one unit of time, as the attribute `units` of a coordinate names it.
SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
}


@dataclass(frozen=True, eq=False)
class Contents:
    """An array as it stands in a file, and what the file says about it.

    Args:
        array: the array, its axes in the order of the file.
        dims: names of its axes, or nothing.
        feature_names: names of its features, or nothing.
        trial_labels: labels of its trials, names where they differ and conditions where they do not, or nothing.
        unit: of measurement, or nothing.
        bin_size: seconds per bin, or None where the file does not state it.
        times: seconds at which the bins stand, or None where the file does not tell.
        trial_lengths: time bins of each trial before its padding, where trials differ, or nothing.
        remark: sentences on what was left out of the array, each with a space before it, or nothing.
    """

    array: Array
    dims: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    trial_labels: tuple[str, ...] = ()
    unit: str = ""
    bin_size: float | None = None
    times: NDArray[np.floating] | None = None
    trial_lengths: tuple[int, ...] = ()
    remark: str = ""


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """Spike times as they stand in a file, and what the file says about them.

    Args:
        trains: the spike times of each unit in seconds, by name.
        epochs: begin and end of each trial in seconds, `trials x 2`, or None where the file has no trials.
        observed: for units that were not observed throughout, begins and ends in seconds, `intervals x 2`.
        labels: what the file tells of each trial, by name.
        trial_names: one per trial, or nothing.
        remark: a sentence on what was left out, or nothing.
    """

    trains: Mapping[str, NDArray[np.float64]]
    epochs: NDArray[np.float64] | None = None
    observed: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    trial_names: tuple[str, ...] = ()
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
        time_axis=time_axis,
        trials_axis=trials_axis,
    )
    dtype = np.float32 if contents.array.dtype == np.float32 else np.float64
    values: NDArray[np.floating] = np.ascontiguousarray(orientation.arrange(contents.array).astype(dtype))
    _check_values(source, values)
    labelled = len(contents.trial_labels) == len(values)
    unique = labelled and len(set(contents.trial_labels)) == len(values)
    return Recording(
        values,
        trial_lengths=np.array(contents.trial_lengths, dtype=np.int64),
        bin_size=_bin_size(source, contents),
        feature_names=_feature_names(source, contents, values.shape[-1]),
        feature_units=(contents.unit,) * values.shape[-1] if contents.unit else (),
        trial_names=contents.trial_labels if unique else (),
        conditions=np.array(contents.trial_labels) if labelled and not unique else None,
        orientation=orientation.sentence + contents.remark,
    )


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


def _bin_size(source: str, contents: Contents) -> float | None:
    if contents.bin_size is not None or contents.times is None or len(contents.times) < 2:
        return contents.bin_size
    return even_step(source, np.diff(contents.times))


def even_step(source: str, steps: NDArray[np.floating]) -> float | None:
    """Return the one step from each time to the next, or None, with a warning, where steps differ.

    Example:
        >>> even_step("The file", np.array([0.5, 0.5]))
        0.5
    """
    if not len(steps):
        return None
    bin_size = float(np.median(steps))
    # Times are often rounded, to milliseconds say: within a tenth of a bin they are still even.
    if bin_size > 0 and np.allclose(steps, bin_size, rtol=0.1, atol=0.0):
        return float(np.mean(steps))
    warn_user(
        f"The times in {source} are not evenly spaced, so that the bin size is not known; every row is taken as one "
        "bin. Resample the recording if that is not what you want."
    )
    return None


def _feature_names(source: str, contents: Contents, num_features: int) -> tuple[str, ...]:
    names = contents.feature_names
    if names and len(names) != num_features:
        warn_user(f"{source} names {len(names)} features, but {num_features} were read; the names are left out.")
        names = ()
    return names or tuple(f"feature_{feature}" for feature in range(num_features))
