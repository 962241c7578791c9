"""MATLAB files of every kind of variable: what was written is read, or named with what it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyro_lowrank.data import Recording, bin_spikes, read_recording
from pyro_lowrank.data import mat5 as format5
from tests.data.builders import random_spikes
from tests.data.test_files import cells, mat, mat73, two_dims

RNG = np.random.default_rng(0)
BOTH = pytest.mark.parametrize("write", [mat, mat73])


def grid(rows: int, columns: int, stop: float = 1.0, offsets: Any = None, seed: int = 0) -> NDArray[Any]:
    """A cell array of spike times, each cell from 0 to `stop`, or from the offset of its row on."""
    trains = random_spikes(rows * columns, stop, seed=seed)
    array = np.empty((rows, columns), dtype=object)
    for place, train in zip(np.ndindex(rows, columns), trains, strict=True):
        array[place] = train + (0.0 if offsets is None else offsets[place[0]])
    return array


def counts(array: NDArray[Any], bin_size: float, stop: float) -> NDArray[np.float64]:
    """Counts of a cell array of trials x units, `trials x time x units`."""
    edges = bin_size * np.arange(round(stop / bin_size) + 1)
    return np.array([[np.histogram(cell, edges)[0] for cell in row] for row in array]).transpose(0, 2, 1)


def binned(path: Path, **options: Any) -> Recording:
    """The recording of a file of spikes, in bins of 50 ms."""
    return read_recording(path, bin_size=0.05, **options)


# --- cells of spike times --------------------------------------------------------------------------------------------


def test_cells_of_trials_and_units_ask_which_is_which(tmp_path: Path) -> None:
    array = grid(10, 5)
    path = mat(tmp_path / "y.mat", spikes=array)
    with pytest.raises(
        ValueError, match="10 x 5, which may be trials x units or channels x units: pass `trials_axis=0`"
    ):
        binned(path)
    for options, stored in (({"trials_axis": 0}, array), ({"trials_axis": -1}, array.T)):
        recording = binned(mat(tmp_path / "z.mat", spikes=stored), **options)
        np.testing.assert_array_equal(recording.data, counts(array, 0.05, 1.0))
        assert recording.feature_names == ("unit_0", "unit_1", "unit_2", "unit_3", "unit_4")
        assert "was taken as trials, each with spike times since its begin. The file does not tell how long" in (
            recording.orientation
        )
    part = binned(path, trials_axis=0, epochs=(0.0, 0.5))
    np.testing.assert_array_equal(part.data, counts(array, 0.05, 0.5))
    with pytest.raises(ValueError, match="one begin and end for all of them, or one for each, got 2"):
        binned(path, trials_axis=0, epochs=[(0, 1), (1, 2)])


def test_names_tell_trials_from_units(tmp_path: Path) -> None:
    array = grid(10, 5)
    names = cells("a", "b", "c", "d", "e")
    recording = binned(mat(tmp_path / "y.mat", spikes=array, unit_names=names))
    np.testing.assert_array_equal(recording.data, counts(array, 0.05, 1.0))
    assert recording.feature_names == ("a", "b", "c", "d", "e")
    recording = binned(mat(tmp_path / "y.mat", spikes=array.T, unit_names=names))
    np.testing.assert_array_equal(recording.data, counts(array, 0.05, 1.0))


@BOTH
def test_epochs_tell_trials_from_channels(tmp_path: Path, write: Any) -> None:
    if write is mat73:
        write = mat73_grid
    starts = 3.0 + 2.0 * np.arange(10)
    epochs = np.c_[starts, starts + 1.0]
    expected = counts(grid(10, 5), 0.05, 1.0)
    for array in (grid(10, 5), grid(10, 5, offsets=starts)):
        recording = binned(write(tmp_path / "y.mat", spikes=array, epochs=epochs))
        # On the clock of the session a spike may lie a rounding error beyond the edge that it stands on.
        assert np.abs(recording.data - expected).sum() <= 2
        assert recording.start_times is not None
        assert recording.start_times.tolist() == starts.tolist()
    # Channels x units, on the clock of the session.
    session = grid(4, 3, stop=30.0)
    recording = binned(write(tmp_path / "y.mat", spikes=session, epochs=epochs))
    np.testing.assert_array_equal(recording.data, bin_spikes(list(session.flat), bin_size=0.05, epochs=epochs).data)
    assert recording.feature_names[:4] == ("unit_0_0", "unit_0_1", "unit_0_2", "unit_1_0")
    assert "The 4 x 3 cells were taken as a unit each." in recording.orientation
    session = grid(10, 3, stop=30.0)
    assert binned(write(tmp_path / "y.mat", spikes=session, epochs=epochs)).data.shape == (10, 20, 30)


def mat73_grid(path: Path, spikes: NDArray[Any], **variables: Any) -> Path:
    """Path of a MATLAB file of version 7.3 with a cell array of two axes."""
    h5py = pytest.importorskip("h5py", reason="the extra `matlab` is not installed")
    mat73(path, **variables)
    with h5py.File(path, "r+") as file:
        references = np.empty(spikes.shape[::-1], dtype=h5py.ref_dtype)
        for row, column in np.ndindex(spikes.shape):
            stored = file.create_dataset(f"#refs#/s{row}_{column}", data=two_dims(spikes[row, column]).T)
            stored.attrs["MATLAB_class"] = np.bytes_("double")
            references[column, row] = stored.ref
        file.create_dataset("spikes", data=references).attrs["MATLAB_class"] = np.bytes_("cell")
    return path


def test_cells_of_cells_are_trials_of_units(tmp_path: Path) -> None:
    array = grid(10, 5)
    nested = cells(*(cells(*row) for row in array))
    recording = binned(mat(tmp_path / "y.mat", spikes=nested), trials_axis=0)
    np.testing.assert_array_equal(recording.data, counts(array, 0.05, 1.0))
    with pytest.raises(ValueError, match="pass `trials_axis=0`"):
        binned(tmp_path / "y.mat")
    with pytest.raises(
        ValueError, match=r"must be a list of units, or trials x units, got \(3,\) of cells \[\(2,\), \(5,"
    ):
        binned(mat(tmp_path / "z.mat", spikes=cells(nested[0], nested[1][:2], nested[2])))


@BOTH
def test_one_cell_is_one_unit_or_one_trial(tmp_path: Path, write: Any) -> None:
    train = random_spikes(1, 12.0)[0]
    recording = binned(write(tmp_path / "y.mat", seq=cells(train)), epochs=(0, 12))
    np.testing.assert_array_equal(recording.data, bin_spikes([train], bin_size=0.05, epochs=(0, 12)).data)
    trial = RNG.normal(size=(40, 3))
    np.testing.assert_array_equal(read_recording(write(tmp_path / "z.mat", seq=cells(trial))).data[0], trial)


@BOTH
def test_vectors_that_do_not_rise_are_trials_of_one_feature(tmp_path: Path, write: Any) -> None:
    trials = [RNG.normal(size=n) for n in (30, 40)]
    recording = read_recording(write(tmp_path / "y.mat", lfp=cells(*trials)))
    assert recording.trial_lengths.tolist() == [30, 40]
    np.testing.assert_array_equal(recording.trials()[1][:, 0], trials[1])


@BOTH
def test_units_of_one_name_are_all_kept(tmp_path: Path, write: Any) -> None:
    trains = [np.sort(RNG.uniform(0, 12, n)) for n in (20, 40, 60, 80)]
    path = write(tmp_path / "y.mat", spikes=cells(*trains), unit_names=cells("0", "1", "0", "1"))
    recording = binned(path, epochs=(0, 12))
    assert recording.data.sum((0, 1)).tolist() == [20, 40, 60, 80]
    assert recording.feature_names == ("0", "1", "0_2", "1_2")
    with pytest.warns(UserWarning, match="names 2 units, but 4 were read; the names are left out"):
        recording = binned(write(tmp_path / "z.mat", spikes=cells(*trains), unit_names=cells("a", "b")), epochs=(0, 12))
    assert recording.feature_names == ("unit_0", "unit_1", "unit_2", "unit_3")


@BOTH
def test_a_spike_that_is_no_number_is_named(tmp_path: Path, write: Any) -> None:
    trains = [np.array([0.5, 1.0]), np.array([0.1, np.nan, np.nan])]
    path = write(tmp_path / "y.mat", spikes=cells(*trains), unit_names=cells("a", "b"))
    with pytest.raises(ValueError, match="Spike times of unit b must be finite, got nan at index 1 and 1 others"):
        binned(path)


# --- begins and ends of trials ---------------------------------------------------------------------------------------

TRAINS = random_spikes(3, 30.0)
STARTS = 1.0 + 2.5 * np.arange(10)
EPOCHS = np.c_[STARTS, STARTS + 2.0]


@BOTH
def test_begins_and_ends_either_way_round(tmp_path: Path, write: Any) -> None:
    expected = bin_spikes(TRAINS, bin_size=0.05, epochs=EPOCHS).data
    for stored in (EPOCHS, EPOCHS.T):
        recording = binned(write(tmp_path / "y.mat", spikes=cells(*TRAINS), epochs=stored))
        np.testing.assert_array_equal(recording.data, expected)
    two = EPOCHS[:2]
    for stored in (two, np.array([[9.0, 1.0], [11.0, 3.0]])):
        recording = binned(write(tmp_path / "y.mat", spikes=cells(*TRAINS), trials=stored))
        assert recording.trial_lengths.tolist() == [40, 40]
    one = binned(write(tmp_path / "y.mat", spikes=cells(*TRAINS), intervals=EPOCHS[:1]))
    np.testing.assert_array_equal(one.data, expected[:1])


def test_begins_and_ends_by_words_in_their_name_and_what_was_not_used(tmp_path: Path) -> None:
    expected = bin_spikes(TRAINS, bin_size=0.05, epochs=EPOCHS).data
    for name in ("trial_times", "EpochTimes"):
        path = mat(tmp_path / "y.mat", **{"spikes": cells(*TRAINS), name: EPOCHS})
        np.testing.assert_array_equal(binned(path).data, expected)
    recording = binned(mat(tmp_path / "z.mat", spikes=cells(*TRAINS), go_cue=STARTS, num_trials=10.0))
    assert recording.num_trials == 1
    assert " Not used: go_cue (10,), num_trials (1,). The file has no trials" in recording.orientation


def test_cells_of_two_axes_that_hold_trials_are_told(tmp_path: Path) -> None:
    array = np.empty((2, 3), dtype=object)
    trials = RNG.normal(size=(6, 20, 4))
    for place, trial in zip(np.ndindex(2, 3), trials, strict=True):
        array[place] = trial
    recording = read_recording(mat(tmp_path / "y.mat", x=array))
    np.testing.assert_array_equal(recording.data, trials)
    assert "2 x 3 cells were taken as 6 trials, row by row." in recording.orientation


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            {"start": STARTS, "stop": STARTS + 2},
            r"`trials` in the file, struct with fields start, stop \(1, 1\), is not",
        ),
        (
            np.ones((10, 3)),
            r"`trials` in the file, numbers \(10, 3\), is not begins and ends in seconds, trials x 2; pass",
        ),
        (STARTS, r"`trials` in the file, numbers \(10,\), is not"),
        (10.0, r"`trials` in the file, numbers \(1,\), is not"),
        (cells("a", "b"), r"`trials` in the file, cell \(2,\), is not"),
    ],
)
def test_trials_of_another_form_are_told(tmp_path: Path, value: Any, told: str) -> None:
    path = mat(tmp_path / "y.mat", spikes=cells(*TRAINS), trials=value)
    with pytest.raises(ValueError, match=told):
        binned(path, key="spikes")
    assert binned(path, key="spikes", epochs=EPOCHS).data.shape == (10, 40, 3)


# --- other variables -------------------------------------------------------------------------------------------------


def test_structs_are_named_and_their_fields_read(tmp_path: Path) -> None:
    eeg = RNG.normal(size=(3, 200))
    inner = {"data": eeg, "srate": 100.0, "chanlocs": {"labels": "Cz"}, "ch_names": cells("a", "b", "c")}
    path = mat(tmp_path / "y.mat", EEG=inner, note="x")
    with pytest.raises(
        ValueError,
        match=r"It holds: EEG struct with fields data, srate, chanlocs, ch_names \(1, 1\), .*`key='struct.fi",
    ):
        read_recording(path)
    recording = read_recording(path, key="EEG.data")
    np.testing.assert_array_equal(recording.data[0], eeg.T)
    assert recording.bin_size == pytest.approx(0.01)
    assert recording.feature_names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"got key='EEG.datum'; it holds: .* EEG.data \(3, 200\)"):
        read_recording(path, key="EEG.datum")


def test_structs_of_version_73(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `matlab` is not installed")
    path = mat73(tmp_path / "y.mat", note=np.ones(1))
    eeg = RNG.normal(size=(3, 200))
    with h5py.File(path, "r+") as file:
        file.create_dataset("EEG/data", data=eeg.T)
        file["EEG"].create_dataset("srate", data=[[100.0]])
    with pytest.raises(ValueError, match=r"EEG struct with fields data, srate \(1, 1\), EEG.data \(3, 200\)"):
        read_recording(path)
    recording = read_recording(path, key="EEG.data")
    np.testing.assert_array_equal(recording.data[0], eeg.T)
    assert recording.bin_size == pytest.approx(0.01)


def test_sparse_counts_are_read(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="the extra `matlab` is not installed")
    h5py = pytest.importorskip("h5py", reason="the extra `matlab` is not installed")
    counts = RNG.poisson(0.05, size=(300, 4)).astype(float)
    np.testing.assert_array_equal(read_recording(mat(tmp_path / "y.mat", s=sparse.csc_matrix(counts))).data[0], counts)
    path = mat73(tmp_path / "z.mat")
    stored = sparse.csc_matrix(counts)
    with h5py.File(path, "r+") as file:
        for name, values in (("data", stored.data), ("ir", stored.indices), ("jc", stored.indptr)):
            file.create_dataset(f"s/{name}", data=values)
        file["s"].attrs["MATLAB_sparse"] = np.uint64(300)
    np.testing.assert_array_equal(read_recording(path).data[0], counts)


def test_strings_of_version_73_are_no_names(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `matlab` is not installed")
    path = mat73(tmp_path / "y.mat", y=RNG.normal(size=(30, 6)))
    with h5py.File(path, "r+") as file:
        stored = file.create_dataset("ch_names", data=np.array([[3707764736, 2, 1, 1, 1, 1]], dtype=np.uint32))
        stored.attrs["MATLAB_class"] = np.bytes_("string")
        stored.attrs["MATLAB_object_decode"] = np.int32(3)
    with pytest.warns(UserWarning, match=r"ch_names in .*, MATLAB object \(string\) .*, cannot be read as names"):
        recording = read_recording(path)
    assert recording.feature_names[0] == "feature_0"
    with pytest.raises(ValueError, match=r"it holds: .*ch_names MATLAB object \(string\)"):
        read_recording(path, key="ch_names")


def test_numbers_as_names_and_complex_numbers(tmp_path: Path) -> None:
    y = RNG.normal(size=(30, 3))
    path = mat(tmp_path / "y.mat", y=y, unit_names=np.array([4.0, 7.0, 9.0]), z=np.ones((4, 4)) * 1j)
    assert read_recording(path).feature_names == ("4", "7", "9")
    with pytest.raises(ValueError, match=r"got key='z'; it holds: .*z complex numbers \(4, 4\)"):
        read_recording(path, key="z")


# --- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_every_kind_of_variable_is_what_scipy_reads(tmp_path: Path, compressed: bool) -> None:
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    path = tmp_path / "y.mat"
    variables: dict[str, Any] = {
        f"{kind}_{len(shape)}": RNG.integers(0, 100, size=shape).astype(kind)
        for kind in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "bool")
        for shape in ((3,), (3, 4), (2, 3, 4), (0, 3))
    }
    variables |= {"word": "häß", "words": np.array(["ab", "cd", "ef"]), "cell": grid(2, 3), "empty": cells()}
    io.savemat(path, variables, do_compression=compressed)
    expected = io.loadmat(path)
    found = format5.variables_of(path)
    assert set(found) == set(variables)
    for name, one in found.items():
        value = one.read()
        if one.kind == "cell":
            for mine, other in zip(value.flat, expected[name].flat, strict=True):
                np.testing.assert_array_equal(mine, other)
        else:
            np.testing.assert_array_equal(value, expected[name])
            assert one.shape == expected[name].shape or one.kind == "words"


def test_files_of_version_4(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    y = RNG.normal(size=(30, 3))
    io.savemat(tmp_path / "y.mat", {"y": y, "fs": 100.0}, format="4")
    recording = read_recording(tmp_path / "y.mat")
    np.testing.assert_array_equal(recording.data[0], y)
    assert recording.bin_size == pytest.approx(0.01)


def test_key_reads_no_other_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mat(tmp_path / "y.mat", a=RNG.normal(size=(30, 3)), b=RNG.normal(size=(1000, 30)), c=grid(3, 4))
    read: list[Any] = []
    original = format5._value
    monkeypatch.setattr(format5, "_value", lambda *args: (read.append(len(args[1])), original(*args))[1])
    read_recording(path, key="a")
    assert len(read) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_recording(path, key="b")
