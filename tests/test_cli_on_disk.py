"""The command line fits what it leaves on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank import cli
from pyro_lowrank.cli import on_disk

SMALL = ("--units", "8", "--rank", "2", "--steps", "4", "--window", "10", "--batch-size", "3", "--particles", "4")


def fit(path: Path, out: Path, *options: Any) -> int:
    return cli.main(["fit", str(path), "--out", str(out), *SMALL, *map(str, options)])


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return dict(plr.load(out / "model.safetensors")[0].state_dict())


def lfp(shape: tuple[int, ...] = (120, 5)) -> Any:
    rng = np.random.default_rng(0)
    return (3e4 + 40 * np.cumsum(rng.normal(size=shape), -2)).astype(np.float32)


@pytest.mark.parametrize("shape", [(120, 5), (12, 30, 5)], ids=["one trial", "trials"])
def test_numbers_are_those_of_a_file_that_is_read(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "y.npy"
    np.save(path, lfp(shape))
    assert fit(path, tmp_path / "read") == 0
    read = capsys.readouterr().out
    monkeypatch.setattr(on_disk, "_SMALL", 1)
    assert fit(path, tmp_path / "left") == 0
    left = capsys.readouterr().out
    for name, value in tensors(tmp_path / "read").items():
        torch.testing.assert_close(tensors(tmp_path / "left")[name], value, rtol=1e-5, atol=1e-6)
    first = "Training on the first 108 time bins" if len(shape) == 2 else "Training on 10 trials; 2 others, drawn"
    for line in (first, "took axis", "for scale"):
        assert line in read
        assert line in left


@pytest.mark.parametrize("kind", ["zarr", "h5"])
def test_containers_are_read_by_key(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"y.{kind}"
    if kind == "zarr":
        group = pytest.importorskip("zarr").open_group(str(path), mode="w")
        for name in ("lfp", "other"):
            group.create_array(name, data=lfp())
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["lfp"], file["other"] = lfp(), lfp()
    assert fit(path, tmp_path / "out") == 2
    assert "`--key` must name an array of" in capsys.readouterr().err
    assert fit(path, tmp_path / "out", "--key", "lfp", "--standardise") == 0
    np.save(tmp_path / "y.npy", lfp())
    assert fit(tmp_path / "y.npy", tmp_path / "read") == 0
    for name, value in tensors(tmp_path / "read").items():
        torch.testing.assert_close(tensors(tmp_path / "out")[name], value, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_left_on_the_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_disk, "_SMALL", 1)
    path = tmp_path / "y.npy"
    np.save(path, lfp())
    assert fit(path, tmp_path / "out", "--bin", 0.1) == 2
    assert "`--bin` is for files that are read as a whole" in capsys.readouterr().err
    with pytest.importorskip("h5py").File(tmp_path / "y.h5", "w") as file:
        file["y"] = lfp().T
    assert fit(tmp_path / "y.h5", tmp_path / "out") == 2
    assert "store it with its axes in that order" in capsys.readouterr().err
    assert fit(tmp_path / "none.zarr", tmp_path / "out") == 2
    assert "There is nothing at" in capsys.readouterr().err
