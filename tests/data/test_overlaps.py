"""What is held out and what is trained on share no time, no name and no data; a missing label is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import (
    Recording,
    bin_spikes,
    cut_windows,
    from_xarray,
    split_features,
    split_time,
    split_trials,
    time_folds,
    trial_folds,
)
from pyro_lowrank.data.overlaps import trial_groups
from tests.data.builders import random_spikes


def epochs(starts: Any, length: int = 20, **options: Any) -> Recording:
    """Epochs of one signal, 0.1 s per bin, in which every bin has the number of its time."""
    starts = np.asarray(starts, dtype=float)
    data = np.round(starts[:, None] / 0.1) + np.arange(length)
    return Recording(data[..., None], bin_size=0.1, start_times=starts, **options)


def entries(recording: Recording) -> set[float]:
    """All bins of a recording of `epochs`."""
    return set(recording.data[recording.mask].tolist())


def test_epochs_that_overlap_all_along_cannot_be_split() -> None:
    # 2 s every 0.5 s: each shares time with the next.
    recording = epochs(0.5 * np.arange(39))
    with pytest.raises(ValueError, match=r"Each of the 39 trials overlaps in time with others, .* \(`split_time`\)"):
        split_trials(recording, 0.2)
    with pytest.raises(ValueError, match="number of trials that do not overlap in time, 1, got 5"):
        trial_folds(recording, 5)
    with pytest.raises(
        ValueError, match=r"share time, in 3 pairs .* 'trial_38' \(19 to 21 s\) and 'trial_35' \(17.5 t"
    ):
        split_trials(recording, [38])


def test_what_overlaps_stays_together() -> None:
    recording = epochs(np.concatenate([[10.0 * k, 10.0 * k + 1.5] for k in range(12)])[np.r_[5:24, 0:5]])
    for seed in range(10):
        train, held_out = split_trials(recording, 0.3, seed=seed)
        assert not entries(train) & entries(held_out)
        assert held_out.num_trials == 8
    for fold in trial_folds(recording, 4):
        assert not entries(fold.train) & entries(fold.held_out)
    labels = np.round(recording.start_times) // 10 % 2 if recording.start_times is not None else None
    train, held_out = split_trials(recording, 0.5, by=labels)
    assert held_out.num_trials == 12
    with pytest.raises(ValueError, match="one label, as trials that share time, and those of 'trial_.*' differ"):
        split_trials(recording, by=np.arange(24))


@pytest.mark.parametrize("split", [lambda r: split_time(r, 0.2), lambda r: time_folds(r, 4)])
def test_time_that_is_held_out_of_one_trial_is_not_shown_by_another(split: Any) -> None:
    with pytest.raises(ValueError, match="share time, in .* cut trials that do not overlap"):
        split(epochs([0.0, 1.5, 9.0]))
    with pytest.raises(ValueError, match="share time"):
        split(cut_windows(epochs([0.0, 40.0], length=60), 20, stride=10))
    split(epochs([0.0, 2.0, 4.0]))
    split(cut_windows(epochs([0.0, 40.0], length=60), 20))


def test_trials_that_touch_or_have_clocks_of_their_own_do_not_overlap() -> None:
    for starts in (2.0 * np.arange(6), 2.0 * np.arange(6) + 1e9, np.zeros(6), np.full(6, np.nan)):
        assert len(trial_groups(epochs(np.nan_to_num(starts)))[1]) == 6
    # Bins of a tenth of a millisecond, on a clock whose steps are a quarter of a microsecond.
    since_1970 = Recording(np.zeros((1, 5003, 1)), bin_size=1e-4, start_times=[1.7e9 + 0.123])
    for fold in time_folds(since_1970, 7):
        assert fold.train.trial_lengths.sum() + fold.held_out.trial_lengths.sum() == 5003
    split_time(since_1970, 0.37)
    pieces = cut_windows(since_1970, 10)
    named = Recording(pieces.data, bin_size=1e-4, start_times=pieces.start_times)
    assert len(trial_groups(named)[1]) == 500
    loose = Recording(np.zeros((4, 60, 1)), bin_size=0.1)
    assert len(trial_groups(cut_windows(loose, 20, stride=10))[1]) == 4
    assert split_trials(cut_windows(loose, 20), 0.25).held_out.num_trials == 3
    # Long trials hide what comes after the next one.
    ragged = bin_spikes(
        random_spikes(2, 100.0), bin_size=0.1, epochs=[(0, 50), (1, 2), (40, 45), (49, 60), (70, 80), (85, 90)]
    )
    assert trial_groups(ragged)[0].tolist() == [0, 0, 0, 0, 1, 2]


# --- names and labels ------------------------------------------------------------------------------------------------


def test_a_name_that_several_have_chooses_all_of_them() -> None:
    recording = Recording(
        np.arange(24.0).reshape(2, 3, 4), feature_names=("C3", "Other", "Other", "Other"), trial_names=("a", "a")
    )
    assert recording.hide(["Other"]).mask.all((0, 1)).tolist() == [True, False, False, False]
    assert recording.select(features=["Other", "C3"]).data[0, 0].tolist() == [1, 2, 3, 0]
    assert recording.select(trials=["a"]).num_trials == 2  # type: ignore[list-item]
    assert split_features(recording, ["Other"]).held_out.tolist() == [1, 2, 3]
    # The names of a recording choose each of its features once, whatever order they are asked for in.
    assert recording.select(features=recording.feature_names[::-1]).data[0, 0].tolist() == [1, 2, 3, 0]
    with pytest.raises(ValueError, match=r"There are no features \['Oz'\]"):
        recording.hide(["Oz"])


@pytest.mark.parametrize("missing", [None, float("nan"), np.datetime64("NaT")])
def test_a_label_that_is_missing_is_told(missing: Any) -> None:
    labels = ["left", "right", missing, "left", "right", "left"]
    recording = Recording(np.zeros((6, 5, 2)), conditions=labels)
    assert "conditions      2, 1 trials have none" in str(recording)
    for split in (split_trials, trial_folds):
        with pytest.raises(
            ValueError, match="`by` must have a label for every trial, and 1 of 6 .* the first is trial 2"
        ):
            split(recording, by=recording.conditions)
    kept = recording.select(trials=[0, 1, 3, 4, 5])
    assert split_trials(kept, 0.4, by=kept.conditions).held_out.num_trials == 2


def test_labels_of_any_kind() -> None:
    data = np.zeros((4, 5, 2))
    for labels in ([1, 2, 1, 2], [1.5, 2.5, 1.5, 2.5], ["b", 3, "b", 3], [(1, 2), (0, 1), (1, 2), (0, 1)]):
        each = np.empty(4, dtype=object)
        each[:] = labels
        assert "conditions      2" in str(Recording(data, conditions=each))
        train, held_out = split_trials(Recording(data), 0.5, by=each)
        assert (train.num_trials, held_out.num_trials) == (2, 2)
    unlabelled = Recording(data, conditions=[None] * 4)
    assert "conditions      0, 4 trials have none" in str(unlabelled)


def test_a_trial_of_an_xarray_without_a_label_has_none() -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    labels = np.array(["left", None, "right", "left"], dtype=object)
    array = xarray.DataArray(np.zeros((4, 5, 2)), dims=("trial", "time", "unit"), coords={"trial": labels})
    recording = from_xarray(array)
    assert recording.conditions is not None
    assert recording.conditions.tolist() == ["left", None, "right", "left"]
    recording = from_xarray(array.assign_coords(trial=[1.0, np.nan, 2.0, 1.0]))
    with pytest.raises(
        ValueError, match="`by` must have a label for every trial, and 1 of 4 have none, the first is tr"
    ):
        split_trials(recording, by=recording.conditions)
