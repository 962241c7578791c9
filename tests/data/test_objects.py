"""Objects of pynapple, MNE and xarray become recordings with their names, units and times."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import bin_spikes, from_mne, from_pynapple, from_xarray, split_trials
from tests.data.builders import random_spikes

TRAINS = random_spikes(3, 12.0)
EPOCHS = [(0.5, 2.5), (3.0, 6.01)]


# --- pynapple --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nap() -> Any:
    """The library, where it is installed."""
    return pytest.importorskip("pynapple", reason="the extra `pynapple` is not installed")


def test_pynapple_spikes_are_binned(nap: Any) -> None:
    support = nap.IntervalSet(0.0, 12.0)
    group = nap.TsGroup({7: nap.Ts(TRAINS[0]), 2: nap.Ts(TRAINS[1]), 5: nap.Ts(TRAINS[2])}, time_support=support)
    epochs = nap.IntervalSet(*zip(*EPOCHS, strict=True))
    expected = bin_spikes({2: TRAINS[1], 5: TRAINS[2], 7: TRAINS[0]}, bin_size=0.02, epochs=EPOCHS)
    for chosen in (epochs, EPOCHS):
        recording = from_pynapple(group, bin_size=0.02, epochs=chosen, conditions=["a", "b"])
        np.testing.assert_array_equal(recording.data, expected.data)
        assert recording.feature_names == ("2", "5", "7")
    np.testing.assert_array_equal(
        from_pynapple(group, bin_size=0.1).data,
        bin_spikes([TRAINS[1], TRAINS[2], TRAINS[0]], bin_size=0.1, epochs=(0, 12)).data,
    )
    with pytest.raises(ValueError, match="have to be binned: pass `bin_size`"):
        from_pynapple(group)


def test_pynapple_samples_are_taken_as_they_are(nap: Any) -> None:
    times, values = np.arange(600) / 50, np.random.default_rng(0).normal(size=(600, 2))
    frame = nap.TsdFrame(t=times, d=values, columns=["x", "y"])
    recording = from_pynapple(frame, epochs=EPOCHS)
    assert recording.feature_names == ("x", "y")
    assert recording.bin_size == pytest.approx(0.02)
    assert recording.trial_lengths.tolist() == [101, 151], "its intervals hold both ends"
    np.testing.assert_array_equal(recording.trials()[1], values[150:301])
    assert recording.start_times is not None
    assert recording.start_times.tolist() == [0.5, 3.0]
    one = from_pynapple(nap.Tsd(t=times, d=values[:, 0]))
    np.testing.assert_array_equal(one.data[0, :, 0], values[:, 0])
    with pytest.raises(ValueError, match="Epoch 0, from 20 to 30 s, holds no sample"):
        from_pynapple(frame, epochs=(20, 30))
    with pytest.raises(ValueError, match="`bin_size` is for spike times"):
        from_pynapple(frame, bin_size=0.1)
    with pytest.raises(TypeError, match="must be a TsGroup, Tsd or TsdFrame of pynapple, got list"):
        from_pynapple([1.0], epochs=(0, 1))


# --- MNE -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw() -> Any:
    """Two seconds of an EEG, a magnetometer and a stimulus channel at 100 Hz; the EEG with a bad stretch."""
    mne = pytest.importorskip("mne", reason="the extra `mne` is not installed")
    info = mne.create_info(["Fz", "Cz", "M1", "STI"], 100.0, ["eeg", "eeg", "mag", "stim"])
    values = 1e-6 * np.random.default_rng(0).normal(size=(4, 200))
    made = mne.io.RawArray(values, info, first_samp=50, verbose="error")
    return made


def test_mne_raw_keeps_volts_names_and_rate(raw: Any) -> None:
    mne = sys.modules["mne"]
    raw.set_annotations(mne.Annotations(onset=[0.5], duration=[0.1], description=["BAD_blink"], orig_time=None))
    raw.info["bads"] = ["Cz"]
    recording = from_mne(raw)
    values = raw.get_data()
    assert recording.feature_names == ("Fz", "Cz", "M1"), "no stimulus channel"
    assert recording.feature_units == ("V", "V", "T")
    assert recording.bin_size == pytest.approx(0.01)
    assert recording.start_times is not None
    assert recording.start_times.tolist() == [0.5]
    missing = ~recording.mask[0]
    assert missing[:, 1].all(), "a bad channel"
    assert 9 <= missing[:, 0].sum() <= 11, "a bad stretch"
    np.testing.assert_array_equal(recording.data[0, ~missing[:, 0], 0], values[0, ~missing[:, 0]])
    assert from_mne(raw, picks=["M1"]).data.shape == (1, 200, 1)
    assert raw.ch_names == ["Fz", "Cz", "M1", "STI"], "the user's object is left as it was"


def test_mne_epochs_are_trials_with_conditions(raw: Any) -> None:
    mne = sys.modules["mne"]
    events = np.array([[100, 0, 1], [150, 0, 2], [200, 0, 1]])
    epochs = mne.Epochs(
        raw, events, {"left": 1, "right": 2}, tmin=-0.1, tmax=0.2, baseline=None, preload=True, verbose="error"
    )
    recording = from_mne(epochs)
    assert recording.data.shape == (3, 31, 3)
    assert recording.conditions is not None
    assert recording.conditions.tolist() == ["left", "right", "left"]
    assert recording.start_times == pytest.approx([0.9, 1.4, 1.9])
    np.testing.assert_array_equal(recording.data[1], raw.get_data()[:3, 90:121].T)
    halved = from_mne(epochs.decimate(2, verbose="error"))
    assert halved.bin_size == pytest.approx(0.02)
    assert halved.start_times == pytest.approx([0.9, 1.4, 1.9]), "the same clock at half the rate"
    with pytest.raises(TypeError, match="must be a Raw or Epochs of MNE, got ndarray"):
        from_mne(np.zeros(3))


# --- xarray ----------------------------------------------------------------------------------------------------------


def test_xarray_dimensions_names_and_times() -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    values = np.random.default_rng(0).normal(size=(3, 7, 20))
    coords = {"unit": ["a", "b", "c"], "time": ("time", 50.0 * np.arange(20), {"units": "ms"})}
    array = xarray.DataArray(values, dims=("unit", "trial", "time"), coords=coords, attrs={"units": "Hz"})
    recording = from_xarray(array)
    np.testing.assert_array_equal(recording.data, values.transpose(1, 2, 0))
    assert recording.feature_names == ("a", "b", "c")
    assert recording.feature_units == ("Hz", "Hz", "Hz")
    assert recording.bin_size == pytest.approx(0.05)
    assert recording.conditions is None

    steps = np.arange(20) * np.timedelta64(20, "ms")
    labels = ["left", "right", "left", "left", "right", "left", "right"]
    recording = from_xarray(array.assign_coords(time=steps, trial=labels))
    assert recording.bin_size == pytest.approx(0.02)
    assert recording.conditions is not None
    assert recording.conditions.tolist() == labels, "labels that repeat are conditions"
    named = from_xarray(array.assign_coords(trial=np.arange(10, 17)))
    assert named.trial_names == ("10", "11", "12", "13", "14", "15", "16")

    with pytest.raises(TypeError, match="choose one of the Dataset: rates"):
        from_xarray(array.to_dataset(name="rates"))
    with pytest.raises(TypeError, match="must be a DataArray of xarray, got list"):
        from_xarray([1.0])
    with pytest.raises(ValueError, match="The DataArray 'rates' must hold finite numbers"):
        from_xarray(array.where(values < 1, np.inf).rename("rates"))


@pytest.mark.parametrize(
    ("read", "library", "extra"),
    [(from_pynapple, "pynapple", "pynapple"), (from_mne, "mne", "mne"), (from_xarray, "xarray", "netcdf")],
)
def test_a_missing_extra_is_named(read: Any, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {library}, .* pip install "pyro-lowrank\[{extra}\]"'):
        read(object())


# --- what was observed, and where parts were joined ------------------------------------------------------------------


def test_spikes_outside_the_time_support_are_not_silence(nap: Any) -> None:
    support = nap.IntervalSet([0.0, 8.0], [4.0, 12.0])
    group = nap.TsGroup({0: nap.Ts(TRAINS[0]), 1: nap.Ts(TRAINS[1])}, time_support=support)
    recording = from_pynapple(group, bin_size=0.5, epochs=(0, 13))
    assert np.flatnonzero(~recording.mask[0, :, 0]).tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 24, 25]
    np.testing.assert_array_equal(recording.mask[..., 0], recording.mask[..., 1])
    assert "20 entries are missing" in recording.orientation
    whole = bin_spikes([TRAINS[0]], bin_size=0.5, epochs=(0, 13)).data[0, :, 0]
    np.testing.assert_array_equal(recording.data[0, :8, 0], whole[:8])
    assert from_pynapple(group, bin_size=0.5).mask.all()


def test_samples_on_two_sides_of_a_gap_are_no_neighbours(nap: Any) -> None:
    times = np.r_[np.arange(100), np.arange(150, 300)] / 50
    values = np.random.default_rng(0).normal(size=(250, 2))
    frame = nap.TsdFrame(t=times, d=values, time_support=nap.IntervalSet([0.0, 3.0], [1.99, 6.0]))
    recording = from_pynapple(frame, epochs=(0, 6))
    assert recording.data.shape == (1, 300, 2)
    assert np.flatnonzero(~recording.mask[0, :, 0]).tolist() == list(range(100, 150))
    np.testing.assert_array_equal(recording.data[0, recording.mask[0, :, 0]], values)
    assert recording.bin_size == pytest.approx(0.02)
    assert "1 of them go over gaps in the time support, which are missing" in recording.orientation
    assert from_pynapple(frame).trial_lengths.tolist() == [100, 150]
    uneven = nap.Tsd(t=np.r_[times[:100] ** 1.5, times[100:]], d=values[:, 0], time_support=frame.time_support)
    with (
        pytest.warns(UserWarning, match="not evenly spaced"),
        pytest.raises(ValueError, match="Epoch 0 goes over a gap in the time support, and the samples are not evenly"),
    ):
        from_pynapple(uneven, epochs=(0, 6))


@pytest.mark.parametrize("known_date", [False, True])
def test_joined_recordings_are_trials_of_their_own(raw: Any, known_date: bool) -> None:
    mne = sys.modules["mne"]
    if known_date:
        raw.set_meas_date(1_700_000_000)
    other, third = raw.copy().crop(0.0, 0.99), raw.copy()
    joined = mne.concatenate_raws([raw.copy(), other, third], verbose="error")
    recording = from_mne(joined)
    assert recording.trial_lengths.tolist() == [200, 100, 200]
    for trial, part in zip(recording.trials(), (raw, other, third), strict=True):
        np.testing.assert_array_equal(trial, part.get_data()[:3].T)
    assert recording.start_times == pytest.approx([0.5, 2.5, 3.5])
    assert "in 3 parts that were joined" in recording.orientation


@pytest.mark.parametrize("mark", ["boundary", "EDGE boundary", "New Segment/", "BAD boundary"])
def test_boundaries_that_recorders_mark(raw: Any, mark: str) -> None:
    mne = sys.modules["mne"]
    raw.set_annotations(mne.Annotations([0.0, 0.5, 1.2], [0.0, 0.1, 0.0], ["New Segment/", "BAD_x", mark]))
    recording = from_mne(raw)
    assert recording.num_trials == 2
    assert recording.trial_lengths.sum() == 200
    raw.set_annotations(mne.Annotations([1.2], [0.0], ["stimulus at the boundary of two"]))
    assert from_mne(raw).num_trials == 1


def test_epochs_that_are_not_loaded_are_read(raw: Any) -> None:
    mne = sys.modules["mne"]
    events = np.array([[100, 0, 1], [150, 0, 2], [200, 0, 1]])
    options: dict[str, Any] = {"tmin": -0.1, "tmax": 0.2, "baseline": None, "verbose": "error"}
    epochs = mne.Epochs(raw, events, {"left": 1, "right": 2}, **options)
    recording = from_mne(epochs)
    np.testing.assert_array_equal(recording.data[1], raw.get_data()[:3, 90:121].T)
    assert not epochs.preload, "the user's object is left as it was"
    assert from_mne(epochs, picks=["Cz"]).data.shape == (3, 31, 1)
    # Codes that have lost their names.
    epochs.load_data().event_id = {"left": 1}
    found = from_mne(epochs).conditions
    assert found is not None
    assert found.tolist() == ["left", "2", "left"]
    with (
        pytest.warns(RuntimeWarning, match="All epochs were dropped"),
        pytest.raises(ValueError, match="There is no epoch left: all were dropped"),
    ):
        from_mne(mne.Epochs(raw, events, tmin=-5.0, tmax=5.0, baseline=None, verbose="error"))


def test_bad_stretches_of_epochs_are_missing(raw: Any) -> None:
    mne = sys.modules["mne"]
    raw.set_annotations(mne.Annotations([0.5], [0.05], ["BAD_blink"]))
    events = np.array([[100, 0, 1], [200, 0, 1]])
    options: dict[str, Any] = {"tmin": -0.1, "tmax": 0.2, "baseline": None, "verbose": "error"}
    recording = from_mne(mne.Epochs(raw, events, reject_by_annotation=False, **options))
    assert recording.mask.all(-1).sum(1).tolist() == [25, 31]
    assert from_mne(mne.Epochs(raw, events, **options)).num_trials == 1


def test_channels_of_other_kinds_are_read_and_told() -> None:
    mne = pytest.importorskip("mne", reason="the extra `mne` is not installed")
    values = np.random.default_rng(0).normal(size=(3, 200))
    raw = mne.io.RawArray(values, mne.create_info(["a", "b", "s"], 100.0, ["misc", "misc", "stim"]), verbose="error")
    with pytest.warns(UserWarning, match=r"no channels of data; those there are \(misc\) were taken"):
        recording = from_mne(raw)
    np.testing.assert_array_equal(recording.data[0], values[:2].T)
    assert from_mne(raw, picks="misc").feature_names == ("a", "b")
    with pytest.raises(ValueError, match="could not be interpreted"):
        from_mne(raw, picks="eeg")
    with pytest.raises(ValueError, match="stimulus channels alone"):
        from_mne(raw.copy().pick(["s"]))
    assert from_mne(raw, picks=None).data.shape == (1, 200, 3)


def test_an_epoch_that_begins_before_the_samples_is_missing_there(nap: Any) -> None:
    values = np.random.default_rng(0).normal(size=300)
    epochs = [(-0.5, 0.5), (1.0, 2.0)]
    recording = from_pynapple(nap.Tsd(t=np.arange(300) / 100, d=values), epochs=epochs)
    assert recording.start_times == pytest.approx([-0.5, 1.0])
    assert np.flatnonzero(~recording.mask[0, :, 0]).tolist() == list(range(50))
    np.testing.assert_array_equal(recording.data[0, 50:, 0], values[:51])
    np.testing.assert_array_equal(recording.data[1, :, 0], values[100:201])


def test_what_is_bad_in_one_channel_is_observed_in_the_others(raw: Any) -> None:
    mne = sys.modules["mne"]
    marks = mne.Annotations([0.5, 1.5], [0.25, 0.25], ["BAD_x", "BAD_y"], ch_names=[["Cz"], []])
    for known_date in (False, True):
        raw.set_meas_date(1_700_000_000 if known_date else None)
        # Recordings without a date count from their first sample.
        raw.set_annotations(marks.copy())
        missing = ~from_mne(raw).mask[0]
        assert missing.sum(0).tolist() == [25, 50, 25]
        assert np.flatnonzero(missing[:, 1])[[0, 25]].tolist() == [50, 150]


def test_a_recording_that_is_all_bad_is_refused(raw: Any, nap: Any) -> None:
    mne = sys.modules["mne"]
    raw.set_annotations(mne.Annotations([0.0], [9.0], ["BAD"]))
    with pytest.raises(ValueError, match="All entries are missing or marked as bad: nothing is left of RawArray"):
        from_mne(raw)
    with pytest.raises(ValueError, match="All entries are missing"):
        from_pynapple(nap.Tsd(t=np.arange(9) / 100, d=np.full(9, np.nan)))


def test_epochs_of_an_array_have_no_times(raw: Any) -> None:
    mne = sys.modules["mne"]
    info = mne.create_info(["Fz", "Cz"], 100.0, "eeg")
    epochs = mne.EpochsArray(np.random.default_rng(0).normal(size=(6, 2, 50)), info, verbose="error")
    recording = from_mne(epochs[[0, 1, 3, 4, 5]])
    assert recording.start_times is None
    assert split_trials(recording, 0.4).held_out.num_trials == 2


def test_epochs_over_a_joint_and_projections_that_wait_are_told(raw: Any) -> None:
    mne = sys.modules["mne"]
    raw.pick(["Fz", "Cz"]).set_eeg_reference(projection=True, verbose="error")
    joined = mne.concatenate_raws([raw.copy(), raw.copy()], verbose="error")
    events = np.array([[150, 0, 1], [245, 0, 1], [300, 0, 1]])
    options: dict[str, Any] = {"tmin": -0.1, "tmax": 0.2, "baseline": None, "proj": False, "verbose": "error"}
    with pytest.warns(UserWarning, match="1 epochs go over a boundary .* the first is epoch 1"):
        recording = from_mne(mne.Epochs(joined, events, reject_by_annotation=False, **options))
    assert "projections that are not applied, as `apply_proj` would: 1" in recording.orientation
    assert "not applied" not in from_mne(raw.apply_proj(verbose="error")).orientation


def test_times_without_a_unit_tell_their_order() -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    values = np.random.default_rng(0).normal(size=(2, 40, 3))
    array = xarray.DataArray(values, dims=("trial", "time", "channel"), coords={"time": np.arange(40)[::-1] * 0.5})
    recording = from_xarray(array)
    np.testing.assert_array_equal(recording.data, values[:, ::-1])
    assert recording.bin_size is None
    assert "Time ran backwards" in recording.orientation
