"""Counts that are there already: joined into longer bins, or not to be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive

Times = NDArray[np.float64]


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


def hide_unobserved(
    recording: Recording,
    observed: Sequence[Times | None] = (),
    invalid: Times | None = None,
    *,
    length: float | None = None,
) -> Recording:
    """Return a recording that is missing in the bins that were not observed throughout.

    Args:
        recording: with a bin size and `start_times`.
        observed: of each feature, begins and ends in seconds, `intervals x 2`, none if it never was, or None if it
            always was; nothing if all always were.
        invalid: begins and ends in seconds, `intervals x 2`, of what is not to be used of any feature.
        length: seconds of what a bin holds, 0 for a sample; the bin size if None.

    Example:
        >>> recording = Recording(np.ones((1, 2, 1)), bin_size=0.5, start_times=np.zeros(1))
        >>> hide_unobserved(recording, [np.array([[0.0, 0.7]])]).data[0, :, 0]
        array([ 1., nan])
        >>> hide_unobserved(recording, invalid=np.array([[0.2, 0.3]])).data[0, :, 0]
        array([nan,  1.])
    """
    assert recording.bin_size is not None
    assert recording.start_times is not None
    data = recording.data.copy()
    begins = recording.start_times[:, np.newaxis] + recording.bin_size * np.arange(data.shape[1])
    ends = begins + (recording.bin_size if length is None else length)
    # Clocks that count from 1970 are rounded to a quarter of a microsecond.
    slack = 1e-6 * recording.bin_size + 8 * float(np.finfo(np.float64).eps) * float(np.abs(begins).max())
    for feature, intervals in enumerate(observed):
        if intervals is not None and not len(intervals):
            data[..., feature] = np.nan
        elif intervals is not None:
            starts, stops = joined_intervals(intervals, slack)
            place = np.searchsorted(starts, begins + slack, side="right") - 1
            data[..., feature][(place < 0) | (ends > stops[place] + slack)] = np.nan
    if invalid is not None and len(invalid):
        # A sample at the very begin or end belongs to it, a bin that touches it does not.
        edge = slack if length == 0 else -slack
        starts, stops = joined_intervals(invalid)
        place = np.searchsorted(starts, ends + edge) - 1
        data[(place >= 0) & (stops[place] > begins - edge)] = np.nan
    hidden = int(recording.mask.sum() - (~np.isnan(data)).sum())
    told = f" {hidden} entries are missing: the recording says that they were not observed." if hidden else ""
    return replace(recording, data=data, orientation=recording.orientation + told)


def joined_intervals(intervals: Times, slack: float = 0.0) -> tuple[Times, Times]:
    """Return begins and ends of intervals in order, those that touch or overlap joined.

    Example:
        >>> joined_intervals(np.array([[2.0, 3.0], [0.0, 1.0], [1.0, 1.5]]))
        (array([0., 2.]), array([1.5, 3. ]))
    """
    ordered = intervals[np.argsort(intervals[:, 0])]
    ends = np.maximum.accumulate(ordered[:, 1])
    apart = np.append(True, ordered[1:, 0] > ends[:-1] + slack)
    return ordered[apart, 0], ends[np.append(apart[1:], True)]


def _blocks(array: NDArray[np.floating], factor: int) -> NDArray[np.floating]:
    number = len(array) // factor
    return array[: number * factor].reshape(number, factor, array.shape[1])
