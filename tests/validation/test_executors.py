"""The same records whatever runs the fits: loky, Dask, submitit, concurrent.futures; and what lost workers cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import linear_model
from tests.validation.jobs import CannotBePickled, KillsOnce


def gaussian(rank: int) -> tuple[Any, Any]:
    """A linear network to be fitted."""
    dynamics = plr.LowRankRNN(rank=rank, units=8, activation="identity")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=5))
    return model, plr.OptimalGuide(model)


def data() -> Tensor:
    torch.manual_seed(3)
    return linear_model(rank=2, features=5).simulate(4, 10).y.float()


def validated(folder: Path | None, **options: Any) -> plr.CrossValidation:
    """Four fits of three steps."""
    defaults: dict[str, Any] = {"num_steps": 3, "num_particles": 4, "num_filter_particles": 20, "num_draws": 5}
    defaults |= {"ranks": (1, 2), "folds": 2, "progress": False}
    return plr.cross_validate(gaussian, data(), folder=folder, **(defaults | options))


def records(folder: Path) -> dict[str, Any]:
    """What the records of a folder say, but for the time that they took."""
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    for content in found.values():
        del content["record"]["seconds"], content["digest"]
    return found


@contextmanager
def loky_pool(tmp_path: Path) -> Iterator[Any]:
    loky = pytest.importorskip("loky")
    pool = loky.ProcessPoolExecutor(2, env={"OMP_NUM_THREADS": "1"})
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


@contextmanager
def dask_client(tmp_path: Path) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def submitit_executor(tmp_path: Path) -> Iterator[Any]:
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(folder=tmp_path / "submitit")
    executor.update_parameters(timeout_min=5)
    yield executor


@contextmanager
def process_pool(tmp_path: Path) -> Iterator[Any]:
    import multiprocessing

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@contextmanager
def one_thread(tmp_path: Path) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def assert_same_records(actual: Path, expected: Path) -> None:
    """Compare records, their numbers to rounding: where arrays lie in memory changes how sums are rounded."""
    found, wanted = records(actual), records(expected)
    assert found.keys() == wanted.keys()
    for name, content in found.items():
        assert content["settings"] == wanted[name]["settings"]
        for key, value in content["record"].items():
            if key == "trials":
                assert value == wanted[name]["record"][key]
            else:
                np.testing.assert_allclose(value, wanted[name]["record"][key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """Where it is counted how many processes were killed: all that will be, until it is emptied."""
    folder = tmp_path / "counted"
    folder.mkdir()
    (folder / "killed_0").touch()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("made", [None, dask_client, submitit_executor], ids=["loky", "dask", "submitit"])
def test_a_worker_that_is_killed_changes_nothing(made: Any, counted: Path, tmp_path: Path) -> None:
    """Records are those of one process; the second worker does the job again."""
    options: dict[str, Any] = {"initialise": KillsOnce(counted), "ranks": (1,) if made is submitit_executor else (1, 2)}
    validated(tmp_path / "here", **options)
    (counted / "killed_0").unlink()
    if made is None:
        validated(tmp_path / "there", num_workers=2, **options)
    else:
        with made(tmp_path) as executor:
            validated(tmp_path / "there", executor=executor, **options)
    assert (counted / "killed_0").exists()
    assert_same_records(tmp_path / "there", tmp_path / "here")


def test_a_pool_that_ends_with_a_worker_is_gone_on_from(counted: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"initialise": KillsOnce(counted)}
    validated(tmp_path / "here", **options)
    (counted / "killed_0").unlink()
    with process_pool(tmp_path) as executor, pytest.raises(RuntimeError, match="The executor takes no more jobs"):
        validated(tmp_path / "there", executor=executor, **options)
    with one_thread(tmp_path) as executor:
        validated(tmp_path / "there", executor=executor, **options)
    assert_same_records(tmp_path / "there", tmp_path / "here")


@pytest.mark.slow
def test_a_job_that_kills_every_worker_is_named_and_the_others_are_done(counted: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ranks": (1,), "initialise": KillsOnce(counted, times=3)}
    for number in (1, 2):
        (counted / f"killed_{number}").touch()
    validated(tmp_path / "there", **options)
    (tmp_path / "there" / "rank_1_fold_1.json").unlink()
    for number in range(3):
        (counted / f"killed_{number}").unlink()
    with (
        submitit_executor(tmp_path) as executor,
        pytest.raises(RuntimeError, match=r"(?s)1 of 1 jobs were lost, 2 times each.*rank 1, fold 1: UncompletedJob"),
    ):
        validated(tmp_path / "there", executor=executor, **options)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["rank_1_fold_0.json"]


@pytest.mark.parametrize("made", [loky_pool, dask_client, submitit_executor, process_pool])
def test_what_cannot_be_pickled_is_refused_at_once(made: Any, tmp_path: Path) -> None:
    with made(tmp_path) as executor, pytest.raises(TypeError, match="cannot send a job to its workers"):
        validated(tmp_path / "there", executor=executor, initialise=CannotBePickled())
    assert list((tmp_path / "there").iterdir()) == []


def test_fits_in_two_threads_at_once_are_refused() -> None:
    def slowly(model: Any, recording: Any) -> None:
        import time

        time.sleep(0.5)

    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(RuntimeError, match=r"(?s)A job failed.*Another thread of this process is fitting a model"),
    ):
        validated(None, executor=pool, initialise=slowly)


class Silent:
    """An executor that says nothing of what it was given."""

    def submit(self, function: Any, *arguments: Any) -> None:
        """Do nothing."""


class Forgetful:
    """An executor whose workers write nowhere."""

    def submit(self, function: Any, *arguments: Any) -> Any:
        """Return at once."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: None)


def test_bad_executors_are_refused(tmp_path: Path) -> None:
    for executor in (3, ProcessPoolExecutor):
        with pytest.raises(TypeError, match=r"`executor` must have `submit\(function, \*arguments\)`"):
            validated(None, executor=executor)
    with pytest.raises(TypeError, match=r"`done\(\)` and `result\(\)`, got NoneType without `done`"):
        validated(None, executor=Silent())
    with pytest.raises(RuntimeError, match=r"rank 1, fold 0 is done, and there is no record of it in .*share"):
        validated(tmp_path, executor=Forgetful())
    with pytest.raises(ValueError, match="`executor` or `num_workers`, not both"):
        validated(None, executor=Silent(), num_workers=2)
