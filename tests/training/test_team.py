"""Several processes fit as one: the same numbers, whatever they share, and errors that no process waits for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.training.team import Team
from tests.training.builders import pair, recording, small_fit

ROOT = Path(__file__).resolve().parents[2]
PREFIX = """
import os, sys, torch
import pyro_lowrank as plr
from tests.training.builders import pair, recording, small_fit
rank = int(os.environ["RANK"])
folder = sys.argv[1]
double = torch.float64
"""
SUFFIX = """
torch.save({"state": model.state_dict(), "found": [found.evidence.tolist(), found.held_out_evidence.tolist()]},
           f"{folder}/{rank}.pt")
"""


def run_two(program: str, folder: Path, size: int = 2) -> list[tuple[int, str]]:
    """Run a program in processes that `torchrun` would start; return their codes and what they told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PREFIX + program, str(folder)]
        children.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        told = [child.communicate(timeout=200)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, text) for child, text in zip(children, told, strict=True)]


OPTIONS = {
    "windows": {"window": 5, "batch_size": 3, "num_steps": 50},
    "trials": {"batch_size": 4, "num_steps": 10},
    "all": {"num_steps": 10, "num_particles": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trials", "windows", "all"])
def test_two_processes_end_in_the_numbers_of_one(name: str, tmp_path: Path) -> None:
    options = {**OPTIONS[name], "start_at_data": True}
    program = f"""
y = recording(double, trials=7)
y[1, 3], y[2, 8:] = float("nan"), float("nan")
# Processes may have drawn different weights: those of the first count.
model, guide = pair(double, seed=1 + rank)
found = small_fit(model, guide, y[:5], held_out=y[5:], checkpoint=f"{{folder}}/c.safetensors", **{options!r})
"""
    for code, told in run_two(program + SUFFIX, tmp_path):
        assert code == 0, told
    y = recording(torch.float64, trials=7)
    y[1, 3], y[2, 8:] = float("nan"), float("nan")
    model, guide = pair(torch.float64)
    expected = small_fit(model, guide, y[:5], held_out=y[5:], **options)
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        np.testing.assert_allclose(kept["found"][0], expected.evidence, rtol=1e-10)
        np.testing.assert_allclose(kept["found"][1], expected.held_out_evidence, rtol=1e-10)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(kept["state"][key], value, rtol=1e-10, atol=1e-10)
    assert plr.load(tmp_path / "c.safetensors")


@pytest.mark.slow
def test_a_fit_of_one_process_goes_on_in_two(tmp_path: Path) -> None:
    y = recording(torch.float64)

    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    model, guide = pair(torch.float64)
    small_fit(model, guide, y, batch_size=2, checkpoint=tmp_path / "c.safetensors", callback=stop)
    program = """
model, guide = pair(double, seed=8)
found = small_fit(model, guide, recording(double), batch_size=2, checkpoint=f"{folder}/c.safetensors", resume=True)
"""
    for code, told in run_two(program + SUFFIX, tmp_path):
        assert code == 0, told
    model, guide = pair(torch.float64)
    small_fit(model, guide, y, batch_size=2)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(torch.load(tmp_path / "1.pt", weights_only=True)["state"][key], value)


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_all_of_them(tmp_path: Path) -> None:
    program = """
# Nothing that another process sends is unpickled.
torch.distributed.all_gather_object = None
model, guide = pair()
try:
    small_fit(model, guide, recording(), batch_size=1)
except ValueError as error:
    print("first:", error)
try:
    small_fit(model, guide, recording(seed=2 + rank), batch_size=2)
except ValueError as error:
    print("second:", error)
try:
    # Trials of the second process are impossible.
    y = recording()
    y[3:] = 1e30
    small_fit(model, guide, y, max_grad_norm=None)
except Exception as error:
    print("third:", type(error).__name__, error)
"""
    found = run_two(program, tmp_path)
    for rank, (code, told) in enumerate(found):
        assert code == 0, told
        assert "first: Each of 2 processes takes its share of a batch, and one of 1 trials" in told
        assert "second: The 2 processes were given different data: all need the same" in told
        assert "third:" in told, rank
    assert "Another process of the fit failed" in found[0][1]


def test_shares_are_the_whole() -> None:
    for number in range(3, 12):
        rows = [list(range(number))[Team(rank, 3).share(number)] for rank in range(3)]
        assert [row for part in rows for row in part] == list(range(number))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
