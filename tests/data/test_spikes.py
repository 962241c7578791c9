"""Spikes are counted in the bins that they stand in, and a mix-up of units, clocks or names is answered."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pyro_lowrank as plr
from pyro_lowrank.data import Recording, bin_spikes, rebin
from tests.data.builders import random_spikes

CLOCK = 30_000


def quiet(*args: Any, **options: Any) -> Recording:
    """Bin without the warning of absurd rates, which a few spikes bring about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bin_spikes(*args, **options)


# --- counts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data(), offset=st.sampled_from([0, 7, 4397 * CLOCK, 1_700_000_000 * CLOCK]))
def test_counts_are_those_of_the_histogram_of_clock_ticks(data: st.DataObject, offset: int) -> None:
    # The oracle counts integers, in which an edge is an edge; the library sees the same in seconds.
    width = data.draw(st.integers(1, 900), "ticks per bin")
    bounds = st.tuples(st.integers(0, 4000), st.integers(width, 4000))
    ticks = [(offset + s, offset + s + d) for s, d in data.draw(st.lists(bounds, min_size=1, max_size=4), "epochs")]
    on_edges = st.builds(lambda k: k * width, st.integers(-2, 8000 // width))
    spike = st.one_of(
        st.integers(-50, 8100),
        on_edges,
        st.builds(lambda e, k: e[0] - offset + k * width, st.sampled_from(ticks), st.integers(0, 20)),
    )
    units = data.draw(st.lists(st.lists(spike, max_size=40), min_size=1, max_size=3), "spikes")
    units[0].append(ticks[0][0] - offset)
    recording = quiet(
        [(np.array(unit) + offset) / CLOCK for unit in units],
        bin_size=width / CLOCK,
        epochs=np.array(ticks) / CLOCK,
    )
    for trial, (start, stop) in enumerate(ticks):
        length = (stop - start) // width
        assert recording.trial_lengths[trial] == length
        edges = start + width * np.arange(length + 1)
        for unit, spikes in enumerate(units):
            inside = np.array([s + offset for s in spikes if s + offset < edges[-1]])
            expected = np.histogram(inside, edges)[0]
            np.testing.assert_array_equal(recording.data[trial, :length, unit], expected)
        assert np.isnan(recording.data[trial, length:]).all()


@settings(max_examples=50, deadline=None)
@given(
    spikes=st.lists(st.floats(-1, 11, allow_subnormal=False), min_size=1, max_size=60),
    bin_size=st.floats(0.01, 3),
)
def test_counts_are_those_of_the_histogram_of_seconds(spikes: list[float], bin_size: float) -> None:
    edges = bin_size * np.arange(int(10 / bin_size) + 1)
    away = [s for s in [*spikes, bin_size / 3] if np.abs(s - edges).min() > 1e-9]
    recording = quiet([away], bin_size=bin_size, epochs=(0, edges[-1]))
    inside = [s for s in away if s < edges[-1]]
    np.testing.assert_array_equal(recording.data[0, :, 0], np.histogram(inside, edges)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_spike_on_an_edge_opens_its_bin(dtype: type[np.floating]) -> None:
    # 0.3 / 0.1 and 0.7 / 0.1 fall short of 3 and 7 in binary; as float32, 0.7 lies below 0.7.
    spikes = np.array([0.0, 0.1, 0.3, 0.6, 0.7, 1.0], dtype=dtype)
    recording = bin_spikes([spikes], bin_size=0.1, epochs=(0, 1))
    np.testing.assert_array_equal(recording.data[0, :, 0], [1, 1, 0, 1, 0, 0, 1, 1, 0, 0])
    touching = bin_spikes([spikes], bin_size=0.1, epochs=[(0, 0.3), (0.3, 0.7), (0.7, 1.1)])
    assert np.nansum(touching.data) == 6, "half-open epochs that touch count each spike once"
    assert touching.trial_lengths.tolist() == [3, 4, 4]


def test_forms_of_spike_times_agree() -> None:
    trains = random_spikes(3, 5.0)
    flat, owner = np.concatenate(trains), np.repeat([11, 5, 8], [len(train) for train in trains])
    order = np.random.default_rng(1).permutation(len(flat))
    options: dict[str, Any] = {"bin_size": 0.02, "epochs": [(0.0, 2.0), (2.5, 5.0)]}
    expected = bin_spikes(trains, ["11", "5", "8"], **options)
    for recording in (
        bin_spikes({11: trains[0], 5: trains[1], 8: trains[2]}, **options),
        bin_spikes(flat, owner, unit_ids=[11, 5, 8], **options),
        bin_spikes(flat[order], owner[order], unit_ids=[11, 5, 8], **options),
        bin_spikes(list(flat), list(owner), unit_ids=[11, 5, 8], **options),
        bin_spikes([train[::-1] for train in trains], [11, 5, 8], **options),
    ):
        np.testing.assert_array_equal(recording.data, expected.data)
        assert recording.feature_names == ("11", "5", "8")
    assert bin_spikes(flat, owner, **options).feature_names == ("5", "8", "11"), "sorted as numbers"


def test_epochs_become_trials_with_names_conditions_and_times() -> None:
    recording = bin_spikes(
        random_spikes(2, 10.0),
        bin_size=0.1,
        epochs=[(1.0, 2.07), (4.0, 6.0)],
        conditions=["left", "right"],
        trial_names=["one", "two"],
        inputs=[np.ones((10, 1)), np.zeros((20, 1))],
        input_names=["cue"],
    )
    assert recording.trial_lengths.tolist() == [10, 20], "the part of a bin that is left over is dropped"
    assert recording.start_times is not None
    assert recording.start_times.tolist() == [1.0, 4.0]
    assert recording.conditions is not None
    assert recording.conditions.tolist() == ["left", "right"]
    assert recording.trial_names == ("one", "two")
    assert recording.bin_size == 0.1
    assert recording.data.dtype == np.float32
    assert recording.inputs is not None
    assert recording.inputs.shape == (2, 20, 1)
    assert not recording.inputs[0, 10:].any()
    assert "Spikes of 2 units in 2 epochs; " in recording.orientation
    assert recording.times[:2] == pytest.approx([0.05, 0.15])


def test_silent_units_are_kept() -> None:
    recording = bin_spikes(np.array([0.5, 0.6]), np.array([2, 2]), bin_size=0.1, epochs=(0, 1), unit_ids=[1, 2, 3])
    assert recording.data.sum((0, 1)).tolist() == [0, 2, 0]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.1, 0.2],), {}, "pass `units`, the unit of each spike; for a single unit pass"),
        (([0.1, 0.2], [1]), {}, r"`units` must tell the unit of each spike, 2 of them, got an array of shape \(1,\)"),
        (([0.1, 0.2], [1, 7]), {"unit_ids": [1, 2]}, "hold 1 id that are not in `unit_ids`, such as 7"),
        (([0.1, 0.2], [1.0, np.nan]), {}, "and 1 of 2 have none, the first is spike 1; leave these out"),
        (([0.1, 0.2], ["1", "1"]), {"unit_ids": [1]}, "such as '1'; `unit_ids` has 1, such as 1"),
        (([[0.1], [0.2]], ["a"]), {}, "`units` must name 2 units, one per array of spike times, got 1"),
        (([[0.1, np.nan]],), {}, "Spike times of unit unit_0 must be finite, got nan at index 1"),
        (([],), {}, "hold no unit|pass `units`"),
        (([[0.1]],), {"epochs": np.empty((0, 2))}, "a session without trials holds nothing to fit"),
        (([[0.1]],), {"epochs": [(0, 1), (2, 1)]}, "1 do not, the first is epoch 1, from 2 to 1"),
        (([[0.1]],), {"epochs": [(0, np.nan)]}, "must each end after they begin, both finite"),
        (([[0.1]],), {"epochs": [0, 1, 2]}, r"epochs x 2, got the shape \(3,\)"),
        (([[0.1]],), {"epochs": [(0, 1), (1, 1.05)]}, "the first is epoch 1, 0.05 s long. Are `bin_size` and `epochs`"),
        (([[0.1]],), {"bin_size": 20}, "at least one bin of 20 s"),
        (([[0.1]],), {"bin_size": 0.0}, "`bin_size` must be finite and above zero"),
        (([[5.0, 6.0]],), {}, "None of the 2 spikes, from 5 to 6 s, falls into an epoch; the epochs reach from 0 to 1"),
        (([[0.1]],), {"epochs": (0, 1e10), "bin_size": 1e-3}, r"The counts would take \d+ GiB: .* both in seconds\?"),
    ],
)
def test_what_cannot_be_binned(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bin_spikes(*arguments, **{"bin_size": 0.1, "epochs": (0, 1), **options})


def test_spike_times_must_be_numbers() -> None:
    with pytest.raises(TypeError, match="Spike times of unit unit_0 must be a list of numbers, in seconds, got <U"):
        bin_spikes([["a"]], bin_size=0.1, epochs=(0, 1))


@pytest.mark.parametrize(
    ("spikes", "epochs", "bin_size"),
    [(1e3, 1.0, 0.02), (1e3, 1e3, 0.02), (1.0, 1e3, 20.0), (1.0, 1.0, 20.0), (1e-3, 1e-3, 2e-5)],
    ids=["spikes in ms", "spikes and epochs in ms", "epochs and bins in ms", "bins in ms", "kiloseconds"],
)
def test_milliseconds_by_mistake_are_told_with_the_numbers(spikes: float, epochs: float, bin_size: float) -> None:
    trains = [spikes * train for train in random_spikes(5, 100.0)]
    with pytest.warns(UserWarning, match=r"has \d+ spikes in \d+ bins of .* per second and .* per bin. .* millisec"):
        bin_spikes(trains, bin_size=bin_size, epochs=(0.0, 100.0 * epochs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bin_spikes(random_spikes(5, 100.0), bin_size=0.02, epochs=(0.0, 100.0))


# --- longer bins -----------------------------------------------------------------------------------------------------


def test_joined_bins_are_those_counted_at_once() -> None:
    trains, epochs = random_spikes(3, 10.0), [(0.0, 4.013), (5.0, 8.5)]
    fine = bin_spikes(trains, bin_size=0.001, epochs=epochs, conditions=[0, 1])
    coarse, expected = rebin(fine, 0.02), bin_spikes(trains, bin_size=0.02, epochs=epochs)
    np.testing.assert_array_equal(coarse.data, expected.data)
    assert coarse.bin_size == 0.02
    assert coarse.conditions is not None
    assert coarse.trial_lengths.tolist() == expected.trial_lengths.tolist()
    assert rebin(fine, 0.001) is fine


@pytest.mark.parametrize(
    ("recording", "bin_size", "message"),
    [
        (Recording(np.ones((1, 9, 1))), 0.1, "how long they are is not known"),
        (Recording(np.ones((1, 9, 1)), bin_size=0.02), 0.05, "multiple of the recording's, 0.02 s, got 0.05 s"),
        (Recording(np.ones((1, 9, 1)), bin_size=0.02), 0.01, "multiple of the recording's"),
        (Recording(np.ones((1, 9, 1)), bin_size=0.02), 0.2, "the shortest trial has 0.18 s"),
        (Recording(np.full((1, 9, 1), 0.5), bin_size=0.02), 0.04, "Only counts, 0, 1, 2, ..., can be summed .* 0.5"),
    ],
)
def test_bins_that_cannot_be_joined(recording: Recording, bin_size: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebin(recording, bin_size)


# --- real recordings -------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an archive, or a skip where it is not here."""
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the benchmark recordings")
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_place_cells_are_counted_on_their_own_clock(shared_data: Path) -> None:
    d = load(shared_data / "ca1_linear_track.npz")
    recording = bin_spikes(
        d["spike_times"], d["spike_unit"], bin_size=0.025, epochs=d["run_epochs"], unit_ids=range(31)
    )
    assert recording.data.shape[::2] == (len(d["run_epochs"]), 31)
    ticks = np.round(d["spike_times"] * CLOCK).astype(np.int64)
    for trial, (start, length) in enumerate(zip(d["run_epochs"][:, 0], recording.trial_lengths, strict=True)):
        # Ticks count from the epoch's begin, which need not stand on one itself.
        bins = np.floor((ticks / CLOCK - start) / 0.025 + 1e-7).astype(np.int64)
        for unit in range(31):
            mine = bins[d["spike_unit"] == unit]
            expected = np.bincount(mine[(mine >= 0) & (mine < length)], minlength=length)
            np.testing.assert_array_equal(recording.data[trial, :length, unit], expected)


def test_reaches_are_ragged_trials(shared_data: Path) -> None:
    d = load(shared_data / "pmd_reach_2targets.npz")
    offsets = d["trial_offsets"]
    trials = [d["spikes"][:, a:b].T for a, b in itertools.pairwise(offsets)]
    recording = rebin(Recording.from_trials(trials, bin_size=0.001, conditions=d["condition"]), 0.02)
    assert recording.data.shape == (112, 76, 61)
    assert recording.trial_lengths.tolist() == [(b - a) // 20 for a, b in itertools.pairwise(offsets)]
    first = d["spikes"][:, : recording.trial_lengths[0] * 20].reshape(61, -1, 20).sum(2).T
    np.testing.assert_array_equal(recording.trials()[0], first)
    train, held_out = plr.data.split_trials(recording, 0.25, by=recording.conditions)
    assert (train.num_trials, held_out.num_trials) == (84, 28)
    assert held_out.conditions is not None
    assert np.bincount(held_out.conditions).tolist() == [14, 14]


@pytest.mark.slow
def test_a_maze_with_cues_as_inputs_is_fitted(shared_data: Path) -> None:
    d = load(shared_data / "mc_maze_two_trials.npz")
    velocity = [d[f"trial{n}_hand_vel"].astype(np.float64) for n in (748, 1356)]
    fine = Recording.from_trials(
        [d[f"trial{n}_spikes"] for n in (748, 1356)],
        [v / 1000 for v in velocity],
        bin_size=float(d["bin_s"]),
        feature_names=[str(unit) for unit in d["unit_id"]],
        input_names=["vx", "vy"],
        trial_names=["748", "1356"],
    )
    recording = rebin(fine, 0.02)
    assert recording.data.shape == (2, 178, 182)
    np.testing.assert_array_equal(recording.trials()[0].T, d["trial748_spikes"][:3220].reshape(-1, 20, 182).sum(1).T)
    assert recording.inputs is not None
    np.testing.assert_allclose(recording.inputs[1, 5], velocity[1][100:120].mean(0) / 1000)
    dynamics = plr.LowRankRNN(rank=2, units=10, inputs=2)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=182))
    plr.initialise_from_data(model, recording)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = plr.fit(model, plr.BootstrapGuide(model), recording, num_steps=2, num_particles=4, progress=False)
    assert np.isfinite(result.evidence).all()
