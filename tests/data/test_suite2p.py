"""Folders of Suite2p: what is read of them, and that nothing in them is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyro_lowrank.data import read_suite2p


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def folder_of(path: Path) -> Path:
    """Write a folder with 4 regions x 60 frames, the third of which is no cell."""
    rng = np.random.default_rng(0)
    folder = path / "plane0"
    folder.mkdir(parents=True)
    np.save(folder / "F.npy", rng.uniform(90, 110, (4, 60)).astype(np.float32))
    np.save(folder / "Fneu.npy", rng.uniform(10, 30, (4, 60)).astype(np.float32))
    np.save(folder / "iscell.npy", np.array([[1, 0.9], [1, 0.8], [0, 0.2], [1, 0.6]]))
    np.save(folder / "ops.npy", np.array(Bomb(path / "exploded"), dtype=object), allow_pickle=True)
    np.save(folder / "stat.npy", np.array([Bomb(path / "exploded")], dtype=object), allow_pickle=True)
    return folder


def test_fluorescence_of_cells_without_the_neuropil(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    inside, around = np.load(folder / "F.npy"), np.load(folder / "Fneu.npy")
    f = (inside.astype(float) - 0.7 * around)[[0, 1, 3]].T
    raw = read_suite2p(folder, bin_size=1 / 30, baseline=None)
    np.testing.assert_allclose(raw.data[0], f, rtol=1e-6)
    assert raw.bin_size == pytest.approx(1 / 30)
    relative = read_suite2p(folder, bin_size=1 / 30)
    np.testing.assert_allclose(relative.data[0], f / np.percentile(f, 20, axis=0) - 1, rtol=1e-5)
    assert relative.feature_names == ("roi_0", "roi_1", "roi_3")
    assert read_suite2p(folder, bin_size=0.1, only_cells=False, neuropil=0).data.shape == (1, 60, 4)
    assert not (tmp_path / "exploded").exists()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="pass one of its planes.*plane0"):
        read_suite2p(tmp_path, bin_size=0.1)
    with pytest.raises(ValueError, match="region 0 at rest.*baseline=None"):
        read_suite2p(folder, bin_size=0.1, neuropil=9.0)
    with pytest.raises(ValueError, match="`baseline` is a percentile"):
        read_suite2p(folder, bin_size=0.1, baseline=120.0)
    with pytest.raises(ValueError, match="`bin_size` must be finite and above zero"):
        read_suite2p(folder, bin_size=0.0)
    np.save(folder / "iscell.npy", np.zeros((4, 2)))
    with pytest.raises(ValueError, match="none of the 4 regions is a cell"):
        read_suite2p(folder, bin_size=0.1)
    np.save(folder / "iscell.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a row .* for each of the 4 regions"):
        read_suite2p(folder, bin_size=0.1)
    np.save(folder / "F.npy", np.array(Bomb(tmp_path / "exploded"), dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"F.npy holds an array of Python objects, which are never unpickled"):
        read_suite2p(folder, bin_size=0.1)
    assert not (tmp_path / "exploded").exists()
