"""Recordings read from files of every kind are what was written, and a bad file says what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyro_lowrank.data import Recording, read_recording

RNG = np.random.default_rng(0)


def saved(path: Path, array: NDArray[np.generic]) -> Path:
    """Path of a .npy file that holds the array."""
    np.save(path, array)
    return path


def written(path: Path, text: str) -> Path:
    """Path of a text file."""
    path.write_text(text, encoding="utf-8")
    return path


# --- .npy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "read"),
    [("float32", "float32"), ("float64", "float64"), ("int16", "float64"), ("uint8", "float64"), ("bool", "float64")],
)
def test_numbers_keep_their_values(tmp_path: Path, stored: str, read: str) -> None:
    array = np.array([[0, 1], [1, 1], [1, 0]], dtype=stored)
    recording = read_recording(saved(tmp_path / "y.npy", array))
    assert recording.data.dtype == read
    np.testing.assert_array_equal(recording.data[0], array)


def test_missing_entries_stay_missing(tmp_path: Path) -> None:
    array = RNG.normal(size=(30, 4))
    array[3, 1] = array[7] = np.nan
    np.testing.assert_array_equal(read_recording(saved(tmp_path / "y.npy", array)).data[0], array)


def test_a_single_time_bin_is_read(tmp_path: Path) -> None:
    assert read_recording(saved(tmp_path / "y.npy", np.ones((1, 4))), time_axis=0).data.shape == (1, 1, 4)


def test_features_without_names_are_numbered(tmp_path: Path) -> None:
    recording = read_recording(saved(tmp_path / "y.npy", np.ones((30, 2))))
    assert recording.feature_names == ("feature_0", "feature_1")
    assert recording.bin_size is None


# --- .npz ------------------------------------------------------------------------------------------------------------


def test_npz_with_names_and_sampling_rate(tmp_path: Path) -> None:
    array = RNG.normal(size=(3, 30))
    np.savez(tmp_path / "y.npz", eeg=array, fs=160.0, ch_names=np.array(["Fz", "Cz", "Pz"]))
    recording = read_recording(tmp_path / "y.npz")
    np.testing.assert_array_equal(recording.data[0], array.T)
    assert recording.bin_size == pytest.approx(1 / 160)
    assert recording.feature_names == ("Fz", "Cz", "Pz")


def test_the_number_of_names_tells_features_from_time(tmp_path: Path) -> None:
    # Two bins of three channels: by the shape alone the longer axis would be time.
    np.savez(tmp_path / "y.npz", eeg=np.ones((2, 3)), ch_names=np.array(["Fz", "Cz", "Pz"]))
    recording = read_recording(tmp_path / "y.npz")
    assert recording.data.shape == (1, 2, 3)
    assert "axis 1 as features because the file names 3 features" in recording.orientation


@pytest.mark.parametrize(("name", "value", "seconds"), [("bin_s", 0.02, 0.02), ("dt", 0.1, 0.1), ("fs", 50, 0.02)])
def test_bin_size_of_npz(tmp_path: Path, name: str, value: float, seconds: float) -> None:
    np.savez(tmp_path / "y.npz", spikes=np.ones((30, 4)), condition=np.ones(30), **{name: value})
    assert read_recording(tmp_path / "y.npz").bin_size == pytest.approx(seconds)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_bin_size_must_be_positive(tmp_path: Path, value: float) -> None:
    np.savez(tmp_path / "y.npz", spikes=np.ones((30, 4)), fs=value)
    with pytest.raises(ValueError, match="`fs` in .* must be positive and finite"):
        read_recording(tmp_path / "y.npz")


def test_names_that_do_not_fit_are_left_out_with_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", eeg=np.ones((30, 2)), ch_names=np.array(["Fz", "Cz", "Pz"]))
    with pytest.warns(UserWarning, match="names 3 features, but 2 were read"):
        recording = read_recording(tmp_path / "y.npz")
    assert recording.feature_names == ("feature_0", "feature_1")


def test_several_arrays_need_a_key(tmp_path: Path) -> None:
    pcs, velocity = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 2))
    np.savez(tmp_path / "y.npz", pcs=pcs, velocity=velocity)
    with pytest.raises(ValueError, match=r"pass `key` .* pcs \(30, 4\), velocity \(30, 2\)"):
        read_recording(tmp_path / "y.npz")
    with pytest.raises(ValueError, match=r"got key='speed'; it holds: pcs \(30, 4\), velocity \(30, 2\)"):
        read_recording(tmp_path / "y.npz", key="speed")
    np.testing.assert_array_equal(read_recording(tmp_path / "y.npz", key="velocity").data[0], velocity)


def test_an_archive_without_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", names=np.array(["Fz"]))
    with pytest.raises(ValueError, match="no array could be the recording"):
        read_recording(tmp_path / "y.npz")


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "y.npy", objects)
    with pytest.raises(ValueError, match="array of Python objects, which are never unpickled"):
        read_recording(tmp_path / "y.npy")
    np.savez(tmp_path / "y.npz", extra=objects, spikes=np.ones((30, 4)))
    assert read_recording(tmp_path / "y.npz").data.shape == (1, 30, 4)
    with pytest.raises(ValueError, match="array of Python objects, which are never unpickled"):
        read_recording(tmp_path / "y.npz", key="extra")


# --- .csv ------------------------------------------------------------------------------------------------------------


def test_csv_with_header_and_missing_entries(tmp_path: Path) -> None:
    path = written(tmp_path / "y.csv", "left, right\n1,2\n,4\nnan,6\n7,8.5e0\n\n")
    recording = read_recording(path)
    np.testing.assert_array_equal(recording.data[0], [[1, 2], [np.nan, 4], [np.nan, 6], [7, 8.5]])
    assert recording.feature_names == ("left", "right")


def test_csv_without_header(tmp_path: Path) -> None:
    array = RNG.normal(size=(30, 4))
    np.savetxt(tmp_path / "y.csv", array, delimiter=",", fmt="%.18e")
    np.testing.assert_array_equal(read_recording(tmp_path / "y.csv").data[0], array)


def test_csv_of_one_column_keeps_empty_lines_as_missing_bins(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "y.csv", "rate\n1\n\n3\n"))
    np.testing.assert_array_equal(recording.data, [[[1], [np.nan], [3]]])


def test_csv_columns_with_names_are_features_even_if_longer(tmp_path: Path) -> None:
    assert read_recording(written(tmp_path / "y.csv", "a,b,c\n1,2,3\n4,5,6\n")).data.shape == (1, 2, 3)


def test_csv_column_of_times_gives_the_bin_size(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "y.csv", "time,a\n0.00,1\n0.02,2\n0.04,3\n"))
    np.testing.assert_array_equal(recording.data, [[[1], [2], [3]]])
    assert recording.bin_size == pytest.approx(0.02)
    assert recording.feature_names == ("a",)
    assert "Column 'time' was taken as times in seconds" in recording.orientation


def test_csv_row_numbers_are_no_feature(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "y.csv", ",a,index\n0,1,3\n1,2,1\n2,3,2\n"))
    np.testing.assert_array_equal(recording.data, [[[1, 3], [2, 1], [3, 2]]])
    assert recording.feature_names == ("a", "index")
    assert "Column '' counts the rows" in recording.orientation


def test_csv_times_with_gaps_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not evenly spaced"):
        recording = read_recording(written(tmp_path / "y.csv", "t,a\n0,1\n1,2\n5,3\n"))
    assert recording.bin_size is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("a,b\n", "at least one time bin"),
        ("time\n1\n2\n", "at least one time bin and one feature"),
        ("1,2\n3\n", "Row 2 of .* has 1 cells, the rows above it have 2"),
        ("a,b\n1,2\n3,oops\n", "Row 3, column 2 of .* must be a number, got 'oops'"),
        ("1;2\n3;4\n", "separated by commas"),
        ("trial,a\n1,2\n", "a column of trials, but a .csv file holds one recording"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recording(written(tmp_path / "y.csv", text))


# --- .nc -------------------------------------------------------------------------------------------------------------


def netcdf(path: Path, **options: object) -> Path:
    """Path of a .nc file: rates of 3 units over 20 bins in 7 trials, stored as unit x trial x time."""
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
    values = np.arange(420.0).reshape(3, 7, 20)
    coords = {"unit": ["a", "b", "c"], "time": ("time", 0.05 * np.arange(20), {"units": "s"})}
    array = xarray.DataArray(values, dims=("unit", "trial", "time"), coords=coords, name="rates")
    array = array.assign_coords(options)
    array.to_netcdf(path, engine="h5netcdf")
    return path


def test_netcdf_dimensions_are_taken_by_name(tmp_path: Path) -> None:
    recording = read_recording(netcdf(tmp_path / "y.nc"))
    np.testing.assert_array_equal(recording.data, np.arange(420.0).reshape(3, 7, 20).transpose(1, 2, 0))
    assert recording.feature_names == ("a", "b", "c")
    assert recording.bin_size == pytest.approx(0.05)
    assert "axis 2 ('time') as time by its name, axis 1 ('trial') as trials by its name" in recording.orientation


def test_netcdf_axes_asked_for_win_over_names(tmp_path: Path) -> None:
    recording = read_recording(netcdf(tmp_path / "y.nc"), time_axis=1, trials_axis=2)
    np.testing.assert_array_equal(recording.data, np.arange(420.0).reshape(3, 7, 20).transpose(2, 1, 0))


def test_netcdf_time_in_milliseconds(tmp_path: Path) -> None:
    times = ("time", 10.0 * np.arange(20), {"units": "milliseconds"})
    assert read_recording(netcdf(tmp_path / "y.nc", time=times)).bin_size == pytest.approx(0.01)


def test_netcdf_time_without_unit_gives_no_bin_size(tmp_path: Path) -> None:
    assert read_recording(netcdf(tmp_path / "y.nc", time=np.arange(20))).bin_size is None


def test_netcdf_with_several_variables_needs_a_key(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    netcdf(tmp_path / "one.nc")
    with xarray.open_dataset(tmp_path / "one.nc") as dataset:
        dataset.assign(position=(("time", "space"), np.ones((20, 2)))).to_netcdf(tmp_path / "y.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="pass `key` .* rates .*'unit': 3.* position .*'space': 2"):
        read_recording(tmp_path / "y.nc")
    assert read_recording(tmp_path / "y.nc", key="position").data.shape == (1, 20, 2)


def test_netcdf_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pyro-lowrank\[netcdf\]"'):
        read_recording(written(tmp_path / "y.nc", "never opened"))


# --- bad files -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file at .*eeg\.npy"):
        read_recording(tmp_path / "eeg.npy")
    with pytest.raises(FileNotFoundError, match="there is a folder at"):
        read_recording(tmp_path)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in one of \.csv, .* \.nwb, got 'eeg\.edf'"):
        read_recording(written(tmp_path / "eeg.edf", "EDF"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nc"])
@pytest.mark.parametrize(
    "content", [b"", b"time,left\n1,2\n", b"\x80\x04\x95 not a pickle", b"PK\x03\x04", b"\x93NUMPY"]
)
def test_a_foreign_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    if suffix == ".nc":
        pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
    path = tmp_path / f"y{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as .* truncated, damaged or of another format"):
        read_recording(path)


def npz(path: Path) -> Path:
    """Path of a compressed archive of one array."""
    np.savez_compressed(path, y=RNG.normal(size=(300, 4)))
    return path


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("suffix", "write"),
    [(".npy", lambda path: saved(path, RNG.normal(size=(300, 4)))), (".npz", npz), (".nc", netcdf)],
)
def test_a_truncated_file(tmp_path: Path, suffix: str, write: Callable[[Path], Path], kept: float) -> None:
    path = write(tmp_path / f"y{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="cannot be read as .* truncated, damaged or of another format"):
        read_recording(path)


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = npz(tmp_path / "y.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="truncated, damaged"):
        read_recording(path)


def test_a_csv_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="cannot be read as comma-separated text"):
        read_recording(tmp_path / "y.csv")


def test_archive_and_array_under_each_other_s_name(tmp_path: Path) -> None:
    npz(tmp_path / "y.npz").rename(tmp_path / "y.npy")
    with pytest.raises(ValueError, match=r"rename it to end in \.npz"):
        read_recording(tmp_path / "y.npy")
    saved(tmp_path / "z.npy", np.ones((30, 4))).rename(tmp_path / "z.npz")
    with pytest.raises(ValueError, match=r"rename it to end in \.npy"):
        read_recording(tmp_path / "z.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 4, 5)), r"one to three axes \(trials x time x features\), got the shape \(2, 3, 4, 5\)"),
        (np.float64(1.0), r"one to three axes .* got the shape \(\)"),
        (np.ones((0, 4)), r"at least one time bin and one feature, got an array of shape \(0, 4\)"),
        (np.ones((4, 3)) + 1j, "must hold real numbers, got an array of dtype complex128"),
        (np.array([["a", "b"]]), "must hold real numbers, got an array of dtype <U1"),
        (np.full((4, 3), np.nan), "got NaN only"),
        (
            np.array([[1.0, 2.0], [3.0, np.inf], [-np.inf, 4.0]]),
            "2 infinite entries, the first at trial 0, time 1, feature 1",
        ),
    ],
)
def test_arrays_that_are_no_recording(tmp_path: Path, array: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recording(saved(tmp_path / "y.npy", array))


def test_key_for_a_file_of_one_array(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`key` chooses among the arrays of a .npz, .nc, .mat or .nwb file"):
        read_recording(saved(tmp_path / "y.npy", np.ones((30, 4))), key="y")


# --- real recordings -------------------------------------------------------------------------------------------------


def shape_and_bin_size(recording: Recording) -> tuple[tuple[int, ...], float | None]:
    return recording.data.shape, recording.bin_size


def test_real_eeg(shared_data: Path) -> None:
    smoothed = read_recording(shared_data / "eeg_s001r01_smoothed.npy")
    assert shape_and_bin_size(smoothed) == ((1, 9640, 64), None)
    assert smoothed.data.dtype == np.float32
    raw = read_recording(shared_data / "eeg_s001r01_raw.npz")
    assert shape_and_bin_size(raw) == ((1, 9600, 64), 1 / 160)
    assert "Cz" in {name.strip(".") for name in raw.feature_names}


def test_real_spikes(shared_data: Path) -> None:
    reach = read_recording(shared_data / "pmd_reach_2targets.npz")
    assert shape_and_bin_size(reach) == ((1, 142345, 61), 0.001)
    delay = read_recording(shared_data / "pmd_delay_7targets.npz", time_axis=2)
    assert shape_and_bin_size(delay) == ((210, 400, 61), 0.001)
    with pytest.raises(ValueError, match="pass `key`"):
        read_recording(shared_data / "m1_flint_pcs_velocity.npz")
    assert read_recording(shared_data / "m1_flint_pcs_velocity.npz", key="neural_pcs").data.shape == (1, 7792, 10)


def test_trials_of_the_published_tutorial(shared_data: Path) -> None:
    path = shared_data / "tutorial_continuous.npy"
    trials = read_recording(path, time_axis=2)
    np.testing.assert_array_equal(trials.data, np.load(path).transpose(0, 2, 1))
    assert trials.orientation.startswith("3-d array (200, 20, 75): took axis 2 as time as asked, axis 0 as trials")
    assert "pass `time_axis` to override" in read_recording(path).orientation
