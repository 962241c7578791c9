"""Parts of a recording: to train on and to hold out, and windows of long trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import label_codes
from pyro_lowrank.data.overlaps import check_apart, has_common_clock, trial_groups
from pyro_lowrank.data.recording import Recording, places_of
from pyro_lowrank.errors import check_positive_int


class Split(NamedTuple):
    """Two parts of a recording that share nothing.

    Attributes:
        train: the part to train on.
        held_out: the part to evaluate on.
    """

    train: Recording
    held_out: Recording


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """Features that are seen, and features that are to be predicted from them (co-smoothing).

    Attributes:
        held_in: indices of the features that are seen, in their order.
        held_out: indices of those to be predicted.
    """

    held_in: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def __str__(self) -> str:
        return f"FeatureSplit: {len(self.held_in)} features held in, {len(self.held_out)} held out"


def split_trials(
    recording: Recording,
    held_out: float | Sequence[int] | NDArray[np.integer] = 0.2,
    *,
    seed: int = 0,
    by: ArrayLike | None = None,
) -> Split:
    """Hold out whole trials, drawn at random.

    Trials of one name, such as the windows that `cut_windows` makes of one trial, and trials that overlap in time (by
    `start_times` and `bin_size`) stay on one side, so that nothing leaks. With `by`, as large a share of every
    condition is held out, up to rounding.

    Args:
        recording: with at least two trials.
        held_out: share of the trials, above 0 and below 1, or indices of the trials.
        seed: of the draw.
        by: one label per trial, `recording.conditions` as a rule; None for a draw from all.

    Raises:
        ValueError: if one side would be empty, an index does not exist, trials of one name or time differ in `by`, a
            label is missing, or the trials listed share time or a name with others.

    Example:
        >>> recording = Recording(np.zeros((10, 20, 3)), conditions=np.repeat(["left", "right"], 5))
        >>> train, held_out = split_trials(recording, 0.2, by=recording.conditions)
        >>> train.num_trials, sorted(held_out.conditions.tolist())
        (8, ['left', 'right'])
    """
    if np.ndim(held_out):
        chosen = np.zeros(recording.num_trials, dtype=bool)
        chosen[_checked_indices("trials", held_out, recording.num_trials)] = True
        return _split(recording, chosen)
    groups, names = trial_groups(recording)
    if len(names) < 2:
        raise ValueError(_of_one_group(recording, names[0]))
    share = _checked_share(held_out)
    labels = group_labels(recording, groups, names, by)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for label in np.unique(labels):
        candidates = np.flatnonzero(labels == label)
        # Rounded to the nearest, but never all of a condition.
        number = min(math.floor(share * len(candidates) + 0.5), len(candidates) - 1)
        drawn += rng.permutation(candidates)[:number].tolist()
    # A share too small for any condition still holds out one trial.
    drawn = drawn or rng.permutation(len(names))[:1].tolist()
    return _split(recording, np.isin(groups, drawn))


def split_time(recording: Recording, held_out: float = 0.2, *, gap: int = 0) -> Split:
    """Hold out the end of every trial.

    Args:
        recording: whose trials are long.
        held_out: share of the time bins of each trial, above 0 and below 1; rounded up to whole bins.
        gap: time bins between the two parts that belong to neither, so that slow signals do not reach across.

    Raises:
        ValueError: if a trial is too short for both parts, or the end of one is held out and shown by another.

    Example:
        >>> train, held_out = split_time(Recording(np.zeros((1, 100, 3)), bin_size=0.01), 0.2, gap=5)
        >>> train.data.shape[1], held_out.data.shape[1], held_out.start_times
        (75, 20, array([0.8]))
    """
    share, gap = _checked_share(held_out), check_positive_int("gap", gap, minimum=0)
    lengths = recording.trial_lengths
    ends = np.ceil(share * lengths - 1e-9).astype(np.int64)
    begins = lengths - ends - gap
    if begins.min() < 1:
        trial = int(begins.argmin())
        raise ValueError(
            f"Trial {trial} of {lengths[trial]} time bins is too short to be split: {ends[trial]} to hold out and a "
            f"gap of {gap} leave nothing to train on."
        )
    trials = range(recording.num_trials)
    first = cut_pieces(recording, [(trial, 0, int(begins[trial])) for trial in trials])
    second = cut_pieces(
        recording, [(trial, int(lengths[trial] - ends[trial]), int(lengths[trial])) for trial in trials]
    )
    check_apart(second, first, common_clock=has_common_clock(recording), instead=NO_OVERLAP)
    return Split(first, second)


def cut_windows(recording: Recording, length: int, *, stride: int | None = None) -> Recording:
    """Cut every trial into windows, each a trial of its own.

    Windows keep the name of the trial that they come from and the time at which they begin, so that `split_trials`
    holds all windows of a trial together. What is left over at the end of a trial is dropped. (A fit draws windows of
    its own, with `plr.fit(..., window=...)`; these are for looking at a long recording piece by piece.)

    Args:
        recording: to be cut.
        length: time bins per window.
        stride: time bins from one begin to the next; `length`, so that windows do not overlap, if None.

    Raises:
        ValueError: if no trial is as long as a window.

    Example:
        >>> windows = cut_windows(Recording(np.zeros((1, 100, 3)), bin_size=0.5), 30)
        >>> windows.data.shape, windows.start_times
        ((3, 30, 3), array([ 0., 15., 30.]))
    """
    length = check_positive_int("length", length)
    stride = length if stride is None else check_positive_int("stride", stride)
    places = [
        (trial, start, start + length)
        for trial, end in enumerate(recording.trial_lengths)
        for start in range(0, int(end) - length + 1, stride)
    ]
    if not places:
        raise ValueError(
            f"`length` must be at most the time bins of a trial, {recording.trial_lengths.max()}, got {length}."
        )
    return cut_pieces(recording, places)


def split_features(
    recording: Recording, held_out: float | int | Sequence[int] | Sequence[str] = 0.25, *, seed: int = 0
) -> FeatureSplit:
    """Hold out features (neurons), drawn at random, to be predicted from the others.

    `recording.select(features=split.held_in)` is what an encoder may see, `recording.hide(split.held_out)` what a
    filter may see: all features, those held out missing throughout.

    Args:
        recording: with at least two features.
        held_out: share of the features, above 0 and below 1, their number, or which, by index or name.
        seed: of the draw.

    Raises:
        ValueError: if one side would be empty, or a feature does not exist.

    Example:
        >>> print(split_features(Recording(np.zeros((1, 5, 8))), 2))
        FeatureSplit: 6 features held in, 2 held out
    """
    names = recording.feature_names
    if np.ndim(held_out):
        listed = np.asarray(held_out)
        if listed.dtype.kind in "UO":
            unknown = [str(name) for name in listed if name not in names]
            if unknown:
                raise ValueError(f"`held_out` names features that the recording does not have: {', '.join(unknown)}.")
            listed = places_of("features", listed, names)
        chosen = _checked_indices("features", listed, len(names))
    else:
        number = _checked_number(held_out, len(names))
        if not 0 < number < len(names):
            raise ValueError(f"`held_out` must leave some of {len(names)} features on both sides, got {held_out}.")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(names))[:number])
    held_in = np.setdiff1d(np.arange(len(names)), chosen)
    if not len(held_in):
        raise ValueError(f"`held_out` holds all {len(names)} features: none is left to predict them from.")
    return FeatureSplit(held_in=held_in, held_out=chosen)


NO_OVERLAP = "cut trials that do not overlap, or hold out whole trials with `split_trials`."


def group_labels(
    recording: Recording, groups: NDArray[np.int64], names: NDArray[np.str_], by: ArrayLike | None
) -> NDArray[np.int64]:
    """Return the label of each group of trials as a number, or raise if trials of one group differ.

    Example:
        >>> group_labels(Recording(np.zeros((2, 4, 1))), np.array([0, 1]), np.array(["a", "b"]), ["x", "y"])
        array([0, 1])
    """
    codes = np.zeros(recording.num_trials, dtype=np.int64) if by is None else label_codes("by", by, len(groups))
    labels = codes[np.unique(groups, return_index=True)[1]]
    mixed = groups[codes != labels[groups]]
    if len(mixed):
        raise ValueError(
            f"`by` must give all parts of a trial one label, as trials that share time, and those of "
            f"'{names[mixed[0]]}' differ."
        )
    return labels


def _of_one_group(recording: Recording, name: str) -> str:
    if len(set(recording.trial_names)) > 1:
        return (
            f"Each of the {recording.num_trials} trials overlaps in time with others, so that none can be held out "
            "without the others showing it; cut trials that do not overlap, or hold out the end of the recording "
            "before it is cut (`split_time`). (If `start_times` are not on one clock, make the recording without them.)"
        )
    before = ", before the windows are cut" if recording.num_trials > 1 else ""
    return f"Only whole trials can be held out, and the recording has one, '{name}'; use `split_time`{before}."


def _split(recording: Recording, held_out: NDArray[np.bool_]) -> Split:
    if held_out.all():
        raise ValueError(f"`held_out` holds all {recording.num_trials} trials: none is left to train on.")
    names = np.array(recording.trial_names)
    shared = sorted(set(names[held_out]) & set(names[~held_out]))
    if shared:
        raise ValueError(
            f"`held_out` holds some parts of trial '{shared[0]}' and leaves others to train on: the two would "
            "share data; hold out all of its parts or none."
        )
    split = Split(recording.select(trials=~held_out), recording.select(trials=held_out))
    instead = "hold out both or none."
    check_apart(split.held_out, split.train, common_clock=has_common_clock(recording), instead=instead)
    return split


def cut_pieces(recording: Recording, places: list[tuple[int, int, int]]) -> Recording:
    """Return stretches of trials, each (trial, first bin, end), as trials.

    Example:
        >>> cut_pieces(Recording(np.zeros((2, 9, 3))), [(1, 2, 6)]).data.shape
        (1, 4, 3)
    """
    rows = np.array([trial for trial, _, _ in places])
    starts = np.array([start for _, start, _ in places])
    times = None
    if recording.bin_size is not None:
        origins = np.zeros(recording.num_trials) if recording.start_times is None else recording.start_times
        times = origins[rows] + starts * recording.bin_size
    inputs = recording.inputs
    return Recording.from_trials(
        [recording.data[trial, start:end] for trial, start, end in places],
        None if inputs is None else [inputs[trial, start:end] for trial, start, end in places],
        bin_size=recording.bin_size,
        feature_names=recording.feature_names,
        feature_units=recording.feature_units,
        input_names=recording.input_names,
        trial_names=[recording.trial_names[row] for row in rows],
        conditions=None if recording.conditions is None else recording.conditions[rows],
        start_times=times,
        orientation=recording.orientation,
    )


def _checked_share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"`held_out` must be a share, above 0 and below 1, or a list of which, got {value!r}.")
    return float(value)


def _checked_number(value: object, number: int) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    return max(1, math.floor(_checked_share(value) * number + 0.5))


def _checked_indices(what: str, chosen: object, number: int) -> NDArray[np.int64]:
    indices = np.asarray(chosen)
    if not indices.size or indices.dtype.kind not in "iu" or indices.min() < -number or indices.max() >= number:
        raise ValueError(f"`held_out` must list some of {number} {what} by index, got {indices.tolist()}.")
    return np.unique(indices.astype(np.int64) % number)
