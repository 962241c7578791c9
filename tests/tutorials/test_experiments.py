"""The experiments run, in reduced size, and what they left in full size is complete and says how it was made."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tutorials" / "experiments"
RESULTS = sorted((FOLDER / "results").glob("*.json"))
NEED_A_CHECKOUT = ("authors_students", "eeg_authors")
NEED_A_DOWNLOAD = ("mc_maze",)
TRAINED = (
    *(
        "teacher_gaussian",
        "teacher_cue",
        "teacher_input",
        "teacher_poisson",
        "teacher_posterior",
        "particles",
        "estimators",
    ),
    *("eeg", "eeg_ranks", "eeg_floors", "eeg_learning", "eeg_memory"),
    *("premotor_reach", "premotor_delay", "premotor_generation", "hippocampus_track", "hippocampus_maze"),
    *("lorenz05", "lorenz10", "bursting", "known_networks", "gradient_bias"),
    *("calcium_spikes", "bold_forecast"),
)
SIMULATED = ("known_networks", "gradient_bias")


def run(*arguments: str, data: Path) -> str:
    """Run the script on one core; return what it printed."""
    environment = {**os.environ, "PYRO_LOWRANK_DATA": str(data), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment.pop("SMC_RNNS", None)
    command = [sys.executable, str(FOLDER / "run.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reduced(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """Run one experiment in reduced size and return its record."""
    run(name, "--reduced", "--out", str(folder), data=data)
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert record["reduced"]
    assert (folder / f"{name}.png").stat().st_size > 1000
    return record


def test_fixed_points_of_figure_8_are_all_found(tmp_path: Path, shared_data: Path) -> None:
    (row,) = reduced("fixed_points", tmp_path, shared_data)["rows"]
    assert row["points"] == 17
    assert row["solves"] <= 400
    found = row["networks"]["reach_rnn"]
    assert found["certified"]["complete"]
    assert found["certified"]["stability"] == found["enumerate"]["stability"]


# Each takes a quarter of a minute to one and a half, most of it for Python to start and for loops to be compiled.
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_student_is_trained_and_judged(name: str, tmp_path: Path, shared_data: Path) -> None:
    record = reduced(name, tmp_path, shared_data)
    (row,) = record["rows"]
    numbers = [value for value in row.values() if isinstance(value, (int, float))]
    assert all(abs(value) < 1e6 for value in numbers)  # finite, too
    assert record["goal"].keys() <= row.keys()


@pytest.mark.slow
def test_seeds_that_are_there_are_not_run_again(tmp_path: Path, shared_data: Path) -> None:
    first = reduced("teacher_gaussian", tmp_path, shared_data)
    assert run("teacher_gaussian", "--reduced", "--out", str(tmp_path), data=shared_data) == ""
    again = json.loads((tmp_path / "teacher_gaussian.json").read_text(encoding="utf-8"))
    assert again["rows"] == first["rows"]


def test_without_data_everything_is_left_out_and_says_where_to_get_them(tmp_path: Path) -> None:
    need_data = ("fixed_points", *(name for name in TRAINED if name not in SIMULATED), *NEED_A_DOWNLOAD)
    told = run(*need_data, *NEED_A_CHECKOUT, "--reduced", "--out", str(tmp_path / "out"), data=tmp_path)
    assert told.count(": left out. ") == len(need_data) + len(NEED_A_CHECKOUT)
    assert told.count("PYRO_LOWRANK_DATA") == len(need_data)
    assert told.count("SMC_RNNS") == len(NEED_A_CHECKOUT)
    assert not list((tmp_path / "out").iterdir())


def test_every_result_is_drawn_in_the_list_of_tutorials() -> None:
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    pictures = sorted((FOLDER / "results").glob("*.png"))
    assert [path.stem for path in pictures] == [path.stem for path in RESULTS]
    for path in pictures:
        assert path.stat().st_size < 40_000
        assert f"(experiments/results/{path.name})" in text
    assert text.count("(experiments/results/") == len(pictures)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_have_the_settings_of_their_script(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    settings = json.loads(json.dumps(asdict(importlib.import_module(path.stem).FULL)))
    assert json.loads(path.read_text(encoding="utf-8"))["settings"] == settings


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_of_full_size_and_say_how_they_were_made(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert not record["reduced"]
    assert record["experiment"] == path.stem
    assert path.stat().st_size < 60_000
    assert all("seconds" in row for row in record["rows"])
    seeds = [row["seed"] for row in record["rows"]]
    assert seeds == list(range(len(seeds)))
