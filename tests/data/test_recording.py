"""A recording holds together what belongs together, and refuses what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import Recording

RNG = np.random.default_rng(0)
NAN = float("nan")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ragged_trials_are_padded_with_nan_and_come_back(dtype: type[np.floating]) -> None:
    trials = [RNG.normal(size=(n, 3)).astype(dtype) for n in (5, 9, 1)]
    inputs = [RNG.normal(size=(n, 2)).astype(dtype) for n in (5, 9, 1)]
    recording = Recording.from_trials(trials, inputs, bin_size=0.1)
    assert recording.data.dtype == dtype
    assert recording.data.shape == (3, 9, 3)
    assert recording.trial_lengths.tolist() == [5, 9, 1]
    assert recording.mask.sum((1, 2)).tolist() == [15, 27, 3]
    assert recording.inputs is not None
    assert not recording.inputs[0, 5:].any(), "inputs cannot be missing: they are padded with zeros"
    for one, other in zip(recording.trials(), trials, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_selection_takes_along_all_that_belongs_to_it() -> None:
    recording = Recording.from_trials(
        [RNG.normal(size=(n, 3)) for n in (5, 9, 7)],
        [RNG.normal(size=(n, 1)) for n in (5, 9, 7)],
        feature_names=["a", "b", "c"],
        feature_units=["V", "T", "V"],
        trial_names=["one", "two", "three"],
        conditions=[4, 5, 6],
        start_times=[0.0, 1.0, 2.0],
    )
    chosen = recording.select(trials=[2, 0], features=["c", "a"])
    assert chosen.data.shape == (2, 7, 2), "padding that no trial needs is cut off"
    np.testing.assert_array_equal(chosen.trials()[0], recording.trials()[2][:, [2, 0]])
    assert chosen.feature_names == ("c", "a")
    assert chosen.trial_names == ("three", "one")
    assert chosen.conditions is not None
    assert chosen.conditions.tolist() == [6, 4]
    assert chosen.start_times is not None
    assert chosen.start_times.tolist() == [2.0, 0.0]
    assert chosen.inputs is not None
    assert recording.inputs is not None
    np.testing.assert_array_equal(chosen.inputs[0], recording.inputs[2, :7])
    np.testing.assert_array_equal(recording.select(trials=np.array([False, True, False])).data[0], recording.data[1])
    hidden = recording.hide(["b"])
    assert not hidden.mask[..., 1].any()
    np.testing.assert_array_equal(hidden.data[..., [0, 2]], recording.data[..., [0, 2]])
    assert recording.mask[..., 1].any(), "the recording itself is left as it was"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"features": ["d"]}, r"There are no features \['d'\]; the recording has feature_0, feature_1"),
        ({"features": [7]}, "`features` must be indices below 3, got 7 to 7"),
        ({"features": []}, "No features are left"),
        ({"trials": np.array([True])}, r"A mask of trials must have 2 entries, got \(1,\)"),
        ({"trials": slice(5, 9)}, "No trials are left"),
    ],
)
def test_a_selection_that_cannot_be_made(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recording(np.zeros((2, 5, 3))).select(**choice)


Y = np.zeros((2, 5, 3))


@pytest.mark.parametrize(
    ("data", "inputs", "options", "message"),
    [
        (Y[0], None, {}, r"must be trials x time x features, none of them empty, got \(5, 3\); .* pass data\[None\]"),
        (Y[:0], None, {}, "none of them empty"),
        (np.full_like(Y, np.inf), None, {}, "30 infinite entries, the first at trial 0, time 0, feature 0"),
        (Y, np.full((2, 5, 1), NAN), {}, "`inputs` hold 10 NaN, the first at trial 0, time 0, input 0: .* fill them"),
        (Y, np.zeros((2, 4, 1)), {}, r"must have the trials and time bins of the data, \(2, 5\), got \(2, 4, 1\)"),
        (Y, None, {"bin_size": -1.0}, "`bin_size` must be finite and above zero"),
        (Y, None, {"feature_names": ("a",)}, "`feature_names` must hold 3 names, got 1: a"),
        (Y, None, {"conditions": [1, 2, 3]}, r"`conditions` must have one entry for each of 2 trials, got \(3,\)"),
        (Y, None, {"trial_lengths": [5, 6]}, "from 1 to 5 time bins, got"),
        (Y, None, {"trial_lengths": [5, 4]}, "`data` must be NaN beyond `trial_lengths`"),
    ],
)
def test_parts_that_do_not_fit(data: Any, inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recording(data, inputs, **options)


@pytest.mark.parametrize(
    ("trials", "inputs", "message"),
    [
        ([], None, "`trials` is empty: a recording needs at least one trial"),
        ([np.zeros((5, 3)), np.zeros((5, 2))], None, r"number 1 has the shape \(5, 2\), number 0 \(5, 3\)"),
        ([np.zeros((5, 3)), np.zeros((0, 3))], None, r"number 1 has the shape \(0, 3\)"),
        ([np.zeros((5, 3))], [np.zeros((4, 1))], r"must have the trials and time bins of the data, \[5\], got \[4\]"),
        ([np.zeros((5, 3))], [np.full((5, 1), NAN)], "`inputs` of trial 0 hold NaN: inputs cannot be missing"),
    ],
)
def test_trials_that_do_not_fit(trials: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recording.from_trials(trials, inputs)


def test_numbers_only() -> None:
    with pytest.raises(TypeError, match="`data` must hold real numbers, got an array of dtype complex128"):
        Recording(np.zeros((1, 2, 3), dtype=complex))
    with pytest.raises(ValueError, match="The bin size of this recording is not known"):
        _ = Recording(Y).times


def test_it_tells_what_it_is() -> None:
    recording = Recording.from_trials([np.zeros((5, 3)), np.full((9, 3), NAN)], bin_size=0.02, conditions=["a", "b"])
    assert str(recording).splitlines() == [
        "Recording: 2 trials x 5 to 9 time bins (0.02 s) x 3 features",
        "  duration        0.1 to 0.18 s per trial",
        "  conditions      2: a (1), b (1)",
        "  missing         27 of 42 entries (64.3%)",
    ]


def test_it_tells_names_units_and_rates_and_no_arrays() -> None:
    counts = np.zeros((2, 10, 3))
    counts[:, ::2, 1] = 1.0
    counts[:, :, 2] = 2.0
    recording = Recording(
        counts, np.ones((2, 10, 1)), bin_size=0.1, feature_names=("a", "b", "c"), feature_units=("counts",) * 3
    )
    assert repr(recording).splitlines() == [
        "Recording: 2 trials x 10 time bins (0.1 s) x 3 features",
        "  duration        1 s per trial",
        "  features        a, b, c (counts)",
        "  inputs          input_0",
        "  rates           5 Hz in the median, from 0 to 20; 1 feature silent",
    ]
    plain = str(Recording(np.zeros((1, 4, 30))))
    assert plain == "Recording: 1 trial x 4 time bins x 30 features"
    assert "n0, n1, n2, n3, n4, n5, n6, n7, ... (30 in all)" in str(
        Recording(np.zeros((1, 4, 30)), feature_names=tuple(f"n{index}" for index in range(30)))
    )


@pytest.mark.parametrize("times", [[0.0, np.nan], [np.inf, 0.0], ["0", "1"]])
def test_times_that_are_no_numbers_are_refused(times: Any) -> None:
    with pytest.raises(ValueError, match="`start_times` must be finite numbers, in seconds"):
        Recording(np.zeros((2, 5, 1)), bin_size=0.1, start_times=times)


def test_a_selection_by_fractions_is_refused() -> None:
    with pytest.raises(ValueError, match="`trials` must be indices, a mask or names, got an array of dtype float64"):
        Recording(np.zeros((2, 5, 1))).select(trials=[0.0, 1.0])  # type: ignore[list-item]
