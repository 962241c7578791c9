"""What is held out shares nothing with what is trained on, and the draw depends on the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_lowrank.data import Recording, cut_windows, split_features, split_time, split_trials


def numbered(*lengths: int, features: int = 2, **options: Any) -> Recording:
    """A recording in which every time bin holds a number of its own, and so do its inputs."""
    ends = np.cumsum(lengths)
    bins = [np.arange(end - n, end, dtype=float)[:, None] for end, n in zip(ends, lengths, strict=True)]
    return Recording.from_trials([b.repeat(features, 1) for b in bins], bins, bin_size=0.5, **options)


def bins_of(recording: Recording) -> list[int]:
    """The numbers of the time bins that it holds; data and inputs must agree on them."""
    assert recording.inputs is not None
    for trial, inputs in zip(recording.trials(), recording.inputs, strict=True):
        np.testing.assert_array_equal(trial[:, 0], inputs[: len(trial), 0])
    return [int(value) for trial in recording.trials() for value in trial[:, 0]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=20),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_every_trial_is_on_one_side(lengths: list[int], share: float, seed: int) -> None:
    recording = numbered(*lengths)
    train, held_out = split_trials(recording, share, seed=seed)
    assert sorted(bins_of(train) + bins_of(held_out)) == list(range(sum(lengths)))
    assert not set(train.trial_names) & set(held_out.trial_names)
    wanted = share * len(lengths)
    assert abs(held_out.num_trials - min(max(wanted, 1), len(lengths) - 1)) <= 0.5
    assert split_trials(recording, share, seed=seed).held_out.trial_names == held_out.trial_names


def test_a_split_by_condition_holds_out_the_same_share_of_each() -> None:
    labels = np.repeat(["a", "b", "c"], [20, 10, 5])
    recording = numbered(*[2] * 35, conditions=labels)
    train, held_out = split_trials(recording, 0.2, by=recording.conditions)
    assert held_out.conditions is not None
    assert np.unique(held_out.conditions, return_counts=True)[1].tolist() == [4, 2, 1]
    assert train.num_trials == 28
    other = split_trials(recording, 0.2, by=recording.conditions, seed=1)
    assert other.held_out.trial_names != held_out.trial_names


def test_windows_of_a_trial_stay_on_one_side() -> None:
    windows = cut_windows(numbered(20, 31, 25, 40), 10, stride=5)
    for seed in range(5):
        train, held_out = split_trials(windows, 0.3, seed=seed)
        assert not set(bins_of(train)) & set(bins_of(held_out)), "windows that overlap would leak"
    with pytest.raises(ValueError, match="holds some parts of trial 'trial_0' and leaves others to train on"):
        split_trials(windows, [0])
    with pytest.raises(ValueError, match="the recording has one, 'trial_0'; use `split_time`, before the windows"):
        split_trials(cut_windows(numbered(40), 10))


def test_windows_lie_where_they_say() -> None:
    recording = numbered(20, 7, 31, conditions=[0, 1, 2], start_times=[100.0, 200.0, 300.0])
    windows = cut_windows(recording, 10)
    assert windows.data.shape == (5, 10, 2)
    assert windows.data[:, 0, 0].tolist() == [0, 10, 27, 37, 47]
    assert windows.start_times is not None
    assert windows.start_times.tolist() == [100, 105, 300, 305, 310]
    assert windows.trial_names == ("trial_0", "trial_0", "trial_2", "trial_2", "trial_2")
    assert windows.conditions is not None
    assert windows.conditions.tolist() == [0, 0, 2, 2, 2]
    assert len(cut_windows(recording, 10, stride=1).data) == 11 + 22
    with pytest.raises(ValueError, match="`length` must be at most the time bins of a trial, 31, got 32"):
        cut_windows(recording, 32)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(12, 40), min_size=1, max_size=4),
    share=st.floats(0.05, 0.5),
    gap=st.integers(0, 4),
)
def test_a_gap_lies_between_the_parts_of_a_trial(lengths: list[int], share: float, gap: int) -> None:
    train, held_out = split_time(numbered(*lengths), share, gap=gap)
    for one, two, length in zip(train.trials(), held_out.trials(), lengths, strict=True):
        assert two[0, 0] - one[-1, 0] == gap + 1
        assert len(one) + gap + len(two) == length
        assert share * length - 1e-6 <= len(two) < share * length + 1
    assert held_out.start_times is not None
    np.testing.assert_array_equal(held_out.start_times, 0.5 * (train.trial_lengths + gap))
    bins_of(held_out)


def test_features_are_held_in_or_out() -> None:
    recording = numbered(5, features=8, feature_names=list("abcdefgh"))
    for chosen, number in ((0.25, 2), (3, 3), (["b", "h"], 2), ([1, -1], 2)):
        split = split_features(recording, chosen)
        assert len(split.held_out) == number
        assert sorted([*split.held_in, *split.held_out]) == list(range(8))
    assert split.held_out.tolist() == split_features(recording, ["h", "b"]).held_out.tolist() == [1, 7]
    assert recording.select(features=split.held_in).feature_names == tuple("acdefg")
    assert recording.hide(split.held_out).mask.sum() == 30
    draws = {tuple(split_features(recording, 3, seed=seed).held_out) for seed in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            lambda r: split_trials(r, 1.0),
            "`held_out` must be a share, above 0 and below 1, or a list of which, got 1.0",
        ),
        (lambda r: split_trials(r, [0, 1, 2]), "holds all 3 trials: none is left to train on"),
        (lambda r: split_trials(r, [3]), r"must list some of 3 trials by index, got \[3\]"),
        (lambda r: split_trials(r, by=[1, 2]), r"`by` must have one label for each of 3 trials, got \(2,\)"),
        (lambda r: split_trials(r.select(trials=[0])), "Only whole trials can be held out, .* use `split_time`"),
        (lambda r: split_time(r, 0.5, gap=8), "Trial 0 of 12 time bins is too short to be split: 6 to hold out"),
        (lambda r: split_time(r, 2), "must be a share"),
        (lambda r: split_features(r, 2), "must leave some of 2 features on both sides, got 2"),
        (lambda r: split_features(r, ["z"]), "names features that the recording does not have: z"),
        (lambda r: split_features(r, [0, 1]), "holds all 2 features"),
        (lambda r: cut_windows(r, 0), "`length` must be at least 1"),
    ],
)
def test_what_cannot_be_split(split: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(numbered(12, 15, 20))
