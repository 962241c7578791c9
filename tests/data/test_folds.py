"""Folds hold out everything once, and share nothing with what is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.data import Recording, cut_windows, time_folds, trial_folds


def numbered(trials: int = 7, time: int = 20) -> Recording:
    """A recording whose entries are all different."""
    return Recording(np.arange(trials * time * 2, dtype=float).reshape(trials, time, 2), bin_size=0.1)


def entries(recording: Recording) -> list[float]:
    """Every recorded entry, in order of size."""
    return sorted(recording.data[recording.mask].tolist())


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_trials_are_held_out_once_and_never_trained_on_then(folds: int) -> None:
    recording = numbered()
    found = trial_folds(recording, folds)
    assert sorted(name for fold in found for name in fold.held_out.trial_names) == sorted(recording.trial_names)
    for fold in found:
        assert entries(recording) == sorted(entries(fold.train) + entries(fold.held_out))
        assert fold.held_out.num_trials in (7 // folds, 7 // folds + 1)


def test_windows_of_a_trial_stay_together_and_conditions_are_spread() -> None:
    windows = cut_windows(numbered(), 5)
    for fold in trial_folds(windows, 3):
        assert not set(fold.train.trial_names) & set(fold.held_out.trial_names)
    recording = Recording(np.zeros((9, 4, 2)), conditions=np.repeat([0, 1, 2], 3))
    for fold in trial_folds(recording, 3, by=recording.conditions):
        assert fold.held_out.conditions is not None
        assert sorted(fold.held_out.conditions.tolist()) == [0, 1, 2]


def test_the_draw_is_that_of_the_seed() -> None:
    first, again, other = (trial_folds(numbered(), 2, seed=seed)[0].held_out.trial_names for seed in (0, 0, 3))
    assert first == again != other


@pytest.mark.parametrize("gap", [0, 3])
def test_blocks_of_time_are_held_out_once_with_a_gap_around_them(gap: int) -> None:
    recording = numbered(trials=2, time=43)
    found = time_folds(recording, 4, gap=gap)
    assert sorted(entry for fold in found for entry in entries(fold.held_out)) == entries(recording)
    for number, fold in enumerate(found):
        assert not set(entries(fold.train)) & set(entries(fold.held_out))
        sides = 1 if number in (0, 3) else 2
        assert len(entries(fold.train)) + len(entries(fold.held_out)) == 2 * 2 * (43 - sides * gap)
        assert fold.held_out.start_times is not None
        assert fold.held_out.start_times.tolist() == pytest.approx([0.1 * (number * 43 // 4)] * 2)


def test_too_few_trials_or_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most the number of trials, 7, got 8; use `time_folds`"):
        trial_folds(numbered(), 8)
    with pytest.raises(ValueError, match="7 trials, got"):
        trial_folds(numbered(), 2, by=[0, 1])
    with pytest.raises(ValueError, match="those of 'trial_0' differ"):
        trial_folds(cut_windows(numbered(), 10), 2, by=np.arange(14))
    with pytest.raises(ValueError, match="cannot be cut into folds=4 blocks that are longer than gap=5"):
        time_folds(numbered(), 4, gap=5)
