"""The command line does what it says, in the recording's own units, and answers bad input with one line."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from pyro_lowrank.cli import fitting
from pyro_lowrank.cli.models import OBSERVATIONS
from pyro_lowrank.data.draws import draw_trials
from pyro_lowrank.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--units", "8", "--rank", "2", "--steps", "4", "--window", "10", "--batch-size", "3", "--particles", "4")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 120 time bins and 5 features, in units of its own."""
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.normal(size=(120, 2)), 0) * 0.3
    y = slow @ rng.normal(size=(2, 5)) + 0.2 * rng.normal(size=(120, 5))
    path = tmp_path_factory.mktemp("data") / "recording.npy"
    np.save(path, 3e4 + 40.0 * y)
    return path


def words(*arguments: Any) -> list[str]:
    """The words of a command."""
    return [str(argument) for argument in arguments]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The parameters in a model file."""
    return dict(plr.load(path)[0].state_dict())


def test_fit_writes_a_model_in_the_recordings_own_units(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert cli.main(words("fit", recorded, "--out", out, *SMALL)) == 0
    printed = capsys.readouterr().out
    assert "2-d array (120, 5): took axis 0 as time because it is the longer axis" in printed
    assert "Training on the first 108 time bins; the last 12 are held out." in printed
    assert "Each of 4 steps sees 3 windows of 10 time bins, with 4 particles." in printed
    assert "FitResult: 4 of 4 steps" in printed

    model, guide = plr.load(out / "model.safetensors")
    assert type(guide) is plr.OptimalGuide
    y = torch.as_tensor(np.load(recorded), dtype=torch.float32)
    drawn = model.simulate(num_trials=20, num_steps=200).y
    assert ((drawn.mean((0, 1)) - y.mean(0)).abs() < 3 * y.std(0)).all(), "around 30,000, not around 0"
    assert (drawn.std((0, 1)) > 0.1 * y.std(0)).all()
    with torch.no_grad():
        per_bin = -plr.SMC_ELBO(16).loss(model, guide, y[None]) / 120
    # A Gaussian of every feature is worth this much; the fit starts at the principal components, far above it.
    independent = -(y.std(0).log() + 0.5 * np.log(2 * np.pi * np.e)).sum().item()
    assert per_bin > independent + 2

    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["held_out_evidence_per_bin"]["after"] == summary["held_out_evidence"][-1]
    assert summary["options"]["data"] == str(recorded)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.safetensors",
        "model.safetensors",
        "summary.json",
        "training.png",
    }


def test_what_is_not_asked_for_is_what_fit_chooses(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fit(model: Any, guide: Any, y: Any, u: Any = None, **options: Any) -> Any:
        asked.append(options)
        raise ValueError("enough")

    monkeypatch.setattr(fitting, "fit", fit)
    assert cli.main(words("fit", recorded, "--out", tmp_path / "out", "--units", "8", "--rank", "2")) == 2
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8), plr.GaussianObservation(rank=2, features=5))
    names = ("num_steps", "batch_size", "num_particles", "learning_rate", "final_learning_rate")
    observed = torch.ones(1, 108, dtype=torch.bool)
    recipe = Recipe.of(observed, plr.OptimalGuide(model), window="auto", **dict.fromkeys(names))  # type: ignore[arg-type]
    assert {name: asked[0][name] for name in (*names, "window")} == {
        name: getattr(recipe, name) for name in (*names, "window")
    }
    assert (recipe.learning_rate, recipe.final_learning_rate) == (0.01, 0.001)


def test_the_same_command_gives_the_same_model_and_leaves_the_generator(recorded: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for name in ("one", "two"):
        assert cli.main(words("fit", recorded, "--out", tmp_path / name, *SMALL)) == 0
        torch.rand(3)
    torch.set_rng_state(before)
    one, two = (tensors(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert cli.main(words("fit", recorded, "--out", tmp_path / "two", *SMALL, "--seed", 1, "--resume")) == 2
    assert cli.main(words("fit", recorded, "--out", tmp_path / "two", *SMALL, "--seed", 1)) == 0
    other = tensors(tmp_path / "two" / "model.safetensors")
    assert not torch.equal(other["dynamics.left_unconstrained"], one["dynamics.left_unconstrained"])


def test_an_interrupted_fit_goes_on_with_resume(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(report: Any) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(words("fit", recorded, "--out", whole, *SMALL)) == 0
    monkeypatch.setattr(fitting, "fit", functools.partial(plr.fit, callback=press))
    assert cli.main(words("fit", recorded, "--out", stopped, *SMALL)) == 130
    monkeypatch.undo()
    assert "the same command with --resume goes on" in capsys.readouterr().out
    assert plr.load(stopped / "model.safetensors"), "what was reached is there"
    assert cli.main(words("fit", recorded, "--out", stopped, *SMALL)) == 2
    assert "stopped after 2 of 4 steps; pass resume=True" in capsys.readouterr().err
    assert cli.main(words("fit", recorded, "--out", stopped, *SMALL, "--resume")) == 0
    one, two = (tensors(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_spike_counts_in_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.random.default_rng(0).poisson(0.5, size=(12, 3, 20))
    np.savez(tmp_path / "spikes.npz", spikes=counts, labels=np.zeros((4, 4)))
    command = words("fit", tmp_path / "spikes.npz", "--out", tmp_path / "out", *SMALL, "--likelihood", "poisson")
    assert cli.main([*command, "--key", "spikes", "--time-axis", "2", "--window", "0"]) == 0
    printed = capsys.readouterr().out
    assert "took axis 2 as time as asked" in printed
    assert "Training on 10 trials; 2 others, drawn at random, are held out." in printed
    held_out = json.loads((tmp_path / "out" / "summary.json").read_text())["held_out_trials"]
    assert held_out == np.flatnonzero(draw_trials(12, 2)).tolist() != [10, 11]
    assert "3 whole trials" in printed
    model, guide = plr.load(tmp_path / "out" / "model.safetensors")
    assert type(guide) is plr.LaplaceGuide
    drawn = model.simulate(50, 20).y
    assert torch.equal(drawn, drawn.round())
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.5)


def test_features_that_remember(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = words("--likelihood", "autoregressive", "--order", 2)
    assert cli.main(words("fit", recorded, "--out", tmp_path / "out", *SMALL, *options)) == 0
    model, guide = plr.load(tmp_path / "out" / "model.safetensors")
    assert model.observation.autoregression.order == 2
    assert type(guide) is plr.OptimalGuide
    assert "AR(2) features" in capsys.readouterr().out
    refused = words("fit", recorded, "--out", tmp_path / "out", *SMALL, "--order", 2)
    assert cli.main(refused) == 2
    assert "`--order` is of --likelihood autoregressive" in capsys.readouterr().err


def test_noise_that_features_share(recorded: Path, tmp_path: Path) -> None:
    assert cli.main(words("fit", recorded, "--out", tmp_path / "out", *SMALL, "--noise-factors", 2)) == 0
    model, _ = plr.load(tmp_path / "out" / "model.safetensors")
    assert model.observation.num_noise_factors == 2
    refused = words(
        "fit", recorded, "--out", tmp_path / "out", *SMALL, "--noise-factors", 2, "--likelihood", "student-t"
    )
    assert cli.main(refused) == 2


@pytest.mark.parametrize("likelihood", ["student-t", "negative-binomial", "bernoulli"])
def test_other_likelihoods(likelihood: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.random.default_rng(0).poisson(0.3, size=(6, 20, 3)).clip(max=1)
    np.save(tmp_path / "y.npy", 1000.0 + 50.0 * y if likelihood == "student-t" else y)
    command = words("fit", tmp_path / "y.npy", "--out", tmp_path / "out", *SMALL, "--likelihood", likelihood)
    assert cli.main([*command, "--guide", "laplace"]) == 0
    yardstick = "without latent dynamics" if likelihood == "student-t" else "without any dynamics"
    assert yardstick in capsys.readouterr().out
    model, guide = plr.load(tmp_path / "out" / "model.safetensors")
    assert type(model.observation) is OBSERVATIONS[likelihood]
    assert type(guide) is plr.LaplaceGuide
    expected = 1000.0 + 50.0 * y.mean() if likelihood == "student-t" else y.mean()
    assert model.observation.mean(torch.zeros(2)).mean().item() == pytest.approx(expected, rel=0.3)


def test_inputs_come_from_a_file_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "y.npy", rng.normal(size=(6, 20, 3)))
    np.savez(tmp_path / "u.npz", cue=rng.normal(size=(6, 20, 2)), other=rng.normal(size=(6, 20, 4)))
    command = words("fit", tmp_path / "y.npy", "--out", tmp_path / "out", *SMALL, "--inputs", tmp_path / "u.npz")
    assert cli.main([*command, "--inputs-key", "cue"]) == 0
    model, _ = plr.load(tmp_path / "out" / "model.safetensors")
    assert model.dynamics.num_inputs == 2
    np.save(tmp_path / "short.npy", rng.normal(size=(6, 19, 2)))
    assert cli.main([*command[:-1], str(tmp_path / "short.npy")]) == 2
    assert "`inputs` must have" in capsys.readouterr().err


def test_nothing_held_out_and_nothing_standardised(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--held-out", "0", "--no-standardise", "--activation", "tanh")
    assert cli.main(words("fit", recorded, "--out", tmp_path, *SMALL, *options)) == 0
    printed = capsys.readouterr().out
    assert "nothing is held out" in printed
    assert "standardised" not in printed
    assert json.loads((tmp_path / "summary.json").read_text())["held_out_evidence_per_bin"] is None


def test_demo_compares_student_and_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("demo", "--out", tmp_path, "--steps", 20)) == 0
    printed = capsys.readouterr().out
    numbers = {
        name: [float(word) for word in line.split()[-2:]]
        for line in printed.splitlines()
        for name in ("largest axis", "observation noise", "evidence")
        if name in line
    }
    assert numbers["largest axis"][0] == 0.2
    assert numbers["observation noise"] == [0.1, pytest.approx(0.1, abs=0.02)]
    teacher, student = numbers["evidence"]
    # No model is worth more than the true one, but for what the two estimates are off.
    assert 10 < student < teacher + 0.05
    assert max(map(len, printed.removesuffix("\n").splitlines()[:-1])) <= 88
    for name in ("student", "teacher"):
        model, _ = plr.load(tmp_path / f"{name}.safetensors")
        assert model.simulate(2, 30).y.shape == (2, 30, 20)
    assert (tmp_path / "demo.png").stat().st_size > 20_000


def test_without_matplotlib_the_rest_is_done(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(words("fit", recorded, "--out", tmp_path, *SMALL)) == 0
    assert 'pip install "pyro-lowrank[plot]"' in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "training.png").exists()


def bad_commands(recorded: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Commands that cannot be run, and what they are answered with."""
    out = ("--out", tmp_path / "out")
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    return {
        "no such file": (words("fit", tmp_path / "no.npy", *out), "there is no file at"),
        "damaged": (words("fit", tmp_path / "broken.npy", *out), "truncated, damaged"),
        "folder": (words("fit", recorded, "--out", file / "out"), "cannot be made: Not a directory; choose another"),
        "demo folder": (words("demo", "--out", file / "out"), "cannot be made"),
        "rank": (words("fit", recorded, *out, *SMALL, "--rank", 9), "`rank` must be at most `units`"),
        "counts": (words("fit", recorded, *out, *SMALL, "--likelihood", "poisson"), "takes counts, 0, 1, 2"),
        "guide": (words("fit", recorded, *out, "--likelihood", "student-t", "--guide", "optimal"), "OptimalGuide"),
        "share": (words("fit", recorded, *out, "--held-out", 1.5), "is a share, at least 0 and below 1, got 1.5"),
        "steps": (words("fit", recorded, *out, *SMALL, "--steps", 0), "`num_steps` must be at least 1"),
        "particles": (words("fit", recorded, *out, *SMALL, "--particles", -1), "`num_particles` must be at least 1"),
        "axis": (words("fit", recorded, *out, "--time-axis", 4), "`time_axis` must be an axis of the array"),
    }


CASES = (
    "no such file",
    "damaged",
    "folder",
    "demo folder",
    "rank",
    "counts",
    "guide",
    "share",
    "steps",
    "particles",
    "axis",
)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_code_2(
    case: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, message = bad_commands(recorded, tmp_path)[case]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyro-lowrank: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_words_that_make_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["frobnicate"], ["fit"], ["fit", "data.npy", "--rank"], ["demo", "--steps", "many"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2
    assert "usage: pyro-lowrank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "used"), [(None, "passive"), pytest.param("active", "active", marks=pytest.mark.slow)]
)
def test_threads_of_the_program_sleep_unless_told_otherwise(given: str | None, used: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    environment |= {"OMP_DISPLAY_ENV": "true"}  # the threads' library then says what it read
    code = (
        "import os, sys, pyro_lowrank.cli as cli\n"
        "assert 'torch' not in sys.modules\n"
        f"code = cli.main(['fit', 'no.npy', '--out', {str(tmp_path)!r}])\n"
        "print(code, os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["2", used], done.stderr
    read, _, said = done.stderr.rpartition("OPENMP DISPLAY ENVIRONMENT END")
    assert re.findall(r"OMP_WAIT_POLICY ?= ?'(\w+)'", read) == [used.upper()]
    assert said.lstrip().startswith("pyro-lowrank: error: ")


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "pyro_lowrank", "fit", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rank R" in done.stdout


@pytest.mark.slow
def test_fit_raises_the_held_out_evidence_of_a_real_recording(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "eeg_s001r01_smoothed.npy"
    assert cli.main(words("fit", data, "--rank", 3, "--units", 512, "--steps", 100, "--out", tmp_path)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["held_out_evidence_per_bin"]["after"] > summary["held_out_evidence_per_bin"]["before"] + 0.5
    model, _ = plr.load(tmp_path / "model.safetensors")
    assert model.simulate(2, 500).y.isfinite().all()
