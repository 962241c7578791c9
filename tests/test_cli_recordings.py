"""The command line fits spikes and signals in the files of their fields."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from pyro_lowrank.cli import fitting
from pyro_lowrank.data import Recording
from pyro_lowrank.training.batches import Batch
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


def test_a_channel_that_never_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.random.default_rng(0).normal(size=(200, 4))
    y[:, 1] = 0.1
    np.save(tmp_path / "y.npy", y)
    assert fit(tmp_path / "y.npy") == 0
    model, guide = plr.load(tmp_path / "out" / "model.safetensors")
    assert model.observation.mean(torch.zeros(2))[1].item() == pytest.approx(0.1, abs=0.01)
    assert model.observation.noise_variance[1] > 1e-12, "not the square of a rounding error"
    data = torch.as_tensor(y, dtype=torch.float32)[None]
    assert plr.SMCFilter(model, guide, num_particles=10).run(data).log_evidence.isfinite().all()


def test_fewer_components_than_latents(capsys: pytest.CaptureFixture[str]) -> None:
    y = 5.0 + torch.randn(1, 200, 3)
    y = y - y.mean(-1, keepdim=True)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=8), plr.GaussianObservation(rank=3, features=3))
    drawn = model.observation.readout.weight.detach().clone()
    fitting._start(model, Batch.whole(y, None))
    printed = capsys.readouterr().out
    assert "The 3 features have 2 principal components, as after an average reference: fewer" in printed
    assert "than the 3 latents (`--rank`), whose weights therefore start at random." in printed
    assert torch.equal(model.observation.readout.weight, drawn)
    torch.testing.assert_close(model.observation.noise_variance, y.var((0, 1), correction=0))


@pytest.mark.parametrize("channels", [2, 3])
def test_no_advice_that_the_command_line_has_no_option_for(
    channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    y = np.random.default_rng(0).normal(size=(200, channels))
    np.save(tmp_path / "y.npy", y - y.mean(-1, keepdims=True))
    assert fit(tmp_path / "y.npy", "--rank", "3", "--steps", "2") == 0
    captured = capsys.readouterr()
    assert "leave the model as it was drawn" not in captured.out + captured.err + caplog.text


def test_trials_that_overlap_with_those_held_out_are_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = np.array([0.1 + 0.5 * trial for trial in range(18)])
    recording = Recording(np.repeat(starts, 40).reshape(18, 40, 1), bin_size=0.05, start_times=starts)
    y = torch.as_tensor(recording.data)
    split = fitting._split(recording, y, y, 0.1)
    assert split.held_out is not None
    assert split.held_out.y[:, 0, 0].tolist() == starts[16:].tolist()
    assert split.train.y[:, 0, 0].tolist() == starts[:13].tolist()
    assert split.train.u is not None
    assert torch.equal(split.train.u, split.train.y)
    assert split.places.sentence.endswith("\n3 trials share time with these, and are left out of the training.")
    path = nwb_file(tmp_path / "long.nwb", random_spikes(3, 12.0), [(start, 11.9, "go") for start in (0.1, 0.2, 0.3)])
    assert fit(path, "--likelihood", "poisson", "--bin", "0.05") == 2
    assert "All 2 trials to train on share time with the last 1, which are held out" in capsys.readouterr().err


def test_trials_and_units_in_a_mat_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io = pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    cells = np.empty((6, 3), dtype=object)
    for place, train in zip(np.ndindex(6, 3), random_spikes(18, 2.0), strict=True):
        cells[place] = train
    io.savemat(tmp_path / "spikes.mat", {"spikes": cells})
    assert fit(tmp_path / "spikes.mat", "--likelihood", "poisson", "--bin", "0.05") == 2
    assert "(on the command line, `--trials-axis 0`) if each row is a trial" in capsys.readouterr().err
    assert fit(tmp_path / "spikes.mat", "--likelihood", "poisson", "--bin", "0.05", "--trials-axis", "0") == 0
    assert "that is 6 x 40 x 3" in capsys.readouterr().out
