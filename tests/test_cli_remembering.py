"""The command line fits fluorescence and BOLD: the time from frame to frame, folders of Suite2p, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyro_lowrank as plr
from pyro_lowrank import cli
from tests.data.test_suite2p import folder_of
from tests.test_cli import SMALL, words


@pytest.mark.parametrize(("likelihood", "guide"), [("calcium", plr.LaplaceGuide), ("bold", plr.OptimalGuide)])
def test_an_array_is_fitted_with_the_bin_that_is_passed(likelihood: str, guide: type, tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    np.save(path, np.random.default_rng(0).random((80, 4)).cumsum(0) % 1.7)
    out = tmp_path / "out"
    assert cli.main(words("fit", path, "--out", out, "--likelihood", likelihood, "--bin", 0.5, *SMALL)) == 0
    model, found = plr.load(out / "model.safetensors")
    assert type(found) is guide
    assert model.observation.bin_size == 0.5


def test_a_folder_of_suite2p_is_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = folder_of(tmp_path), tmp_path / "out"
    options = words("--likelihood", "calcium", "--bin", 0.1, "--indicator", "GCaMP6s", "--out", out)
    assert cli.main(words("fit", folder, *options, *SMALL)) == 0
    assert "ops.npy, which is pickled, was not opened" in capsys.readouterr().out
    assert plr.load(out / "model.safetensors")[0].observation.indicator == "GCaMP6s"


def test_errors_say_what_to_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "y.npy"
    np.save(path, np.random.default_rng(0).random((80, 4)))
    for arguments, message in (
        (words(path, "--likelihood", "calcium"), "needs the time from frame to frame.*pass `--bin SECONDS`"),
        (words(folder_of(tmp_path)), "is a folder of Suite2p: pass `--bin SECONDS`"),
        (words(path, "--indicator", "GCaMP6f"), "`--indicator` is of --likelihood calcium"),
        (words(path, "--likelihood", "calcium", "--bin", 3.0), "longer than the decay of the indicator"),
    ):
        assert cli.main(words("fit", *arguments, "--out", tmp_path / "out", *SMALL)) == 2
        assert np.char.count(capsys.readouterr().err, message.split(".*")[0]) == 1, message
