"""NWB files: gains, units, names, intervals and paths of series are what pynwb wrote."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import bin_spikes, read_recording
from tests.data.builders import random_spikes

RNG = np.random.default_rng(0)
TRAINS = random_spikes(2, 12.0)


@pytest.fixture
def pynwb() -> Any:
    """The library, where it is installed."""
    return pytest.importorskip("pynwb", reason="the extra `nwb` is not installed")


@contextmanager
def new_file(pynwb: Any, path: Path, channels: int = 0) -> Iterator[Any]:
    """A new NWB file, with a table of electrodes."""
    begin = datetime.datetime(2024, 6, 24, tzinfo=datetime.timezone.utc)
    file = pynwb.NWBFile(session_description="made by a test", identifier="test", session_start_time=begin)
    if channels:
        device = file.create_device(name="probe")
        group = file.create_electrode_group(name="shank", description="one", location="here", device=device)
        file.add_electrode_column("channel_name", "as on the probe")
        for channel in range(channels):
            file.add_electrode(group=group, location="here", channel_name=f"AP{channel}")
    yield file
    with pynwb.NWBHDF5IO(str(path), mode="w") as opened:
        opened.write(file)


def electrical(pynwb: Any, file: Any, name: str, data: Any, rows: Any = None, **options: Any) -> Any:
    """A series of some electrodes."""
    rows = list(range(len(file.electrodes))) if rows is None else rows
    region = file.create_electrode_table_region(rows, "some of them")
    return pynwb.ecephys.ElectricalSeries(name=name, data=data, electrodes=region, **options)


def test_gains_of_each_channel(pynwb: Any, tmp_path: Path) -> None:
    gains = {"conversion": 1e-6, "offset": 0.5e-6, "channel_conversion": [1.0, 2.0, 10.0], "rate": 100.0}
    with new_file(pynwb, tmp_path / "y.nwb", channels=3) as file:
        data = np.full((20, 3), 100, dtype=np.int16)
        file.add_acquisition(electrical(pynwb, file, "es", data, [2, 0, 1], starting_time=5.0, **gains))
    recording = read_recording(tmp_path / "y.nwb", key="es")
    np.testing.assert_allclose(recording.data, np.broadcast_to([1.005e-4, 2.005e-4, 1.0005e-3], (1, 20, 3)), rtol=1e-12)
    assert recording.feature_names == ("AP2", "AP0", "AP1")
    assert recording.feature_units == ("volts",) * 3
    assert recording.start_times == pytest.approx([5.0])
    assert recording.bin_size == pytest.approx(0.01)


def test_a_key_that_fits_two_series(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb", channels=2) as file:
        module = file.create_processing_module("ecephys", "filtered")
        for level, probe in enumerate("AB"):
            series = electrical(pynwb, file, "ElectricalSeries", np.full((20, 2), float(level)), rate=100.0)
            module.add(pynwb.ecephys.LFP(name=f"LFP_{probe}", electrical_series=series))
        file.add_acquisition(pynwb.TimeSeries(name="lick", data=np.zeros((9, 1)), unit="V", rate=10.0))
        file.add_stimulus(pynwb.TimeSeries(name="lick", data=np.ones((9, 1)), unit="V", rate=10.0))
    path = tmp_path / "y.nwb"
    both = "processing/ecephys/LFP_A/ElectricalSeries, processing/ecephys/LFP_B/ElectricalSeries"
    with pytest.raises(ValueError, match=f"'ElectricalSeries' fits {both}; pass one"):
        read_recording(path, key="ElectricalSeries")
    for key in ("LFP_B/ElectricalSeries", "processing/ecephys/LFP_B/ElectricalSeries"):
        assert (read_recording(path, key=key).data == 1).all()
    with pytest.raises(ValueError, match="'lick' fits acquisition/lick, stimulus/presentation/lick"):
        read_recording(path, key="lick")
    assert (read_recording(path, key="presentation/lick").data == 1).all()
    with pytest.raises(ValueError, match=r"got key='LFP'; it holds: acquisition/lick \(9, 1\), processing"):
        read_recording(path, key="LFP")


def test_units_of_one_name_are_all_kept(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        for unit, number in zip((0, 1, 0, 1), (20, 40, 60, 80), strict=True):
            file.add_unit(id=unit, spike_times=np.sort(RNG.uniform(0, 12, number)))
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.5, epochs=(0, 12))
    assert recording.data.sum((0, 1)).tolist() == [20, 40, 60, 80]
    assert recording.feature_names == ("0", "1", "0_2", "1_2")


def test_what_is_observed_of_units_of_one_name_is_their_own(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        file.add_unit_column("unit_name", "by hand")
        for name, start in (("a", 0.0), ("a", 6.0)):
            file.add_unit(spike_times=TRAINS[0], obs_intervals=[[start, 12.0]], unit_name=name)
        file.add_trial(start_time=0.0, stop_time=6.0, id=3)
        file.add_trial(start_time=6.0, stop_time=12.0, id=3)
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.5)
    assert recording.feature_names == ("a", "a_2")
    assert recording.mask.all(1).tolist() == [[True, False], [True, True]]
    assert recording.trial_names == ("trial_3", "trial_3_2"), "trials of one name would be parts of one"


def test_intervals_that_are_not_valid_are_missing(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        for train in TRAINS:
            file.add_unit(spike_times=train)
        file.add_invalid_time_interval(start_time=4.0, stop_time=6.0)
        series = pynwb.TimeSeries(name="lfp", data=np.arange(120.0)[:, None], unit="V", rate=10.0)
        file.add_acquisition(series)
        stamps = 0.1 * np.arange(120)
        file.add_acquisition(pynwb.TimeSeries(name="eye", data=np.arange(120.0)[:, None], unit="V", timestamps=stamps))
        file.add_trial(start_time=0.0, stop_time=12.0)
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.5)
    assert np.flatnonzero(~recording.mask[0, :, 0]).tolist() == [8, 9, 10, 11]
    assert np.flatnonzero(~recording.mask[0, :, 1]).tolist() == [8, 9, 10, 11]
    expected = bin_spikes(TRAINS, bin_size=0.5, epochs=(0, 12)).data
    np.testing.assert_array_equal(recording.data[recording.mask], expected[recording.mask])
    assert "8 entries are missing: the recording says that they were not observed" in recording.orientation
    for key in ("lfp", "eye"):
        assert np.flatnonzero(~read_recording(tmp_path / "y.nwb", key=key).mask[0, :, 0]).tolist() == list(
            range(40, 61)
        )


def test_intervals_on_a_clock_that_counts_from_1970(pynwb: Any, tmp_path: Path) -> None:
    begin = 1.7e9
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        bounds = begin + 0.1 * np.arange(121)
        intervals = np.stack([bounds[:-1], bounds[1:]], -1)
        file.add_unit(spike_times=begin + TRAINS[0], obs_intervals=np.delete(intervals, [30, 31], 0))
        file.add_trial(start_time=begin, stop_time=begin + 12.0)
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.1)
    assert np.flatnonzero(~recording.mask[0, :, 0]).tolist() == [30, 31]


def test_an_interval_about_one_series_leaves_the_others(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        for name in ("lfp", "eye"):
            file.add_acquisition(pynwb.TimeSeries(name=name, data=np.ones((120, 1)), unit="V", rate=10.0))
        file.add_invalid_time_interval(start_time=4.0, stop_time=6.0, timeseries=[file.acquisition["eye"]])
    assert not read_recording(tmp_path / "y.nwb", key="eye").mask[0, 40:61].any()
    assert read_recording(tmp_path / "y.nwb", key="lfp").mask.all()


def test_a_unit_that_was_never_observed_and_tables_that_are_not_used(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        file.add_unit(spike_times=TRAINS[0], obs_intervals=[[0.0, 12.0]])
        file.add_unit(spike_times=np.empty(0), obs_intervals=np.empty((0, 2)))
        file.add_unit(spike_times=TRAINS[1], obs_intervals=np.empty((0, 2)))
        file.add_epoch(start_time=0.0, stop_time=6.0)
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.5)
    assert recording.mask.all(1).tolist() == [[True, False, True]]
    assert " Its other tables of intervals (epochs) were not used: `epochs` takes begins" in recording.orientation


def test_what_was_observed_without_spikes_is_silence(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        file.add_unit(spike_times=np.arange(30.0, 60.0, 0.7), obs_intervals=[[10.0, 80.0]])
    recording = read_recording(tmp_path / "y.nwb", bin_size=0.5)
    assert recording.start_times == pytest.approx([10.0])
    assert recording.data.shape == (1, 140, 1)
    assert "The file has no trials: one epoch of all that was observed." in recording.orientation
    assert recording.mask.all()


def test_time_along_the_second_axis(pynwb: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `nwb` is not installed")
    data = RNG.normal(size=(4, 1000))
    with new_file(pynwb, tmp_path / "y.nwb", channels=4) as file:
        stamps = 3.0 + 0.01 * np.arange(1000)
        for name in ("stamped", "neither", "upright"):
            file.add_acquisition(pynwb.TimeSeries(name=name, data=data.T, timestamps=stamps, unit="V"))
        file.add_acquisition(electrical(pynwb, file, "rated", data.T, rate=100.0))
    # What pynwb no longer writes, other programs do.
    with h5py.File(tmp_path / "y.nwb", "r+") as opened:
        for name in ("stamped", "neither", "rated"):
            group = opened["acquisition"][name]
            attributes = dict(group["data"].attrs)
            del group["data"]
            group.create_dataset("data", data=data).attrs.update(attributes)
        del opened["acquisition/neither/timestamps"]
        stamped = opened["acquisition/neither"].create_dataset("timestamps", data=stamps[:77])
        stamped.attrs.update({"interval": 1, "unit": "seconds"})
    for key in ("stamped", "rated", "upright"):
        recording = read_recording(tmp_path / "y.nwb", key=key)
        np.testing.assert_array_equal(recording.data[0], data.T)
        assert recording.bin_size == pytest.approx(0.01)
    assert read_recording(tmp_path / "y.nwb", key="rated").feature_names == ("AP0", "AP1", "AP2", "AP3")
    with pytest.raises(
        ValueError, match=r"neither in .* has the shape \(4, 1000\) and 77 timestamps: no axis of it is"
    ):
        read_recording(tmp_path / "y.nwb", key="neither")


def test_a_spike_that_is_no_number_is_named(pynwb: Any, tmp_path: Path) -> None:
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        file.add_unit(id=7, spike_times=[0.5, 1.0])
        file.add_unit(id=9, spike_times=[0.5, np.nan])
    with pytest.raises(ValueError, match="Spike times of unit 9 must be finite, got nan at index 1"):
        read_recording(tmp_path / "y.nwb", bin_size=0.5)


def test_times_that_start_again_with_each_trial_are_told() -> None:
    rng = np.random.default_rng(0)
    restarting = np.concatenate([np.sort(rng.uniform(0, 1.0, 20)) for _ in range(50)])
    with pytest.warns(
        UserWarning, match="go back here and there, those of a 49 times among 1000 spikes: do they start"
    ):
        bin_spikes({"a": restarting, "b": TRAINS[0]}, bin_size=0.05, epochs=(0, 1))


def test_series_that_hold_no_samples_are_not_offered(pynwb: Any, tmp_path: Path) -> None:
    path = tmp_path / "y.nwb"
    with new_file(pynwb, path) as file:
        file.add_acquisition(pynwb.TimeSeries(name="lfp", data=RNG.normal(size=(50, 2)), unit="V", rate=100.0))
        file.add_acquisition(pynwb.TimeSeries(name="words", data=["a", "b"], unit="n.a.", timestamps=[0.0, 1.0]))
        signs = np.array([1, -1, 1, -1], dtype=np.int8)
        file.add_acquisition(pynwb.misc.IntervalSeries(name="licks", data=signs, timestamps=np.arange(4.0)))
        file.add_trial(start_time=0.0, stop_time=0.2)
    for key in ("words", "licks"):
        with pytest.raises(ValueError, match=rf"time series of numbers .* key='{key}'; it holds: acquisition/lfp \(50"):
            read_recording(path, key=key)
    assert "The 1 trials of the file were not used: one recording." in read_recording(path, key="lfp").orientation


def test_fluorescence_of_regions_by_the_name_of_the_series_or_of_what_holds_it(pynwb: Any, tmp_path: Path) -> None:
    y = RNG.normal(size=(40, 3))
    with new_file(pynwb, tmp_path / "y.nwb") as file:
        device = file.create_device(name="microscope")
        channel = pynwb.ophys.OpticalChannel(name="green", description="green", emission_lambda=510.0)
        plane = file.create_imaging_plane(
            name="plane",
            optical_channel=channel,
            description="one",
            device=device,
            excitation_lambda=920.0,
            indicator="GCaMP6f",
            location="here",
            imaging_rate=30.0,
        )
        segmentation = pynwb.ophys.ImageSegmentation()
        regions = segmentation.create_plane_segmentation(name="rois", description="all", imaging_plane=plane)
        for _ in range(3):
            regions.add_roi(image_mask=np.ones((4, 4)))
        module = file.create_processing_module(name="ophys", description="optical physiology")
        module.add(segmentation)
        region = regions.create_roi_table_region(region=[0, 1, 2], description="all")
        series = {"data": y, "rois": region, "unit": "a.u.", "rate": 30.0}
        module.add(pynwb.ophys.Fluorescence(roi_response_series=pynwb.ophys.RoiResponseSeries(name="traces", **series)))
        other = pynwb.ophys.RoiResponseSeries(name="relative", **{**series, "data": 2 * y})
        module.add(pynwb.ophys.DfOverF(roi_response_series=other))
    for key, factor in (("traces", 1), ("Fluorescence", 1), ("DfOverF", 2), ("relative", 2)):
        recording = read_recording(tmp_path / "y.nwb", key=key)
        np.testing.assert_allclose(recording.data[0], factor * y)
        assert recording.bin_size == pytest.approx(1 / 30)
    with pytest.raises(ValueError, match="must name one time series"):
        read_recording(tmp_path / "y.nwb", key="ophys")
