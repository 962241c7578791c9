"""A sweep of twelve jobs, one worker of which is killed on the way: the records of one process, whoever runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pyro_lowrank as plr
from tests.validation.jobs import KillsOnce
from tests.validation.test_executors import (
    assert_same_records,
    counted,  # noqa: F401
    dask_client,
    data,
    gaussian,
    loky_pool,
    records,
    submitit_executor,
)


def swept(folder: Path, **options: Any) -> plr.Sweep:
    """Twelve fits."""
    grid = {"rank": [1, 2], "learning_rate": [1e-3, 3e-3, 1e-2]}
    quick: dict[str, Any] = {"num_steps": 3, "num_particles": 4, "num_filter_particles": 20, "progress": False}
    return plr.sweep(gaussian, data(), grid=grid, folds=2, folder=folder, **quick, **options)


@pytest.mark.slow
@pytest.mark.parametrize("made", [None, loky_pool, dask_client, submitit_executor])
def test_a_lost_worker_changes_nothing(made: Any, counted: Path, tmp_path: Path) -> None:  # noqa: F811
    initialise = KillsOnce(counted)
    swept(tmp_path / "here", initialise=initialise)
    (counted / "killed_0").unlink()
    if made is None:
        found = swept(tmp_path / "there", initialise=initialise, num_workers=2)
    elif made is loky_pool:
        # A pool of the caller's own ends with its worker; the next one goes on.
        with made(tmp_path) as executor, pytest.raises(RuntimeError, match="The executor takes no more jobs"):
            swept(tmp_path / "there", initialise=initialise, executor=executor)
        with made(tmp_path) as executor:
            found = swept(tmp_path / "there", initialise=initialise, executor=executor)
    else:
        with made(tmp_path) as executor:
            found = swept(tmp_path / "there", initialise=initialise, executor=executor)
    assert (counted / "killed_0").exists()
    assert len(records(tmp_path / "there")) == 12
    assert found.columns()["folds_done"] == [2] * 6
    assert_same_records(tmp_path / "there", tmp_path / "here")
