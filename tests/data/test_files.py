"""NWB and MATLAB files, written with the libraries of their fields, are read as what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyro_lowrank.data import bin_spikes, read_recording
from tests.data.builders import nwb_file, random_spikes

TRAINS = random_spikes(3, 12.0)
TRIALS = [(0.5, 2.5, "left"), (3.0, 6.01, "right"), (7.0, 9.0, "left")]
EPOCHS = [trial[:2] for trial in TRIALS]


def cells(*arrays: Any) -> NDArray[Any]:
    """A cell array."""
    array = np.empty(len(arrays), dtype=object)
    for index, one in enumerate(arrays):
        array[index] = one
    return array


def mat(path: Path, **variables: Any) -> Path:
    """Path of a MATLAB file of version 5."""
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    io.savemat(path, variables)
    return path


def mat73(path: Path, **variables: Any) -> Path:
    """Path of a MATLAB file of version 7.3, as MATLAB lays it out in HDF5: dims reversed, cells as references."""
    h5py = pytest.importorskip("h5py", reason="the extra `matlab` is not installed")
    pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if isinstance(value, np.ndarray) and value.dtype == object:
                references = np.empty((len(value), 1), dtype=h5py.ref_dtype)
                for index, cell in enumerate(value):
                    stored = file.create_dataset(f"#refs#/{name}{index}", data=two_dims(cell).T)
                    stored.attrs["MATLAB_class"] = np.bytes_("char" if isinstance(cell, str) else "double")
                    references[index, 0] = stored.ref
                file.create_dataset(name, data=references).attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                file.create_dataset(name, data=two_dims(value).T).attrs["MATLAB_class"] = np.bytes_("double")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM"
    with path.open("r+b") as opened:
        opened.write(header.ljust(512, b"\x00"))
    return path


def two_dims(value: Any) -> NDArray[Any]:
    """A value as MATLAB has it, with two dims at least."""
    array = np.array([ord(c) for c in value], dtype=np.uint16) if isinstance(value, str) else np.asarray(value)
    return array if array.ndim > 1 else array.reshape(1, -1)


# --- NWB -------------------------------------------------------------------------------------------------------------


def test_nwb_units_are_binned_in_its_trials(tmp_path: Path) -> None:
    recording = read_recording(nwb_file(tmp_path / "y.nwb", TRAINS, TRIALS), bin_size=0.02)
    expected = bin_spikes(TRAINS, bin_size=0.02, epochs=EPOCHS)
    np.testing.assert_array_equal(recording.data, expected.data)
    assert recording.trial_lengths.tolist() == [100, 150, 100]
    assert recording.feature_names == ("100", "101", "102")
    assert recording.trial_names == ("trial_0", "trial_1", "trial_2")
    assert recording.conditions is not None
    assert recording.conditions.tolist() == ["left", "right", "left"]
    assert recording.start_times is not None
    assert recording.start_times.tolist() == [0.5, 3.0, 7.0]
    assert recording.orientation.startswith("Spikes of 3 units in 3 epochs; ")


def test_nwb_epochs_of_ones_own(tmp_path: Path) -> None:
    path = nwb_file(tmp_path / "y.nwb", TRAINS, TRIALS)
    recording = read_recording(path, bin_size=0.1, epochs=(0, 12))
    np.testing.assert_array_equal(recording.data, bin_spikes(TRAINS, bin_size=0.1, epochs=(0, 12)).data)
    assert recording.conditions is None
    with pytest.raises(ValueError, match="`conditions` must name a column .* got 'target'; it has condition"):
        read_recording(path, bin_size=0.1, conditions="target")


def test_nwb_without_trials_is_one_epoch_of_all_spikes(tmp_path: Path) -> None:
    recording = read_recording(nwb_file(tmp_path / "y.nwb", TRAINS), bin_size=0.02)
    assert recording.data.shape[0] == 1
    assert recording.data.sum((0, 1)).tolist() == [len(train) for train in TRAINS]
    assert "The file has no trials: one epoch from the first spike to the last." in recording.orientation


def test_nwb_units_are_missing_when_they_were_not_observed(tmp_path: Path) -> None:
    observed = [np.array([[0.0, 12.0]]), np.array([[0.0, 1.0], [1.0, 2.0], [7.5, 9.0]]), np.array([[3.0, 4.01]])]
    recording = read_recording(nwb_file(tmp_path / "y.nwb", TRAINS, TRIALS, observed), bin_size=0.02)
    full = bin_spikes(TRAINS, bin_size=0.02, epochs=EPOCHS)
    seen = recording.mask
    assert (seen[..., 0] == full.mask[..., 0]).all()
    assert np.flatnonzero(seen[0, :, 1]).tolist() == list(range(75)), "intervals that touch are one"
    assert np.flatnonzero(seen[2, :, 1]).tolist() == list(range(25, 100))
    assert np.flatnonzero(seen[1, :, 2]).tolist() == list(range(50)), "a bin seen in part is missing"
    np.testing.assert_array_equal(recording.data[seen], full.data[seen])
    assert f"{full.mask.sum() - seen.sum()} entries are missing" in recording.orientation


def test_nwb_without_units(tmp_path: Path) -> None:
    path = nwb_file(tmp_path / "y.nwb", [], TRIALS, series=np.arange(60).reshape(30, 2))
    with pytest.raises(ValueError, match="holds no units with spike times; pass `key` .*: acquisition/lfp|: lfp"):
        read_recording(path, bin_size=0.02)
    recording = read_recording(path, key="lfp")
    np.testing.assert_allclose(recording.data[0], 1e-6 * np.arange(60).reshape(30, 2))
    assert (recording.bin_size, recording.feature_units) == (0.01, ("volts", "volts"))
    with pytest.raises(ValueError, match=r"got key='eeg'; it holds: .*lfp \(30, 2\)"):
        read_recording(path, key="eeg")
    with pytest.raises(ValueError, match="`epochs` is for spike times"):
        read_recording(path, key="lfp", epochs=(0, 1))
    with pytest.raises(ValueError, match=r"holds no units with spike times; it has no series\."):
        read_recording(nwb_file(tmp_path / "empty.nwb", []), bin_size=0.02)


def test_nwb_needs_a_bin_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"have to be binned: pass `bin_size` in seconds, .* `--bin 0\.02`"):
        read_recording(nwb_file(tmp_path / "y.nwb", TRAINS, TRIALS))


def test_nwb_with_a_table_of_no_trials(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a session without trials holds nothing to fit"):
        read_recording(nwb_file(tmp_path / "y.nwb", TRAINS, []), bin_size=0.02)


# --- MATLAB ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [mat, mat73])
def test_mat_array_with_names_and_sampling_rate(tmp_path: Path, write: Any) -> None:
    eeg = np.random.default_rng(0).normal(size=(2, 30))
    recording = read_recording(write(tmp_path / "y.mat", eeg=eeg, fs=50.0, ch_names=cells("Fz", "Cz")))
    np.testing.assert_array_equal(recording.data[0], eeg.T)
    assert recording.feature_names == ("Fz", "Cz")
    assert recording.bin_size == pytest.approx(0.02)


@pytest.mark.parametrize("write", [mat, mat73])
def test_mat_arrays_of_three_dims_and_a_key(tmp_path: Path, write: Any) -> None:
    rates = np.random.default_rng(0).normal(size=(4, 30, 2))
    path = write(tmp_path / "y.mat", rates=rates, other=np.ones((5, 6)))
    np.testing.assert_array_equal(read_recording(path, key="rates").data, rates)
    with pytest.raises(ValueError, match=r"pass `key` .* rates \(4, 30, 2\)"):
        read_recording(path)


@pytest.mark.parametrize("write", [mat, mat73])
@pytest.mark.parametrize("turned", [False, True])
def test_mat_cells_of_ragged_trials(tmp_path: Path, write: Any, turned: bool) -> None:
    trials = [np.random.default_rng(n).normal(size=(n, 3)) for n in (20, 31, 25)]
    path = write(tmp_path / "y.mat", trials=cells(*[t.T if turned else t for t in trials]), bin_size=0.01)
    recording = read_recording(path, key="trials")
    assert recording.trial_lengths.tolist() == [20, 31, 25]
    for one, other in zip(recording.trials(), trials, strict=True):
        np.testing.assert_array_equal(one, other)
    assert recording.bin_size == 0.01


@pytest.mark.parametrize("write", [mat, mat73])
def test_mat_cells_of_spike_times(tmp_path: Path, write: Any) -> None:
    options = {"spikes": cells(*TRAINS), "unit_names": cells("a", "b", "c")}
    recording = read_recording(write(tmp_path / "y.mat", **options, epochs=np.array(EPOCHS)), bin_size=0.02)
    np.testing.assert_array_equal(recording.data, bin_spikes(TRAINS, bin_size=0.02, epochs=EPOCHS).data)
    assert recording.feature_names == ("a", "b", "c")
    whole = read_recording(write(tmp_path / "z.mat", **options), bin_size=0.02)
    assert whole.data.sum() == sum(len(train) for train in TRAINS)
    with pytest.raises(ValueError, match="have to be binned"):
        read_recording(tmp_path / "y.mat")


def test_mat_cells_of_equal_trials(tmp_path: Path) -> None:
    trials = np.random.default_rng(0).normal(size=(4, 20, 3))
    np.testing.assert_array_equal(read_recording(mat(tmp_path / "y.mat", x=cells(*trials))).data, trials)
    turned = read_recording(mat(tmp_path / "z.mat", x=cells(*trials.transpose(0, 2, 1))), time_axis=2)
    np.testing.assert_array_equal(turned.data, trials)


def test_mat_cells_that_are_no_trials(tmp_path: Path) -> None:
    path = mat(tmp_path / "y.mat", x=cells(np.ones((3, 4)), np.ones((5, 6))))
    with pytest.raises(
        ValueError, match=r"must be trials with the same features, .* got the shapes \(3, 4\), \(5, 6\)"
    ):
        read_recording(path)
    path = mat(tmp_path / "z.mat", name="only text", settings={"a": 1.0})
    with pytest.raises(ValueError, match="no array could be the recording"):
        read_recording(path)


# --- both ------------------------------------------------------------------------------------------------------------


def written(path: Path, kind: str) -> Path:
    """Path of a small file of one kind."""
    if kind == "nwb":
        return nwb_file(path.with_suffix(".nwb"), TRAINS, TRIALS)
    return (mat if kind == "mat" else mat73)(path.with_suffix(".mat"), y=np.random.default_rng(0).normal(size=(300, 4)))


@pytest.mark.parametrize("kind", ["nwb", "mat", "mat73"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_a_truncated_file(tmp_path: Path, kind: str, kept: float) -> None:
    path = written(tmp_path / "y", kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="cannot be read as .* truncated, damaged"):
        read_recording(path, bin_size=0.02)


@pytest.mark.parametrize(
    ("kind", "library", "extra"), [("nwb", "pynwb", "nwb"), ("mat", "scipy.io", "matlab"), ("mat73", "h5py", "matlab")]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, library: str, extra: str
) -> None:
    path = written(tmp_path / "y", kind)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {library}, .* pip install "pyro-lowrank\[{extra}\]"'):
        read_recording(path, bin_size=0.02)
