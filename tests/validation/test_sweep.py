"""Sweeps: the points of a grid, successive halving, tables, and processes that share a folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank import cli
from pyro_lowrank.validation.claims import Claims
from pyro_lowrank.validation.points import Point, points_of
from tests.oracles.linear import linear_model
from tests.validation.test_executors import assert_same_records

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {"num_particles": 4, "num_filter_particles": 20, "progress": False}


def factory(rank: int, units: int = 8) -> tuple[Any, Any]:
    """A linear network to be fitted."""
    dynamics = plr.LowRankRNN(rank=rank, units=units, activation="identity")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=5))
    return model, plr.OptimalGuide(model)


def data() -> Tensor:
    torch.manual_seed(3)
    return linear_model(rank=2, features=5).simulate(4, 10).y.float()


def swept(**options: Any) -> plr.Sweep:
    defaults: dict[str, Any] = {"grid": {"rank": [1, 2], "learning_rate": [1e-3, 3e-2]}, "folds": 2, "num_steps": 6}
    return plr.sweep(factory, data(), **{**QUICK, **defaults, **options})


def test_a_sweep_of_ranks_is_a_cross_validation() -> None:
    options: dict[str, Any] = {"folds": 2, "num_steps": 3, "learning_rate": 1e-3, "hidden": 0.4, **QUICK}
    expected = plr.cross_validate(factory, data(), ranks=(1, 2), **options)
    found = plr.sweep(factory, data(), grid={"rank": [1, 2]}, **options)
    np.testing.assert_array_equal(found.evidence, expected.evidence)
    np.testing.assert_array_equal(found.gains, expected.gains)
    assert found.best == {"rank": expected.best}


def test_settings_of_fits_and_arguments_of_the_factory_are_told_apart(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def noting(**arguments: Any) -> tuple[Any, Any]:
        calls.append(arguments)
        return factory(**arguments)

    grid = {"rank": [1], "units": [4, 8], "num_steps": [2, 3], "seed": [0, 7]}
    found = plr.sweep(noting, data(), grid=grid, folds=2, folder=tmp_path, **QUICK)
    assert {tuple(call) for call in calls} == {("rank", "units")}
    assert found.columns()["units"] == [4] * 4 + [8] * 4
    assert found.steps == (2, 2, 3, 3) * 2
    settings = json.loads((tmp_path / "rank_1_units_8_num_steps_3_seed_7_fold_1.json").read_text())["settings"]
    assert (settings["num_steps"], settings["seed"]) == (3, 7)
    assert settings["point"] == {"rank": 1, "units": 8, "num_steps": 3, "seed": 7}
    # Only the number of steps differs: the same model, the same minibatches.
    alone = plr.sweep(factory, data(), grid={"rank": [1], "units": [8]}, folds=2, num_steps=3, **QUICK)
    np.testing.assert_array_equal(alone.evidence[0], found.evidence[6])


def test_halving_leaves_the_worse_behind_and_ends_in_the_numbers_of_whole_fits(tmp_path: Path) -> None:
    whole = swept()
    found = swept(halving=plr.Halving(2, factor=2), folder=tmp_path)
    assert sorted(found.steps) == [2, 2, 4, 6]
    best = found.best_place
    assert found.steps[best] == 6
    # Fits that stop and go on are those that do not.
    np.testing.assert_array_equal(found.evidence[best], whole.evidence[best])
    # After two steps those were left behind that were worse then.
    early = swept(halving=plr.Halving(2, factor=2), folder=tmp_path)
    np.testing.assert_array_equal(early.evidence, found.evidence)
    at_two = {
        path.name.split("_fold")[0]: sum(json.loads(path.read_text())["record"]["evidence"])
        for path in tmp_path.glob("*_fold_*_steps_2.json")
        for path in tmp_path.glob(path.name.split("_fold")[0] + "_fold_0_steps_2.json")
    }
    for name in at_two:
        at_two[name] += sum(json.loads((tmp_path / f"{name}_fold_1_steps_2.json").read_text())["record"]["evidence"])
    dropped = {Point(point).name for point, steps in zip(found.points, found.steps, strict=True) if steps == 2}
    assert max(at_two[name] for name in dropped) <= min(value for name, value in at_two.items() if name not in dropped)
    assert list(found.elpd()) == [", ".join(f"{name} {value}" for name, value in found.best.items())]


def test_a_checkpoint_that_outlived_its_record_begins_anew(tmp_path: Path) -> None:
    options: dict[str, Any] = {"grid": {"rank": [1, 2]}, "halving": plr.Halving(3, factor=2), "folder": tmp_path}
    found = swept(**options)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert list(tmp_path.glob("*.safetensors"))
    again = swept(**options)
    np.testing.assert_array_equal(again.evidence, found.evidence)


def test_tables_and_figures_hold_the_numbers() -> None:
    az = pytest.importorskip("arviz")
    found = swept(num_steps=2)
    columns = found.columns()
    table = found.to_xarray()
    assert table.sizes == {"point": 4, "trial": 4}
    chosen = table.sel(point=(table["rank"] == 2) & (table.learning_rate == 1e-3))
    assert chosen.held_out.item() == columns["held_out"][2] == float(found.held_out[2])
    np.testing.assert_array_equal(chosen.evidence[0], found.evidence[2])
    compared = az.compare(found.elpd(), method="BB-pseudo-BMA")
    assert compared.index[0] == ", ".join(f"{name} {value}" for name, value in found.best.items())
    figure = pytest.importorskip("pyro_lowrank.plots.figures").new_figure(1, 1, width=6, height=3)
    axes = found.plot(figure[1][0, 0], by="learning_rate")
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), columns["held_out"][:2])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rank 1", "rank 2"]
    with pytest.raises(ValueError, match="`by` must be one of 'rank', 'learning_rate', got 'units'"):
        found.plot(axes, by="units")


def test_names_of_files_are_safe_and_differ() -> None:
    names = [point.name for point in points_of({"activation": ["a/b", "a-b", "x" * 300], "rank": [1]})]
    assert len(set(names)) == 3
    assert all(len(name) < 200 and "/" not in name for name in names)


def test_bad_grids_are_refused() -> None:
    for grid, error, message in (
        ({}, TypeError, "`grid` must map names"),
        ({"rank": 3}, TypeError, r"`grid\['rank'\]` must be a list of values, got 3"),
        ({"rank": "12"}, TypeError, "must be a list of values"),
        ({"rank": []}, ValueError, "at least one value, and none twice"),
        ({"rank": [1, 1]}, ValueError, "at least one value, and none twice"),
        ({"rank": [1], "options": [{}]}, TypeError, "must hold numbers, words, booleans or None"),
        ({"rank": [1], "num_steps": [0]}, ValueError, "`num_steps` must be at least 1"),
        ({"rank": [1], "seed": [-1]}, ValueError, "`seed` must be at least 0"),
        ({"rank": [1], "breadth": [1]}, TypeError, "unexpected keyword argument 'breadth'"),
    ):
        with pytest.raises(error, match=message):
            swept(grid=grid)
    with pytest.raises(TypeError, match=r"`factory\(rank=1\)` must return \(model, guide\)"):
        plr.sweep(lambda rank: None, data(), grid={"rank": [1]}, folds=2, **QUICK)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="leave it out of the grid"):
        swept(grid={"rank": [1], "num_steps": [2]}, halving=plr.Halving(1))


def job(folder: Path, name: str = "a") -> Any:
    return SimpleNamespace(path=folder / f"{name}.json")


def test_a_claimed_job_is_left_alone_until_its_process_is_gone(tmp_path: Path) -> None:
    ran: list[int] = []

    def work(job: Any, attempt: int) -> None:
        ran.append(attempt)
        assert job.path.with_suffix(".claim").exists()

    claim = tmp_path / "a.claim"
    parent = {"host": __import__("socket").gethostname(), "process": os.getppid()}
    claim.write_text(json.dumps(parent))
    future = Claims().submit(work, job(tmp_path), 1)
    assert not future.done()
    # It gives no sign of life.
    os.utime(claim, (0, time.time() - 3600))
    assert future.done()
    assert (ran, claim.exists()) == ([1], False)
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    claim.write_text(json.dumps({**parent, "process": int(done.stdout)}))
    assert Claims().submit(work, job(tmp_path), 2).done(), "a process of this machine that is no more"
    claim.write_text(json.dumps({**parent, "host": "elsewhere", "process": int(done.stdout)}))
    assert not Claims().submit(work, job(tmp_path), 3).done(), "of another machine nothing is known"
    claim.write_text("{")
    assert not Claims().submit(work, job(tmp_path), 3).done(), "it may be about to be written"
    job(tmp_path).path.touch()
    assert Claims().submit(work, job(tmp_path), 3).done()
    assert ran == [1, 2]


DEFINITIONS = """
import numpy as np
from tests.validation.test_sweep import factory, QUICK
data = "y.npy"
grid = {"rank": [1, 2], "learning_rate": [1e-3, 3e-2]}
options = {**QUICK, "folds": 2, "num_steps": 4}
"""


@pytest.mark.slow
def test_copies_of_the_command_share_the_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.py").write_text(DEFINITIONS, encoding="utf-8")
    np.save(tmp_path / "y.npy", data().numpy())
    other = subprocess.Popen(
        [sys.executable, "-m", "pyro_lowrank", "sweep", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert cli.main(["sweep", str(tmp_path)]) == 0
        told, _ = other.communicate(timeout=200)
    finally:
        other.kill()
        other.wait()
    assert other.returncode == 0, told
    printed = capsys.readouterr().out
    assert "Sweep: 4 points, 2 folds" in printed
    assert "Sweep: 4 points, 2 folds" in told
    swept(num_steps=4, folder=tmp_path / "alone")
    assert_same_records(tmp_path / "records", tmp_path / "alone")
    assert list((tmp_path / "records").glob("*.claim")) == []
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [row["rank"] for row in rows] == ["1", "1", "2", "2"]


def test_what_the_command_cannot_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", str(tmp_path)]) == 2
    assert "There is no sweep.py in" in capsys.readouterr().err
    (tmp_path / "sweep.py").write_text("grid = {}", encoding="utf-8")
    assert cli.main(["sweep", str(tmp_path)]) == 2
    assert "must define factory, grid and data; it lacks factory, data" in capsys.readouterr().err
    (tmp_path / "sweep.py").write_text("factory = data = 1\ngrid = {}\noptions = {'folder': 'x'}", encoding="utf-8")
    assert cli.main(["sweep", str(tmp_path)]) == 2
    assert "must not hold 'folder'" in capsys.readouterr().err
