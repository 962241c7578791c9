"""What stands beside an array in its file: the lengths of its axes, its times and rates, and whether they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import Recording, read_recording
from tests.data.test_files import cells, mat

Y = np.random.default_rng(0).normal(size=(40, 3))


def npz(path: Path, **arrays: Any) -> Recording:
    """Recording of an archive of these."""
    np.savez(path / "y.npz", **arrays)
    return read_recording(path / "y.npz")


def test_the_data_of_eeglab_are_channels_by_time_by_trials(tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(size=(3, 20, 7))
    beside = {"srate": 50.0, "nbchan": 3.0, "pnts": 20.0, "times": -200 + 20.0 * np.arange(20)}
    path = mat(tmp_path / "y.mat", EEG={"data": data, "trials": 7.0, **beside})
    recording = read_recording(path, key="EEG.data")
    np.testing.assert_array_equal(recording.data, data.transpose(2, 1, 0))
    assert recording.bin_size == pytest.approx(0.02)
    path = mat(tmp_path / "z.mat", EEG={"data": data[..., 0], "trials": 1.0, **beside})
    recording = read_recording(path, key="EEG.data")
    np.testing.assert_array_equal(recording.data[0], data[..., 0].T)
    assert recording.start_times == pytest.approx([-0.2])


def test_fields_of_fields_are_read(tmp_path: Path) -> None:
    path = mat(tmp_path / "y.mat", session={"lfp": {"y": Y, "fs": 50.0}, "other": Y})
    recording = read_recording(path, key="session.lfp.y")
    np.testing.assert_array_equal(recording.data[0], Y)
    assert recording.bin_size == pytest.approx(0.02)
    with pytest.raises(ValueError, match="`key` must name an array of numbers"):
        read_recording(path, key="session.lfp.x.y")


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float64])
def test_spike_trains_in_bins_are_no_spike_times(tmp_path: Path, dtype: Any) -> None:
    trains = [(np.random.default_rng(n).random(100) < 0.1).astype(dtype) for n in range(3)]
    recording = read_recording(mat(tmp_path / "y.mat", trials=cells(*trains), fs=50.0), key="trials")
    np.testing.assert_array_equal(recording.data[..., 0], trains)
    assert recording.bin_size == pytest.approx(0.02)


def test_two_rates_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"by `fs` a bin has 0\.01 s, by `dt` 0\.1 s\. The first was taken"):
        assert npz(tmp_path, y=Y, fs=100.0, dt=0.1).bin_size == pytest.approx(0.01)
    assert npz(tmp_path, y=Y, fs=100.0, dt=0.01).bin_size == pytest.approx(0.01)


def test_times_of_another_unit_than_the_bins_tell_no_begin(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Are the times in milliseconds"):
        recording = npz(tmp_path, y=Y, fs=50.0, time=500 + 20.0 * np.arange(40))
    assert recording.start_times is None


def test_dates_beside_an_array_tell_order_and_bins(tmp_path: Path) -> None:
    dates = np.datetime64("2024-01-01T00:00:00.000") + 20 * np.arange(40)[::-1].astype("m8[ms]")
    recording = npz(tmp_path, y=Y, time=dates)
    np.testing.assert_array_equal(recording.data[0], Y[::-1])
    assert recording.bin_size == pytest.approx(0.02)
