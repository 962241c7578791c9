"""Names are names, clocks are clocks and missing entries are missing in tables that other programs wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import Recording, from_xarray, read_recording

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(8, 3))
COUNTS = RNG.poisson(1.0, size=(8, 3))


def read(path: Path, text: str) -> Recording:
    """Recording of a .csv file with this text."""
    path = path / "y.csv"
    path.write_text(text, encoding="utf-8")
    return read_recording(path)


def rows(array: Any, *lines: str) -> str:
    """Text of an array, below some lines."""
    return "\n".join([*lines, *(",".join(map(repr, row)) for row in np.asarray(array).tolist()), ""])


# --- headers ---------------------------------------------------------------------------------------------------------


# Without an index nothing but its author can tell numbers that are names of columns from counts, unless they count.
COLUMNS = [(names, index) for names in (None, [1, 2, 3], ["a", "b", "c"]) for index in (True, False)]
TABLES = [
    (values, *columns) for values in (Y, COUNTS) for columns in [*COLUMNS, ([3, 7, 12], True), ([1.5, 2.5, 9.0], True)]
]


@pytest.mark.parametrize(("values", "columns", "index"), [*TABLES, (Y, [3, 7, 12], False)])
def test_tables_of_pandas(tmp_path: Path, values: Any, columns: Any, index: bool) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(values, columns=columns)
    frame.to_csv(tmp_path / "y.csv", index=index)
    recording = read_recording(tmp_path / "y.csv")
    np.testing.assert_array_equal(recording.data[0], values)
    assert recording.feature_names == tuple(str(name) for name in frame.columns)


def test_the_index_of_pandas_tells_the_time(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(Y, index=0.01 * np.arange(8) + 2)
    frame.to_csv(tmp_path / "y.csv")
    recording = read_recording(tmp_path / "y.csv")
    np.testing.assert_array_equal(recording.data[0], Y)
    assert "its unit is not known: call it `time_s` or `time_ms` for its step, 0.01, to count" in recording.orientation
    frame.index = pandas.date_range("2024-01-01", periods=8, freq="20ms")
    frame.to_csv(tmp_path / "y.csv")
    recording = read_recording(tmp_path / "y.csv")
    np.testing.assert_array_equal(recording.data[0], Y)
    assert recording.bin_size == pytest.approx(0.02)
    frame.index.name = "when"
    frame.to_csv(tmp_path / "y.csv")
    assert read_recording(tmp_path / "y.csv").bin_size == pytest.approx(0.02)


@pytest.mark.parametrize(
    "text",
    [
        rows(Y),
        rows(np.round(Y, 2)),
        rows(COUNTS),
        rows(np.arange(24).reshape(8, 3)),
        rows(np.arange(24.0).reshape(8, 3)),
        ",".join(["", *map(repr, Y[0, 1:].tolist())]) + "\n" + rows(Y[1:]),
        "0,0,0\n" + rows(Y[1:]),
    ],
    ids=["floats", "rounded", "counts", "ramp", "float ramp", "first missing", "zeros first"],
)
def test_numbers_are_no_names(tmp_path: Path, text: str) -> None:
    recording = read(tmp_path, text)
    assert recording.data.shape == (1, 8, 3)
    assert recording.feature_names[0] == "feature_0"


def test_names_that_look_like_numbers_to_python(tmp_path: Path) -> None:
    assert read(tmp_path, rows(Y, "1_1,1_2,2_1")).feature_names == ("1_1", "1_2", "2_1")
    assert read(tmp_path, rows(Y, "# a,b,c")).feature_names == ("a", "b", "c"), "as NumPy's savetxt writes them"
    assert "The first row (0, 1, 2) was taken as names." in read(tmp_path, rows(Y, "0,1,2")).orientation


# --- clocks ----------------------------------------------------------------------------------------------------------

T = np.arange(20)
SIGNALS = RNG.normal(size=(20, 2))


@pytest.mark.parametrize(
    ("name", "times", "seconds"),
    [
        ("Time [s]", 0.01 * T, 0.01),
        ("Time (ms)", 10.0 * T, 0.01),
        ("time_ms", 10 * T, 0.01),
        ("t_us", 10_000 * T, 0.01),
        ("timestamp", 1.7e9 + 0.01 * T, 0.01),
        ("Timestamp", 1_700_000_000_000 + 10 * T, 0.01),
        ("TimeStamps", 5 + 0.01 * T, 0.01),
        ("lsl_time", 5 + 0.01 * T, 0.01),
        ("elapsed seconds", 0.01 * T, 0.01),
        ("T", 0.01 * T, 0.01),
        ("zeit_s", 0.01 * T, 0.01),
        ("Sample Index", T % 8, None),
        ("SampleIndex", 7 + T, None),
        ("frame", 10 * T, None),
        ("Unnamed: 0", T, None),
        ("wrapping", T % 8, None),
        ("x", 0.01 * T, None),
    ],
)
def test_a_clock_is_no_signal(tmp_path: Path, name: str, times: Any, seconds: float | None) -> None:
    recording = read(tmp_path, rows(np.c_[times, SIGNALS].astype(object), f"{name},CH_A,CH_B"))
    np.testing.assert_array_equal(recording.data[0], SIGNALS)
    assert recording.feature_names == ("CH_A", "CH_B")
    assert recording.bin_size == (None if seconds is None else pytest.approx(seconds))
    assert f"Column {name!r}" in recording.orientation
    if seconds:
        assert recording.start_times is not None


def test_the_file_of_a_recorder_with_several_clocks(tmp_path: Path) -> None:
    stamps = 1.7e9 + 0.008 * T
    lines = [
        f"{n % 256},{a!r},{b!r},{t!r},2023-11-14 22:13:{20 + 0.008 * n:06.3f}"
        for n, (a, b), t in zip(250 + T, SIGNALS.tolist(), stamps.tolist(), strict=True)
    ]
    text = "\n".join(["Sample Index,EXG Channel 0,EXG Channel 1,Timestamp,Timestamp (Formatted)", *lines])
    recording = read(tmp_path, text)
    np.testing.assert_array_equal(recording.data[0], SIGNALS)
    assert recording.feature_names == ("EXG Channel 0", "EXG Channel 1")
    assert recording.bin_size == pytest.approx(0.008)


def test_a_clock_without_a_name(tmp_path: Path) -> None:
    recording = read(tmp_path, rows(np.c_[0.01 * T, SIGNALS]))
    np.testing.assert_array_equal(recording.data[0], SIGNALS)
    assert (
        "The first column rises by the same step in every row, as times do, and was left out" in recording.orientation
    )
    np.save(tmp_path / "y.npy", np.c_[0.01 * T, SIGNALS])
    with pytest.warns(
        UserWarning, match="In .* feature 'feature_0' rises by the same step in every time bin, as times do"
    ):
        assert read_recording(tmp_path / "y.npy").data.shape == (1, 20, 3)


@pytest.mark.parametrize("name", ["reaction time", "T7", "N1", "sample", "count", "datum", "seconds", "I"])
def test_a_signal_is_no_clock(tmp_path: Path, name: str) -> None:
    text = rows(np.c_[SIGNALS, RNG.normal(size=20)], f"a,{name},c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, text).feature_names == ("a", name, "c")


def test_times_that_run_backwards_or_in_no_order_are_sorted(tmp_path: Path) -> None:
    table = np.c_[3 + 0.01 * T, SIGNALS]
    for order, said in (
        (T[::-1], "Time ran backwards"),
        (RNG.permutation(20), "not in the order of time, and were sorted"),
    ):
        recording = read(tmp_path, rows(table[order], "time,a,b"))
        np.testing.assert_array_equal(recording.data[0], SIGNALS)
        assert said in recording.orientation
        assert recording.bin_size == pytest.approx(0.01)
        assert recording.start_times == pytest.approx([3.0])
    uneven = np.c_[np.cumsum(RNG.uniform(0.1, 1, 20)), SIGNALS]
    with pytest.warns(UserWarning, match="not evenly spaced"):
        np.testing.assert_array_equal(read(tmp_path, rows(uneven[::-1], "time,a,b")).data[0], SIGNALS)


def test_times_that_start_again_are_told(tmp_path: Path) -> None:
    table = np.c_[np.tile(0.01 * T, 3), np.tile(SIGNALS, (3, 1))]
    for name in ("time", "lsl_time"):
        with pytest.warns(
            UserWarning, match=r"go back 2 times, first after row 19 \(from 0.19 to 0 s\): were recordings"
        ):
            recording = read(tmp_path, rows(table, f"{name},a,b"))
        assert recording.feature_names == ("a", "b")
        assert recording.bin_size is None


def test_a_rate_that_contradicts_the_times_is_told() -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    coords = {"time": ("time", 0.01 * T, {"units": "s"})}
    array = xarray.DataArray(SIGNALS, dims=("time", "unit"), coords=coords, attrs={"fs": 500})
    with pytest.warns(UserWarning, match=r"it states 0.002 s per bin \(500 Hz\), and its times are 0.01 s apart"):
        assert from_xarray(array).bin_size == 0.002
    milliseconds = array.assign_coords(time=("time", 2.0 * T, {"units": "s"}))
    with pytest.warns(UserWarning, match="Are the times in milliseconds"):
        from_xarray(milliseconds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_xarray(array.assign_attrs(fs=100)).bin_size == pytest.approx(0.01)
        backwards = from_xarray(array.assign_attrs(fs=100)[::-1])
    np.testing.assert_array_equal(backwards.data[0], SIGNALS)
    assert "Time ran backwards" in backwards.orientation


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["a,b,c,\n", "a,b,c\n", ""])
def test_a_comma_at_the_end_of_each_row(tmp_path: Path, header: str) -> None:
    recording = read(tmp_path, header + rows(Y).replace("\n", ",\n"))
    np.testing.assert_array_equal(recording.data[0], Y)
    assert recording.feature_names == (("a", "b", "c") if header else ("feature_0", "feature_1", "feature_2"))
    np.testing.assert_array_equal(read(tmp_path, rows(Y, "a,b,c,")).data[0], Y)
    dead = read(tmp_path, rows(Y, "a,b,c").replace("\n", ",\n").replace("a,b,c,", "a,b,c,dead"))
    assert dead.feature_names == ("a", "b", "c", "dead"), "a channel with a name stays, if it has no entry"


@pytest.mark.parametrize("word", ["NA", "N/A", "nan", "NaN", "null", "None", "<NA>", "", " "])
def test_a_missing_entry_first_in_a_file_without_names(tmp_path: Path, word: str) -> None:
    recording = read(tmp_path, f"{word},0.1,0.2\n" + rows(Y[1:]))
    np.testing.assert_array_equal(recording.data[0, 1:], Y[1:])
    np.testing.assert_array_equal(recording.data[0, 0], [np.nan, 0.1, 0.2])
    assert recording.feature_names[0] == "feature_0"


# --- arrays with times and rates beside them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("Fs", 50), ("SamplingRate", [50.0]), ("srate", np.full(3, 50.0)), ("sfreq", 50), ("bin_size", 0.02)],
)
def test_rates_by_any_of_their_names(tmp_path: Path, name: str, value: Any) -> None:
    np.savez(tmp_path / "y.npz", y=SIGNALS, **{name: value})
    assert read_recording(tmp_path / "y.npz").bin_size == pytest.approx(0.02)


@pytest.mark.parametrize("value", ["100 Hz", [100.0, 200.0], np.array([])])
def test_a_rate_that_is_no_number_is_told(tmp_path: Path, value: Any) -> None:
    np.savez(tmp_path / "y.npz", y=SIGNALS, fs=value)
    with pytest.warns(UserWarning, match="`fs` in .* is not one number, and was left out"):
        assert read_recording(tmp_path / "y.npz").bin_size is None


def test_times_beside_an_array_tell_its_axis_and_its_bins(tmp_path: Path) -> None:
    wide = RNG.normal(size=(30, 20))
    np.savez(tmp_path / "y.npz", eeg=wide, t=0.01 * T)
    recording = read_recording(tmp_path / "y.npz")
    np.testing.assert_array_equal(recording.data[0], wide.T)
    assert "axis 1 as time because the file holds 20 times" in recording.orientation
    assert "t was taken as times in seconds." in recording.orientation
    assert recording.bin_size == pytest.approx(0.01)
    np.savez(tmp_path / "y.npz", rate=SIGNALS[:, 0], time_ms=10 * T[::-1])
    recording = read_recording(tmp_path / "y.npz")
    np.testing.assert_array_equal(recording.data[0, :, 0], SIGNALS[::-1, 0])
    assert recording.bin_size == pytest.approx(0.01)


def test_xarray_dimensions_by_words_and_by_coordinates() -> None:
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    array = RNG.normal(size=(30, 20))
    for dims in (("unit_id", "time_bin"), ("nUnits", "TimeBins"), ("channel (uV)", "x")):
        coords = {dims[1]: (dims[1], 0.01 * T, {"units": "s"})}
        recording = from_xarray(xarray.DataArray(array, dims=dims, coords=coords))
        np.testing.assert_array_equal(recording.data[0], array.T)
        assert recording.bin_size == pytest.approx(0.01)
    dated = xarray.DataArray(
        array, dims=("a", "b"), coords={"b": np.datetime64("2024-01-01") + T * np.timedelta64(20, "ms")}
    )
    assert from_xarray(dated).data.shape == (1, 20, 30)
    assert from_xarray(dated).bin_size == pytest.approx(0.02)


def test_what_pandas_writes_of_rows_that_were_chosen(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(COUNTS)
    for chosen in ([5, 2, 7, 0], [1, 4, 6, 7]):
        frame.iloc[chosen].to_csv(tmp_path / "y.csv")
        recording = read_recording(tmp_path / "y.csv")
        np.testing.assert_array_equal(recording.data[0], COUNTS[chosen])
        assert "Column '' has no name and was left out" in recording.orientation
    pandas.DataFrame(COUNTS, columns=[0, 0, 1]).to_csv(tmp_path / "y.csv")
    assert read_recording(tmp_path / "y.csv").feature_names == ("0", "0", "1")
    levels = pandas.MultiIndex.from_tuples([(0, 0), (0, 1), (1, 0)])
    pandas.DataFrame(COUNTS, columns=levels).to_csv(tmp_path / "y.csv")
    with pytest.raises(ValueError, match="several rows of names; write it with one"):
        read_recording(tmp_path / "y.csv")


def test_names_that_are_stored_as_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", y=SIGNALS, ch_names=np.array([b"Fz", b"Cz"]))
    assert read_recording(tmp_path / "y.npz").feature_names == ("Fz", "Cz")
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    array = xarray.DataArray(SIGNALS, dims=("time", "unit"), coords={"unit": np.array([b"Fz", b"Cz"])})
    assert from_xarray(array).feature_names == ("Fz", "Cz")


def test_a_clock_in_another_place_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="feature 'lsl' rises by the same step in every time bin"):
        read(tmp_path, rows(np.c_[SIGNALS, 0.01 * T], "CH_A,CH_B,lsl"))
    np.savez(tmp_path / "y.npz", y=np.c_[SIGNALS, T], fs=100.0)
    with pytest.warns(UserWarning, match="feature 'feature_2' rises by the same step in every time bin"):
        read_recording(tmp_path / "y.npz")
    with pytest.warns(UserWarning, match="The first row, 0, 1, was read as numbers; if these are names"):
        assert read(tmp_path, rows(COUNTS[:, :2], "0,1")).data.shape == (1, 9, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.save(tmp_path / "y.npy", np.arange(40.0).reshape(20, 2))
        read_recording(tmp_path / "y.npy")


# --- what other programs write ---------------------------------------------------------------------------------------


def test_names_of_rows_without_a_name_are_no_feature(tmp_path: Path) -> None:
    recording = read(tmp_path, '"a","b"\n"1",0.5,7.5\n"2",2.5,1.5\n"3",1.5,2.5\n')
    assert recording.feature_names == ("a", "b")
    np.testing.assert_array_equal(recording.data[0], [[0.5, 7.5], [2.5, 1.5], [1.5, 2.5]])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\n0,126\n-1,250\n3,020\n", "has 1 names, and those below it have 2"),
        ("0,26\n-1,05\n3,02\n", "commas in its numbers, such as 0,26"),
        ("a;b\n0,26;1\n-1,05;2\n", "separated by semicolons"),
        (",,a\n0,0,1.5\n0,1,2.5\n1,0,3.5\n1,1,4.5\n", "several columns of row numbers"),
        ("time,unit,value\n" + "".join(f"0.{t},{u},{t + u}.5\n" for t in range(4) for u in range(3)), "pivot it"),
    ],
    ids=["decimal-commas", "decimal-commas-without-names", "semicolons", "two-indices", "a-row-per-entry"],
)
def test_what_would_be_read_as_other_features_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(tmp_path, text)


@pytest.mark.parametrize("first", [20240101, 45000, 739000.5])
def test_numbers_of_dates_are_no_seconds(tmp_path: Path, first: float) -> None:
    recording = read(tmp_path, rows([[first + day, day**2 / 7] for day in range(9)], "date,y"))
    assert recording.feature_names == ("y",)
    assert recording.bin_size is None
    assert recording.start_times is None
    assert "taken as dates, whose unit is not known" in recording.orientation


def test_three_numbers_that_may_be_names_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"The first row, 0\.5, 1\.5, 2\.5, was read as numbers"):
        assert read(tmp_path, rows(Y, "0.5,1.5,2.5")).data.shape == (1, 9, 3)
