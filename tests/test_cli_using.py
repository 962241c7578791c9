"""The command line uses a fitted model to the end of the work: latents, forecast, simulation and report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from pyro_lowrank.cli import reporting

NAN = float("nan")


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Path, Path, plr.StateSpaceModel]:
    """A model file and a recording of four trials with conditions, as files."""
    torch.manual_seed(0)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8), plr.GaussianObservation(rank=2, features=3))
    y = model.simulate(num_trials=4, num_steps=20).y.numpy()
    np.savez(tmp_path / "y.npz", y=y, dt=0.5, condition=["go", "stop", "go", "stop"])
    plr.save(tmp_path / "model.safetensors", model, plr.OptimalGuide(model))
    return tmp_path / "model.safetensors", tmp_path / "y.npz", model


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a `.csv` file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(*words: Any) -> int:
    """Run the command line."""
    return cli.main([str(word) for word in words])


def test_latents_are_those_of_the_library(
    fitted: tuple[Path, Path, plr.StateSpaceModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data, _ = fitted
    assert (
        run("latents", path, data, "--out", tmp_path / "out", "--level", "0.5", "--seed", "3", "--particles", 50) == 0
    )
    printed = capsys.readouterr().out
    assert "conditions      2: go (2), stop (2)" in printed
    assert "Latents: 4 trials x 20 time bins x 2 latents, smoothed, with 50 % bands" in printed
    model, guide = plr.load(path)
    recording = plr.data.read_recording(data)
    torch.manual_seed(3)
    expected = plr.SMCFilter(model, guide, 50).run(*plr.as_tensors(recording, model)).latents(0.5)
    rows = table(tmp_path / "out" / "latents.csv")
    assert len(rows) == 80
    assert list(rows[0])[:4] == ["trial", "condition", "bin", "seconds"]
    row = rows[20 + 7]
    assert (row["trial"], row["condition"], row["bin"], row["seconds"]) == ("trial_1", "stop", "7", "3.75")
    assert float(row["latent_2"]) == pytest.approx(float(expected.mean[1, 7, 1]), rel=1e-5)
    assert float(row["latent_2_lower"]) == pytest.approx(float(expected.lower[1, 7, 1]), rel=1e-5)
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    with xarray.open_dataset(tmp_path / "out" / "latents.nc", engine="h5netcdf") as stored:
        np.testing.assert_allclose(stored.latents_upper, expected.upper, rtol=1e-5)
        assert stored.condition.values.tolist() == ["go", "stop", "go", "stop"]
        assert stored.time.values[7] == 3.75
        assert stored.attrs["level"] == 0.5
    assert (tmp_path / "out" / "latents.png").read_bytes().startswith(b"\x89PNG")
    network = ["fixed-points", path, "--out", tmp_path / "points", "--latents"]
    assert run(*network, tmp_path / "out" / "latents.csv") == 0
    assert run(*network, tmp_path / "y.npz") == 2
    assert "must be the latents.csv of `pyro-lowrank latents`" in capsys.readouterr().err


def test_a_forecast_begins_after_the_data(
    fitted: tuple[Path, Path, plr.StateSpaceModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data, _ = fitted
    assert run("forecast", path, data, "--horizon", 3, "--out", tmp_path / "out", "--particles", 50) == 0
    rows = table(tmp_path / "out" / "forecast.csv")
    assert [row["bin"] for row in rows] == ["20", "21", "22"] * 4
    assert all(float(r["feature_2_lower"]) < float(r["feature_2"]) < float(r["feature_2_upper"]) for r in rows)
    assert "3 time bins after each trial's last one with data, 200 draws" in capsys.readouterr().out
    assert run("forecast", path, data, "--horizon", 3, "--level", 95) == 2
    assert "`--level` must be a share" in capsys.readouterr().err


def test_a_simulation_is_that_of_the_library(
    fitted: tuple[Path, Path, plr.StateSpaceModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, model = fitted
    words = ("simulate", path, "--trials", 2, "--bins", 9, "--seed", 5, "--out", tmp_path / "out")
    assert run(*words) == 0
    torch.manual_seed(5)
    expected = model.simulate(2, 9)
    with np.load(tmp_path / "out" / "simulation.npz") as found:
        assert set(found.files) == {"y", "z", "mean"}
        np.testing.assert_allclose(found["y"], expected.y, rtol=1e-5)
    assert run("simulate", path, "--trials", 0) == 2
    assert "--trials" in capsys.readouterr().err


def test_models_with_inputs_ask_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    dynamics = plr.LowRankRNN(rank=1, units=6, inputs=1)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=1, features=2))
    u = torch.zeros(3, 12, 1)
    u[:, 4:] = 1.0
    np.save(tmp_path / "y.npy", model.simulate(u=u).y.numpy())
    np.save(tmp_path / "u.npy", u.numpy())
    plr.save(tmp_path / "m.safetensors", model, plr.OptimalGuide(model))
    path, out = tmp_path / "m.safetensors", ("--out", tmp_path / "out")
    assert run("simulate", path, *out) == 2
    assert "pass them with `--inputs FILE`" in capsys.readouterr().err
    assert run("latents", path, tmp_path / "y.npy", *out) == 2
    assert "The model has 1 inputs" in capsys.readouterr().err
    assert run("simulate", path, "--inputs", tmp_path / "u.npy", *out) == 0
    assert run("latents", path, tmp_path / "y.npy", "--inputs", tmp_path / "u.npy", "--particles", 20, *out) == 0
    ahead = ("forecast", path, tmp_path / "y.npy", "--inputs", tmp_path / "u.npy", "--horizon", 12, *out)
    assert run(*ahead) == 2
    assert "with `--future-inputs FILE`" in capsys.readouterr().err
    assert run(*ahead, "--future-inputs", tmp_path / "u.npy", "--particles", 20) == 0


def fit_of_two_groups(folder: Path) -> tuple[Path, Path]:
    """A folder of a fit, and the recording."""
    y = np.random.default_rng(0).normal(size=(6, 20, 3)) + np.sin(np.arange(20) / 2)[:, np.newaxis]
    np.savez(folder / "y.npz", y=y, group=[1, 2, 1, 2, 1, 2])
    small = ("--units", 8, "--rank", 2, "--steps", 3, "--particles", 4, "--condition", "group")
    assert run("fit", folder / "y.npz", "--out", folder / "fit", *small) == 0
    return folder / "fit", folder / "y.npz"


def test_a_report_is_made_of_what_a_fit_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, data = fit_of_two_groups(tmp_path)
    printed = capsys.readouterr().out
    assert "conditions      2: 1 (3), 2 (3)" in printed
    assert f"pyro-lowrank report {fitted} {data}" in printed
    summary = json.loads((fitted / "summary.json").read_text())
    assert len(summary["ess"]) == 3
    found: list[Any] = []
    monkeypatch.setattr(reporting, "report", lambda *args, **options: found.append((args, options)))
    words = ("report", fitted, data, "--out", tmp_path / "out", "--particles", 20, "--draws", 10)
    assert run(*words, "--condition", "group", "--title", "Noise") == 0
    ((path, model, _, recording), options), *_ = found
    assert path == tmp_path / "out" / "report.html"
    assert isinstance(model, plr.StateSpaceModel)
    assert recording.conditions.tolist() == [1, 2, 1, 2, 1, 2]
    assert (options["num_particles"], options["num_draws"], options["title"]) == (20, 10, "Noise")
    assert options["fit"].without_dynamics == summary["without_dynamics"]
    np.testing.assert_array_equal(options["fit"].evidence, summary["evidence"])
    (fitted / "summary.json").write_text("{")
    assert run(*words) == 2
    assert "is not what `pyro-lowrank fit` wrote" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fit_leads_to_its_report(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    fitted, data = fit_of_two_groups(tmp_path)
    summary = json.loads((fitted / "summary.json").read_text())
    words = ("report", fitted, data, "--out", tmp_path / "out", "--particles", 20, "--draws", 10)
    assert run(*words, "--condition", "group", "--title", "Noise") == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<title>Noise</title>" in page
    assert "Latents by condition" in page
    assert f"than without dynamics ({summary['without_dynamics']:.3f})" in page
    assert "<th>nats per bin, held out</th>" in page
    assert all(f"<td>{row['name']}</td><td>" in page for row in summary["baselines"])


def test_a_recording_of_something_else_is_refused(
    fitted: tuple[Path, Path, plr.StateSpaceModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "other.npy", np.zeros((50, 7)))
    for command in ("latents", "report"):
        assert run(command, fitted[0], tmp_path / "other.npy", "--out", tmp_path / "out") == 2
        assert "The model has 3 features" in capsys.readouterr().err
    assert run("latents", fitted[0], fitted[1], "--condition", "colour", "--out", tmp_path / "out") == 2
    assert "must name an array in" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pyro-lowrank {plr.__version__}\n"
