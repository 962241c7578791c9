"""Folds of a recording: every part of it is held out once, the others to train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.data.overlaps import check_apart, has_common_clock, trial_groups
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.splits import NO_OVERLAP, Split, cut_pieces, group_labels, split_trials
from pyro_lowrank.errors import check_positive_int


def trial_folds(
    recording: Recording, folds: int = 5, *, seed: int = 0, by: ArrayLike | None = None
) -> tuple[Split, ...]:
    """Hold out every trial once, in folds drawn at random.

    Trials of one name, such as the windows that `cut_windows` makes of one trial, and trials that overlap in time stay
    in one fold. With `by`, every condition is spread over the folds as evenly as it can be.

    Args:
        recording: with at least two trials.
        folds: number of folds, at most that of the trials.
        seed: of the draw.
        by: one label per trial, `recording.conditions` as a rule; None for a draw from all.

    Raises:
        ValueError: if there are fewer trials than folds, trials of one name or time differ in `by`, or a
            label is missing.

    Example:
        >>> recording = Recording(np.zeros((10, 20, 3)), conditions=np.repeat(["left", "right"], 5))
        >>> folds = trial_folds(recording, 5, by=recording.conditions)
        >>> [sorted(fold.held_out.conditions.tolist()) for fold in folds[:2]]
        [['left', 'right'], ['left', 'right']]
    """
    check_positive_int("folds", folds, minimum=2)
    groups, names = trial_groups(recording)
    if len(names) < folds:
        overlapping = " that do not overlap in time" if len(set(recording.trial_names)) > len(names) else ""
        raise ValueError(
            f"`folds` must be at most the number of trials{overlapping}, {len(names)}, got {folds}; use `time_folds` "
            "for blocks of time of long trials."
        )
    labels = group_labels(recording, groups, names, by)
    rng = np.random.default_rng(seed)
    # Dealt like cards, one condition after the other, so that no fold gets more than one trial more than another.
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    fold_of = np.empty(len(names), dtype=np.int64)
    fold_of[order] = np.arange(len(names)) % folds
    return tuple(split_trials(recording, np.flatnonzero(fold_of[groups] == fold)) for fold in range(folds))


def time_folds(recording: Recording, folds: int = 5, *, gap: int = 0) -> tuple[Split, ...]:
    """Hold out every block of time once: each trial is cut into as many blocks as there are folds.

    What lies before and after a block that is held out are two trials to train on.

    Args:
        recording: whose trials are long.
        folds: number of folds.
        gap: time bins on both sides of a block that are not trained on, so that slow signals do not reach across.

    Raises:
        ValueError: if a trial is too short, or a block that is held out is shown by another trial.

    Example:
        >>> folds = time_folds(Recording(np.zeros((1, 100, 3)), bin_size=0.01), 4, gap=5)
        >>> folds[1].train.trial_lengths, folds[1].held_out.data.shape, folds[1].held_out.start_times
        (array([20, 45]), (1, 25, 3), array([0.25]))
    """
    check_positive_int("folds", folds, minimum=2)
    check_positive_int("gap", gap, minimum=0)
    lengths = recording.trial_lengths
    # An inner block has the others, less a gap, on its two sides; at the ends there must be something left.
    if lengths.min() // folds <= gap:
        raise ValueError(
            f"A trial of {lengths.min()} time bins cannot be cut into folds={folds} blocks that are longer than "
            f"gap={gap}."
        )
    edges = [np.arange(folds + 1) * int(length) // folds for length in lengths]
    splits = []
    for fold in range(folds):
        train, held_out = [], []
        for trial, edge in enumerate(edges):
            begin, end = int(edge[fold]), int(edge[fold + 1])
            held_out.append((trial, begin, end))
            around = [(trial, 0, begin - gap), (trial, end + gap, int(edge[-1]))]
            train += [piece for piece in around if piece[2] > piece[1]]
        split = Split(cut_pieces(recording, train), cut_pieces(recording, held_out))
        check_apart(split.held_out, split.train, common_clock=has_common_clock(recording), instead=NO_OVERLAP)
        splits.append(split)
    return tuple(splits)
