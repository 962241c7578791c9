"""The command line fits spikes and signals in the files of their fields."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from tests.data.builders import nwb_file, random_spikes

SMALL = ("--units", "8", "--rank", "2", "--steps", "3", "--window", "20", "--batch-size", "3", "--particles", "4")
TRIALS = [(0.5, 2.5, "left"), (3.0, 6.01, "right"), (7.0, 9.0, "left")]


def fit(path: Path, *options: str) -> int:
    """Run the command on a file, with its output beside it; return the exit code."""
    return cli.main(["fit", str(path), "--out", str(path.parent / "out"), *SMALL, *options])


def test_spikes_of_an_nwb_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nwb_file(tmp_path / "spikes.nwb", random_spikes(3, 12.0), TRIALS)
    assert fit(path, "--likelihood", "poisson", "--bin", "0.02") == 0
    printed = capsys.readouterr().out
    assert "Spikes of 3 units in 3 epochs; " in printed
    assert "As trials x time bins x features, that is 3 x 150 x 3." in printed
    model, _ = plr.load(tmp_path / "out" / "model.safetensors")
    # Units that fire 20 times a second, 0.4 per bin: where a few steps of training begin.
    assert model.observation.mean(torch.zeros(2)).tolist() == pytest.approx([0.4] * 3, abs=0.1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["options"]["bin"] == 0.02
    assert summary["bin_size"] == 0.02
    assert summary["feature_names"] == ["100", "101", "102"]
    assert fit(path, "--likelihood", "poisson") == 2
    assert "have to be binned: pass `bin_size` in seconds" in capsys.readouterr().err


def test_output_goes_to_a_folder_of_its_own_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nwb_file(tmp_path / "spikes.nwb", random_spikes(3, 12.0), TRIALS)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "spikes.nwb", "--likelihood", "poisson", "--bin", "0.02", *SMALL]) == 0
    assert (tmp_path / "fit" / "model.safetensors").exists()


def test_a_mat_file_of_spike_times_and_of_signals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    cells = np.empty(3, dtype=object)
    cells[:] = random_spikes(3, 12.0)
    io.savemat(tmp_path / "spikes.mat", {"spikes": cells})
    assert fit(tmp_path / "spikes.mat", "--likelihood", "poisson", "--bin", "0.05") == 0
    assert "one epoch from the first spike to the last" in capsys.readouterr().out
    io.savemat(tmp_path / "eeg.mat", {"eeg": np.random.default_rng(0).normal(size=(4, 200)), "fs": 100.0})
    assert fit(tmp_path / "eeg.mat") == 0
    assert "took axis 1 as time because it is the longer axis" in capsys.readouterr().out


def test_counts_are_summed_over_longer_bins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.random.default_rng(0).poisson(0.05, size=(4, 1000, 3))
    np.savez(tmp_path / "counts.npz", counts=counts, bin_s=0.001)
    assert fit(tmp_path / "counts.npz", "--likelihood", "poisson", "--bin", "0.02") == 0
    assert "that is 4 x 50 x 3." in capsys.readouterr().out
    assert fit(tmp_path / "counts.npz", "--bin", "0.0015") == 2
    assert "must be a multiple of the recording's, 0.001 s, got 0.0015 s" in capsys.readouterr().err
