"""Data that stay where they are: the same windows, draws and numbers as of a tensor, whatever holds them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

import pyro_lowrank as plr
from pyro_lowrank.training import stored
from pyro_lowrank.training.checks import stored_data
from tests.training import builders
from tests.training.builders import assert_same_state, pair, small_fit, state

NAN = float("nan")


def recording(**options: Any) -> Tensor:
    """Data of a small model, laid out as files are: the order of sums, and so their rounding, follows the layout."""
    return builders.recording(**options).contiguous()


class Trials(Dataset[Any]):
    """Trials in a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def memory_mapped(y: Tensor, folder: Path) -> Any:
    np.save(folder / "y.npy", y.numpy())
    return np.load(folder / "y.npy", mmap_mode="r")


def hdf5(y: Tensor, folder: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "y.h5", "w") as file:
        file["y"] = y.numpy()
    return h5py.File(folder / "y.h5", "r")["y"]


def zarr(y: Tensor, folder: Path) -> Any:
    library = pytest.importorskip("zarr")
    array = library.open(str(folder / "y.zarr"), mode="w", shape=tuple(y.shape), dtype="f4", chunks=(1, 5, 3))
    array[:] = y.numpy()
    return library.open(str(folder / "y.zarr"), mode="r")


def xarray_of_dask(y: Tensor, folder: Path) -> Any:
    xarray, array = pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    chunks = array.from_array(np.moveaxis(y.numpy(), 2, 0), chunks=2)
    return xarray.DataArray(chunks, dims=("channel", "trial", "time"))


def dataset(y: Tensor, folder: Path) -> Any:
    return Trials(list(y))


HOLDERS = [memory_mapped, hdf5, zarr, xarray_of_dask, dataset]


WINDOWS, TRIALS, ALL = {"window": 5, "batch_size": 3}, {"batch_size": 2}, dict[str, int]()


@pytest.mark.parametrize(
    ("holder", "options"),
    [*((holder, WINDOWS) for holder in HOLDERS), (dataset, TRIALS), (memory_mapped, ALL)],
    ids=lambda value: "_".join(value) or "all" if isinstance(value, dict) else value.__name__,
)
def test_numbers_are_those_of_a_tensor(holder: Any, options: dict[str, Any], tmp_path: Path) -> None:
    y = recording(trials=7)
    y[1, 3], y[2, 8:], y[4, 0, 1] = NAN, NAN, NAN
    expected, guide = pair()
    options = {"start_at_data": True, "num_steps": 4, **options}
    wanted = small_fit(expected, guide, y[:5], held_out=y[5:], **options)
    model, guide = pair()
    (tmp_path / "held_out").mkdir()
    found = small_fit(model, guide, holder(y[:5], tmp_path), held_out=holder(y[5:], tmp_path / "held_out"), **options)
    assert_same_state(model, state(expected))
    np.testing.assert_array_equal(found.evidence, wanted.evidence)
    np.testing.assert_array_equal(found.held_out_evidence, wanted.held_out_evidence)


def test_inputs_come_with_them(tmp_path: Path) -> None:
    y, u = recording(), torch.randn(5, 12, 2)
    expected, guide = pair(inputs=2)
    small_fit(expected, guide, y, u, window=6, start_at_data=True)
    for data in ((memory_mapped(y, tmp_path), u), (y.numpy(), u.numpy()), (Trials(list(zip(y, u, strict=True))),)):
        model, guide = pair(inputs=2)
        small_fit(model, guide, *data, window=6, start_at_data=True)
        assert_same_state(model, state(expected))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float64, bool])
def test_any_type_of_numbers_is_converted_batch_by_batch(kind: Any) -> None:
    counts = np.random.default_rng(0).integers(0, 2, (5, 12, 3))

    def model_of_counts() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), plr.PoissonObservation(rank=2, features=3))
        return model, plr.BootstrapGuide(model)

    expected, guide = model_of_counts()
    small_fit(expected, guide, torch.tensor(counts, dtype=torch.float32), batch_size=2)
    model, guide = model_of_counts()
    small_fit(model, guide, counts.astype(kind), batch_size=2)
    assert_same_state(model, state(expected))
    if kind is np.uint8:
        model, guide = model_of_counts()
        small_fit(model, guide, torch.tensor(counts, dtype=torch.uint8), batch_size=2)
        assert_same_state(model, state(expected))


def test_one_long_trial_needs_no_axis_of_trials(tmp_path: Path) -> None:
    y = recording(trials=1, steps=60)
    expected, guide = pair()
    small_fit(expected, guide, y, window=10)
    model, guide = pair()
    small_fit(model, guide, memory_mapped(y[0], tmp_path), window=10)
    assert_same_state(model, state(expected))


def test_trials_of_a_dataset_may_differ_in_length() -> None:
    trials = [recording(trials=1, steps=steps, seed=steps)[0] for steps in (7, 12, 9)]
    expected, guide = pair()
    wanted = small_fit(expected, guide, trials, batch_size=2, start_at_data=True)
    model, guide = pair()
    found = small_fit(model, guide, Trials(trials), batch_size=2, start_at_data=True)
    np.testing.assert_array_equal(found.evidence, wanted.evidence)
    assert_same_state(model, state(expected))


def test_initialise_from_data_takes_them_too(tmp_path: Path) -> None:
    y = recording()
    expected, model = pair()[0], pair()[0]
    plr.initialise_from_data(expected, y)
    plr.initialise_from_data(model, memory_mapped(y, tmp_path))
    assert_same_state(model, state(expected))


def test_what_is_too_large_is_started_and_evaluated_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stored, "AT_ONCE", 240)
    monkeypatch.setattr(stored, "PIECE", 20)
    y = recording(trials=2, steps=95)
    model, guide = pair()
    data = stored_data("y", model, guide, y.numpy(), None)
    places = [(int(trial), int(start)) for trial, start in zip(data.sample.trials, data.sample.starts, strict=True)]
    assert places == [(0, 0), (0, 60), (1, 20), (1, 80)]
    assert torch.equal(data.sample.y[1], y[0, 60:80])
    assert data.sample.y[3, 15:].isnan().all()
    pieces = list(data.pieces())
    assert len(pieces) == 10
    joined = torch.cat([piece.y for piece in pieces]).reshape(2, 100, 3)
    assert torch.equal(joined[:, :95], y)
    assert joined[:, 95:].isnan().all()
    # Random numbers of parts are others, so that there are many particles.
    with caplog.at_level("INFO"):
        found = small_fit(
            model, guide, y.numpy(), window=10, held_out=y.numpy(), num_steps=1, num_particles=2000, learning_rate=1e-12
        )
    whole = small_fit(
        *pair(), y, window=10, held_out=joined.reshape(10, 20, 3), num_steps=1, num_particles=2000, learning_rate=1e-12
    )
    np.testing.assert_allclose(found.held_out_evidence, whole.held_out_evidence, atol=0.05)
    assert "Start and units are those of 80 of 190 time bins" in caplog.text
    assert "`held_out` is evaluated in parts of 20 time bins, each filtered as a trial" in caplog.text


def test_features_that_change_elsewhere_are_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    y = recording(trials=3)
    y[0, :, 0] = 1.0
    model, guide = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored_data("y", model, guide, y.numpy(), None)
    y[:, :, 0] = 1.0
    with pytest.warns(UserWarning, match=r"Features \[0\] of `y` never change"):
        stored_data("y", model, guide, y.numpy(), None)
    y[:, :, 0] = 0.0
    with pytest.warns(UserWarning, match="1 of 3 features are zero in every trial"):
        small_fit(model, guide, y.numpy())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def bad_data() -> dict[str, tuple[Any, type[Exception], str]]:
    y = recording()
    infinite = y.numpy().copy()
    infinite[3, 4, 1] = np.inf
    return {
        "features that differ": (
            Trials([y[0], y[1, :, :2]]),
            ValueError,
            r"In `y`, trial 1: `y` must have 3 features in its last dim, .* got 2",
        ),
        "infinite": (infinite, ValueError, "In `y`, trial 3: `y` holds 1 infinite values"),
        "no trial": (Trials([]), ValueError, "`y` holds no trial"),
        "a trial without bins": (Trials([y[0], y[1, :0]]), ValueError, "In `y`, trial 1: `y` is empty"),
        "a stream": (Stream(), TypeError, "`y` must be a map-style dataset"),
        "items of one axis": (Trials([y[0, :, 0]]), TypeError, "Item 0 of the dataset `y` must be an array time x"),
        "items of words": (Trials(["a"]), TypeError, "Item 0 of the dataset .* got str"),
        "words": (np.array([[["a"]]]), TypeError, "`y` must hold real numbers, got an array of dtype <U1"),
        "complex": (np.zeros((2, 5, 3), complex), TypeError, "must hold real numbers, got an array of dtype complex"),
        "four axes": (np.zeros((1, 2, 5, 3)), ValueError, r"none of them empty, got the shape \(1, 2, 5, 3\)"),
        "nothing": (np.full((2, 5, 3), NAN), ValueError, "`y` holds NaN only"),
    }


@pytest.mark.parametrize("name", bad_data())
def test_data_that_do_not_fit_are_refused(name: str) -> None:
    data, error, message = bad_data()[name]
    model, guide = pair()
    before = state(model)
    with pytest.raises(error, match=message):
        small_fit(model, guide, data)
    assert_same_state(model, before)


def test_inputs_that_do_not_fit_are_refused() -> None:
    y = recording().numpy()
    model, guide = pair(inputs=2)
    with pytest.raises(ValueError, match=r"`u` must have the trials and time bins of `y`, \(5, 12\), got \(5, 11\)"):
        small_fit(model, guide, y, np.zeros((5, 11, 2)))
    with pytest.raises(ValueError, match="Inputs came with `y`, a dataset"):
        small_fit(model, guide, Trials(list(y)), np.zeros((5, 12, 2)))
    with pytest.raises(ValueError, match="inputs=2"):
        small_fit(model, guide, y)


def test_a_file_that_changes_under_the_fit_is_noticed(tmp_path: Path) -> None:
    y = memory_mapped(recording(), tmp_path)
    model, guide = pair()

    def spoil(report: Any) -> None:
        if report.step == 2:
            np.save(tmp_path / "y.npy", np.zeros((5, 12, 3), dtype=np.float32))

    with pytest.raises(ValueError, match=r"The file .*y\.npy of `y` was written to, or is gone, while a model"):
        small_fit(model, guide, y, batch_size=2, callback=spoil)


def test_a_fit_goes_on_with_the_same_file_or_the_same_tensor_and_no_other(tmp_path: Path) -> None:
    y = recording()
    expected, guide = pair()
    small_fit(expected, guide, y, batch_size=2)
    options: dict[str, Any] = {"batch_size": 2, "checkpoint": tmp_path / "c.safetensors", "resume": True}

    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    model, guide = pair()
    assert small_fit(model, guide, memory_mapped(y, tmp_path), callback=stop, **options).interrupted
    model, guide = pair(seed=9)
    with pytest.raises(ValueError, match="of another fit: data was"):
        small_fit(model, guide, memory_mapped(2 * y, tmp_path), **options)
    small_fit(model, guide, y, **options)
    assert_same_state(model, state(expected))
