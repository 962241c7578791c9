"""`pyro-lowrank fixed-points` prints and writes what the library finds."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from tests.builders import shaken
from tests.fixed_points.networks import bistable


def words(*arguments: Any) -> list[str]:
    """The words of a command."""
    return ["fixed-points", *(str(argument) for argument in arguments)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with the weights of two bistable latents."""
    names = ("decay", "left", "right", "bias")
    path = tmp_path / "weights.npz"
    np.savez(path, **dict(zip(names, bistable(2), strict=True)), input_weights=np.ones((4, 1)))
    return path


def test_a_file_of_weights(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert cli.main(words(weights, "--method", "enumerate", "--out", out)) == 0
    printed = capsys.readouterr().out
    assert "FixedPoints: 9 isolated (4 attractor, 4 saddle, 1 repeller)" in printed
    assert "complete: there are no others" in printed
    with (out / "fixed_points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [row["stability"] for row in rows].count("saddle") == 4
    with np.load(out / "fixed_points.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["points"][:, 0], [float(row["z1"]) for row in rows])
        assert arrays["complete"]
    if "fixed_points.png" in printed:
        assert (out / "fixed_points.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_the_papers_teacher(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(words(shared_data / "teacher_reach_rnn.npz", "--input", 0, 0, "--out", out)) == 0
    printed = capsys.readouterr().out
    assert "FixedPoints: 17 isolated (8 attractor, 8 saddle, 1 repeller)" in printed
    assert "complete: there are no others; index sum 1 (expected 1)" in printed


def test_sets_are_written_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, decay=0.0, left=[[1.0], [1.0]], right=[[1.0, -1.0]], bias=[0.0, 2.0])
    assert cli.main(words(path, "--out", tmp_path)) == 0
    with np.load(tmp_path / "fixed_points.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(np.sort(arrays["set_vertices"].ravel()), [0.0, 2.0], atol=1e-9)
        assert arrays["set_of_vertex"].tolist() == [0, 0]
        assert arrays["set_stability"].tolist() == ["marginal"]


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_other_ranks(rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "weights.npz"
    np.savez(path, **dict(zip(("decay", "left", "right", "bias"), bistable(rank), strict=True)))
    assert cli.main(words(path, "--method", "search", "--out", tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert f"FixedPoints: {3**rank} isolated" in printed
    assert "not complete: there may be others" in printed
    assert ("There is no figure" in printed) == (rank == 4)
    assert (tmp_path / "out" / "fixed_points.png").exists() == (rank < 4)


def test_a_model_file_under_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dynamics = shaken(plr.LowRankRNN(rank=2, units=12, inputs=2, dtype=torch.float64))
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3, inputs=2, dtype=torch.float64))
    path = tmp_path / "model.safetensors"
    plr.save(path, model)
    assert cli.main(words(path, "--method", "enumerate", "--input", "1.0", "-0.5")) == 0
    expected = dynamics.fixed_points([1.0, -0.5], method="enumerate")
    printed = capsys.readouterr().out
    assert printed.splitlines()[3:] == str(expected).splitlines()[3:]
    assert list(tmp_path.iterdir()) == [path], "nothing is written without --out"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--max-boxes", 0), "`max_boxes` must be at least 1"),
        (("--max-seconds", -1), "`max_seconds` must be finite and above zero"),
        (("--starts", 0), "`num_starts` must be at least 1"),
        (("--input", 1, 2), "one entry per column of `input_weights`"),
    ],
)
def test_bad_options_are_one_line(
    weights: Path, extra: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(weights, "--method", "search", *extra)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out


def test_files_that_are_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(tmp_path / "none.npz")) == 2
    assert cli.main(words(tmp_path / "none.safetensors")) == 2
    assert "none.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["fixed_points.npz", *(pytest.param(f"fixed_points.{kind}", marks=pytest.mark.slow) for kind in ("csv", "png"))],
)
def test_what_stands_in_the_folder_is_replaced_whole_or_not_at_all(
    name: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    out = tmp_path / "out"
    assert cli.main(words(weights, "--out", out)) == 0
    before = (out / name).read_bytes()
    replaced = os.replace

    def full_disk(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError("the disk is full")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    assert cli.main(words(weights, "--out", out, "--method", "search")) == 2
    assert (out / name).read_bytes() == before
    assert len(list(out.iterdir())) == 3, "nothing half is left"
