"""Counts that are there already: joined into longer bins, or not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive


def rebin(recording: Recording, bin_size: float) -> Recording:
    """Join time bins of a recording of counts into longer ones, which hold the sums.

    What is left over at the end of a trial is dropped; a sum is missing where one of its terms is. Inputs are averaged.

    Args:
        recording: of counts, with a bin size.
        bin_size: seconds per bin wanted, a multiple of what there is.

    Raises:
        ValueError: if the bin size is not known or no divisor, no trial is long enough, or the data are no counts.

    Example:
        >>> rebin(Recording(np.ones((1, 7, 2)), bin_size=0.001), 0.003).data[0]
        array([[3., 3.],
               [3., 3.]])
    """
    bin_size = check_positive("bin_size", bin_size)
    if recording.bin_size is None:
        raise ValueError(
            f"The bins of the recording cannot be joined to {bin_size:g} s: how long they are is not known; "
            "pass `bin_size` when it is made."
        )
    factor = round(bin_size / recording.bin_size)
    if factor < 1 or not np.isclose(factor * recording.bin_size, bin_size, rtol=1e-6, atol=0.0):
        raise ValueError(
            f"`bin_size` must be a multiple of the recording's, {recording.bin_size:g} s, got {bin_size:g} s."
        )
    if factor == 1:
        return recording
    data = recording.data[recording.mask]
    if (data < 0).any() or (data != np.round(data)).any():
        raise ValueError(
            f"Only counts, 0, 1, 2, ..., can be summed over longer bins, and the recording holds others, such as "
            f"{data[(data < 0) | (data != np.round(data))][0]:g}; filter and resample it before (`scipy.signal`)."
        )
    lengths = recording.trial_lengths
    if lengths.min() < factor:
        raise ValueError(
            f"`bin_size` must fit into every trial, got {bin_size:g} s, and the shortest trial has "
            f"{lengths.min() * recording.bin_size:g} s."
        )
    inputs = None
    if recording.inputs is not None:
        inputs = [
            _blocks(array[:length], factor).mean(1) for array, length in zip(recording.inputs, lengths, strict=True)
        ]
    return Recording.from_trials(
        [_blocks(trial, factor).sum(1) for trial in recording.trials()],
        inputs,
        bin_size=bin_size,
        feature_names=recording.feature_names,
        feature_units=recording.feature_units,
        input_names=recording.input_names,
        trial_names=recording.trial_names,
        conditions=recording.conditions,
        start_times=recording.start_times,
        orientation=f"{recording.orientation} Joined {factor} bins each.".strip(),
    )


def hide_unobserved(recording: Recording, observed: Mapping[str, NDArray[np.float64]], remark: str = "") -> Recording:
    """Return a recording whose features are missing in the bins in which they were not observed throughout.

    Args:
        recording: with a bin size and `start_times`.
        observed: begins and ends in seconds, `intervals x 2`, by name of the feature; one without was always observed.
        remark: a sentence to add to `Recording.orientation`.

    Example:
        >>> recording = Recording(np.ones((1, 2, 1)), bin_size=0.5, feature_names=("a",), start_times=np.zeros(1))
        >>> hide_unobserved(recording, {"a": np.array([[0.0, 0.7]])}).data[0, :, 0]
        array([ 1., nan])
    """
    assert recording.bin_size is not None
    assert recording.start_times is not None
    data = recording.data.copy()
    begins = recording.start_times[:, np.newaxis] + recording.bin_size * np.arange(data.shape[1])
    slack = 1e-6 * recording.bin_size
    for name, intervals in observed.items():
        ordered = intervals[np.argsort(intervals[:, 0])]
        # Intervals that touch or overlap are one.
        ends = np.maximum.accumulate(ordered[:, 1])
        apart = np.append(True, ordered[1:, 0] > ends[:-1] + slack)
        starts, ends = ordered[apart, 0], ends[np.append(apart[1:], True)]
        place = np.searchsorted(starts, begins + slack, side="right") - 1
        seen = (place >= 0) & (begins + recording.bin_size <= ends[place] + slack)
        data[..., recording.feature_names.index(name)][~seen] = np.nan
    hidden = int(recording.mask.sum() - (~np.isnan(data)).sum())
    told = f" {hidden} entries are missing: their units were not observed then." if hidden else ""
    return replace(recording, data=data, orientation=f"{recording.orientation}{told}{remark}")


def _blocks(array: NDArray[np.floating], factor: int) -> NDArray[np.floating]:
    number = len(array) // factor
    return array[: number * factor].reshape(number, factor, array.shape[1])
