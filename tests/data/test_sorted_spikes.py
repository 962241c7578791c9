"""Spikes as sorters and archives keep them, HDF5 files, and conditions that stand beside arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import read_recording

SAMPLES = np.array([100, 1500, 1600, 2500, 3100, 4900], dtype=np.uint64)
CLUSTERS = np.array([7, 3, 7, 3, 5, 7])


def phy(folder: Path, **tables: str) -> Path:
    """A folder of Phy at 1000 samples per second, with tables of clusters."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "spike_times.npy", SAMPLES[:, np.newaxis])
    np.save(folder / "spike_clusters.npy", CLUSTERS)
    (folder / "params.py").write_text("dat_path = 'x'\nsample_rate = 1000.\nraise SystemExit('this was run')\n")
    for name, text in tables.items():
        (folder / f"{name}.tsv").write_text(text)
    return folder


def test_clusters_called_good_are_read(tmp_path: Path) -> None:
    folder = phy(
        tmp_path / "phy",
        cluster_KSLabel="cluster_id\tKSLabel\n3\tgood\n5\tgood\n7\tmua\n",
        # A person's word goes before the sorter's.
        cluster_group="cluster_id\tgroup\n5\tnoise\n7\tgood\n",
    )
    recording = read_recording(folder, bin_size=1.0, epochs=[(0.0, 5.0)])
    assert recording.feature_names == ("3", "7")
    np.testing.assert_array_equal(recording.data[0], [[0, 1], [1, 1], [1, 0], [0, 0], [0, 1]])
    assert "Of 3 clusters those called good were taken." in recording.orientation
    whole = read_recording(folder, bin_size=1.0)
    assert whole.data.shape == (1, 5, 2)


def test_without_good_clusters_all_but_noise_are_read(tmp_path: Path) -> None:
    folder = phy(tmp_path / "phy", cluster_group="cluster_id\tgroup\n5\tnoise\n7\tmua\n")
    assert read_recording(folder, bin_size=1.0).feature_names == ("3", "7")
    assert read_recording(phy(tmp_path / "bare"), bin_size=1.0).feature_names == ("3", "5", "7")


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    folder = phy(tmp_path / "phy")
    with pytest.raises(ValueError, match="have to be binned"):
        read_recording(folder)
    with pytest.raises(ValueError, match="`key` chooses among the arrays of a file"):
        read_recording(folder, key="y", bin_size=1.0)
    np.save(folder / "spike_clusters.npy", CLUSTERS[:4])
    with pytest.raises(ValueError, match="holds 6 spike times, and the clusters of 4"):
        read_recording(folder, bin_size=1.0)
    (folder / "spike_clusters.npy").unlink()
    with pytest.raises(ValueError, match=r"no spike_clusters\.npy"):
        read_recording(folder, bin_size=1.0)
    np.save(folder / "spike_templates.npy", CLUSTERS)
    for text in ("", "sample_rate = 'fast'\n", "sample_rate = 0\n", "sample_rate = 1e5e5\n"):
        (folder / "params.py").write_text(text)
        with pytest.raises(ValueError, match="must tell the sampling rate in Hz"):
            read_recording(folder, bin_size=1.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is a folder at"):
        read_recording(tmp_path / "empty", bin_size=1.0)


ARRAYS: dict[str, Any] = {
    "spike_times": SAMPLES / 1000,
    "spike_unit": CLUSTERS,
    "run_epochs": np.array([[0.0, 2.0], [2.0, 5.0]]),
    "condition": np.array([1, 2]),
    "position": np.zeros((50, 2)),
}


def test_spike_times_and_units_of_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", **ARRAYS)
    recording = read_recording(tmp_path / "y.npz", bin_size=1.0)
    assert recording.feature_names == ("3", "5", "7")
    assert recording.trial_lengths.tolist() == [2, 3]
    np.testing.assert_array_equal(recording.trials()[0], [[0, 0, 1], [1, 0, 1]])
    np.testing.assert_array_equal(recording.trials()[1], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert recording.conditions is not None
    assert recording.conditions.tolist() == [1, 2]
    # What was asked for is read.
    assert read_recording(tmp_path / "y.npz", key="position").data.shape == (1, 50, 2)
    np.savez(tmp_path / "y.npz", spike_times=SAMPLES / 1000, spike_unit=CLUSTERS[:3])
    with pytest.raises(ValueError, match="no array as long with the unit of each"):
        read_recording(tmp_path / "y.npz", bin_size=1.0)


def test_hdf5_arrays_by_their_path(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `hdf5` is not installed")
    y = np.random.default_rng(0).normal(size=(4, 30, 3))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        group = file.create_group("session")
        group["lfp"] = y
        group["ch_names"] = ["a", "b", "c"]
        group["side"] = ["left", "right", "left", "left"]
        group["lfp"].attrs["fs"] = 100.0
        file["other"] = np.zeros((5, 2))
    recording = read_recording(tmp_path / "y.h5", key="session/lfp", conditions="side")
    np.testing.assert_array_equal(recording.data, y)
    assert recording.feature_names == ("a", "b", "c")
    assert recording.bin_size == 0.01
    assert recording.conditions is not None
    assert recording.conditions.tolist() == ["left", "right", "left", "left"]
    with pytest.raises(ValueError, match=r"2 arrays could be the recording; pass `key`.*session/lfp \(4, 30, 3\)"):
        read_recording(tmp_path / "y.h5")
    with h5py.File(tmp_path / "spikes.hdf5", "w") as file:
        for name, value in ARRAYS.items():
            file[name] = value
    spikes = read_recording(tmp_path / "spikes.hdf5", bin_size=1.0)
    np.savez(tmp_path / "y.npz", **ARRAYS)
    np.testing.assert_array_equal(spikes.data, read_recording(tmp_path / "y.npz", bin_size=1.0).data)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = h5py.ExternalLink("spikes.hdf5", "position")
    with pytest.raises(ValueError, match="link"):
        read_recording(tmp_path / "y.h5")
    (tmp_path / "y.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as an HDF5 file"):
        read_recording(tmp_path / "y.h5")


def test_conditions_beside_an_array(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(3, 8, 2))
    np.savez(tmp_path / "y.npz", y=y, condition=["a", "b", "a"], sides=[0, 1, 1], dt=0.1, rest=np.zeros(5))
    for asked, labels in ((None, ["a", "b", "a"]), ("sides", [0, 1, 1])):
        found = read_recording(tmp_path / "y.npz", conditions=asked).conditions
        assert found is not None
        assert found.tolist() == labels
    with pytest.raises(ValueError, match=r"each of 3 trials, got 'rest'; it has condition, sides"):
        read_recording(tmp_path / "y.npz", conditions="rest")
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    cells = np.empty(3, dtype=object)
    cells[:] = [np.ones((length, 2)) for length in (4, 6, 5)]
    io.savemat(tmp_path / "y.mat", {"y": cells, "condition": np.array([3, 1, 3])})
    found = read_recording(tmp_path / "y.mat").conditions
    assert found is not None
    assert found.tolist() == [3, 1, 3]
