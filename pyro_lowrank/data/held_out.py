"""What is held out of a fit: a random share of the trials, or the end of a single recording."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.draws import draw_trials
from pyro_lowrank.data.overlaps import apart_from, trial_groups
from pyro_lowrank.data.recording import Recording


class HeldOut(NamedTuple):
    """Places along the trials, or along the time bins of a single one.

    Attributes:
        dim: 0 for trials, 1 for time bins.
        train: what is trained on.
        held_out: what is not; empty if all is trained on.
        sentence: says so.
    """

    dim: int
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    sentence: str


def held_out(num_trials: int, num_bins: int, share: float, recording: Recording | None = None) -> HeldOut:
    """Return what is held out; always the same of a recording, so that fits with other seeds compare.

    Args:
        num_trials: of the recording.
        num_bins: of the recording.
        share: of the trials, or of the time bins of a single one.
        recording: whose conditions, names and times are looked at, or None where there are none.

    Raises:
        ValueError: if the share is none, or nothing would be left to train on.
    """
    if not 0 <= share < 1:
        raise ValueError(f"What is held out is a share, at least 0 and below 1, got {share}.")
    dim, what, size = (1, "time bins", num_bins) if num_trials == 1 else (0, "trials", num_trials)
    number = min(math.ceil(share * size), size - 1)
    if number == 0:
        nothing = np.empty(0, dtype=np.int64)
        return HeldOut(dim, np.arange(size), nothing, f"Training on all {size} {what}; nothing is held out.")
    shares_data = recording is not None and len(trial_groups(recording)[1]) < num_trials
    if dim == 0 and not shares_data:
        return _drawn(size, number, None if recording is None else recording.conditions)
    # Of trials that overlap in time the last ones: around trials drawn at random hardly any would be left.
    mask = np.arange(size) >= size - number
    sentence = f"Training on the first {size - number} {what}; the last {number} are held out."
    if dim == 1 or recording is None:
        return HeldOut(dim, np.flatnonzero(~mask), np.flatnonzero(mask), sentence)
    apart = apart_from(recording, mask)
    if not len(apart):
        raise ValueError(
            f"All {size - number} trials to train on share time with the last {number}, which are held out: cut trials "
            "that do not overlap, or hold nothing out."
        )
    if len(apart) < size - number:
        sentence += f"\n{size - number - len(apart)} trials share time with these, and are left out of the training."
    return HeldOut(dim, apart, np.flatnonzero(mask), sentence)


def _drawn(size: int, number: int, conditions: NDArray[np.generic] | None) -> HeldOut:
    mask = draw_trials(size, number, conditions)
    kinds = 0 if conditions is None else len(set(conditions.tolist()))
    of_each = f" from {kinds} conditions alike" if kinds > 1 else ""
    sentence = f"Training on {size - number} trials; {number} others, drawn at random{of_each}, are held out."
    return HeldOut(0, np.flatnonzero(~mask), np.flatnonzero(mask), sentence)
