"""Comparisons on data that stay on the disk: the records of data in memory, and workers that open the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.training import stored
from pyro_lowrank.training.sources import StoredArray
from tests.training.test_stored import hdf5, memory_mapped, zarr
from tests.validation.test_executors import data, gaussian

QUICK: dict[str, Any] = {
    "num_steps": 3,
    "num_particles": 4,
    "num_filter_particles": 20,
    "num_draws": 5,
    "progress": False,
}
QUICK |= {"ranks": (1, 2), "folds": 2, "initialise": plr.initialise_from_data, "hidden": 0.4}


def scores(found: plr.CrossValidation) -> list[Any]:
    return [found.evidence, found.gains, found.weights, found.train_evidence, found.bins]


@pytest.mark.slow
@pytest.mark.parametrize(
    "holder", [memory_mapped, *(pytest.param(each, marks=pytest.mark.slow) for each in (hdf5, zarr))]
)
def test_workers_open_the_file_and_find_what_is_found_in_memory(holder: Any, tmp_path: Path) -> None:
    y = data().contiguous()
    y[1, 3], y[2, :, 1] = float("nan"), float("nan")
    expected = plr.cross_validate(gaussian, y, **QUICK)
    array = holder(y, tmp_path)
    here = plr.cross_validate(gaussian, array, **QUICK)
    for actual, wanted in zip(scores(here), scores(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6)
    assert sorted(here.trials) == sorted(expected.trials)
    there = plr.cross_validate(gaussian, array, num_workers=2, folder=tmp_path / "records", **QUICK)
    for actual, wanted in zip(scores(there), scores(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6)


def test_one_long_trial_is_cut_in_blocks_and_scored_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = data().reshape(1, 40, 5).contiguous()
    grid = {"rank": [1], "learning_rate": [1e-3]}
    options = {name: value for name, value in QUICK.items() if name != "ranks"}
    expected = plr.sweep(gaussian, y, grid=grid, **options)
    found = plr.sweep(gaussian, memory_mapped(y[0], tmp_path), grid=grid, folder=tmp_path / "records", **options)
    np.testing.assert_allclose(found.evidence, expected.evidence, rtol=1e-4)
    # Filtered in pieces of 8 bins, two at a time.
    monkeypatch.setattr(stored, "AT_ONCE", 4 * 2 * 8 * 5)
    monkeypatch.setattr(stored, "PIECE", 8)
    monkeypatch.setattr(stored.StoredData, "is_small", property(lambda self: False))
    pieces = plr.sweep(gaussian, memory_mapped(y[0], tmp_path), grid=grid, **options)
    assert pieces.evidence.shape == expected.evidence.shape
    np.testing.assert_allclose(pieces.bins, expected.bins)
    np.testing.assert_allclose(pieces.evidence, expected.evidence, rtol=0.3)
    # Nothing is computed again of a file that is as it was, and another one is told from it.
    again = plr.sweep(gaussian, memory_mapped(y[0], tmp_path), grid=grid, folder=tmp_path / "records", **options)
    np.testing.assert_array_equal(again.evidence, found.evidence)
    with pytest.raises(ValueError, match="is of another cross-validation: data was"):
        plr.sweep(gaussian, memory_mapped(2 * y[0], tmp_path), grid=grid, folder=tmp_path / "records", **options)


@pytest.mark.parametrize("holder", [memory_mapped, hdf5, zarr])
def test_what_is_sent_says_where_the_data_are(holder: Any, tmp_path: Path) -> None:
    y = torch.randn(40, 50, 30)
    array = holder(y, tmp_path)
    for part, wanted in ((array, y), *(((array[10:, ::2, 5:], y[10:, ::2, 5:]),) if holder is memory_mapped else ())):
        sent = pickle.dumps(StoredArray("y", part))
        assert len(sent) < 4000 < y.nbytes
        there = pickle.loads(sent)  # noqa: S301
        np.testing.assert_array_equal(there.read(3, 2, 9), wanted[3, 2:9])
        there.release()
        np.testing.assert_array_equal(there.read(3, 2, 9), wanted[3, 2:9])
    if holder is memory_mapped:
        np.save(tmp_path / "y.npy", np.zeros((1, 1, 1)))
        with pytest.raises(ValueError, match=r"The file .*y\.npy of `y` was written to, or is gone"):
            pickle.loads(sent)  # noqa: S301


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    array = memory_mapped(data(), tmp_path)
    with pytest.raises(ValueError, match="`folds` must be at most the number of trials"):
        plr.cross_validate(gaussian, array, **QUICK | {"folds": 5})
    with pytest.raises(TypeError, match="`folds` of data on disk must be a number"):
        plr.cross_validate(
            gaussian, array, **QUICK | {"folds": plr.data.trial_folds(plr.data.Recording(data().numpy()), 2)}
        )
    with pytest.raises(ValueError, match="must have 5 features in its last dim"):
        plr.cross_validate(gaussian, array[:, :, :4], **QUICK)
