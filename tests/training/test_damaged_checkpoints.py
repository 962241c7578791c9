"""A checkpoint that was damaged is not resumed from, and leaves the model and what is in its place as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pyro_lowrank as plr
from tests.training.builders import assert_same_state, pair, recording, small_fit, state


def stop_after(step: int) -> Any:
    """A callback during which Ctrl-C is pressed."""

    def callback(report: Any) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    return callback


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The checkpoint of a fit that was stopped."""
    small_fit(*pair(), recording(), checkpoint=tmp_path / "checkpoint", callback=stop_after(3))
    return tmp_path / "checkpoint"


def rewrite(path: Path, edit: Any) -> None:
    """Change what a checkpoint says of its fit; without a digest, as those of earlier releases."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]
    configuration = json.loads(header["configuration"])
    edit(configuration, tensors)
    save_file(tensors, path, header | {"configuration": json.dumps(configuration)})


def test_a_flipped_bit_never_changes_what_a_fit_ends_in(checkpoint: Path) -> None:
    y, random = recording(), np.random.default_rng(5)
    expected, guide = pair()
    small_fit(expected, guide, y)
    whole, refused = checkpoint.read_bytes(), 0
    for place in random.integers(len(whole), size=100):
        content = bytearray(whole)
        content[place] ^= 1 << int(random.integers(8))
        checkpoint.write_bytes(content)
        model, guide = pair(seed=9)
        before = state(model)
        try:
            small_fit(model, guide, y, checkpoint=checkpoint, resume=True)
        except ValueError as error:
            assert str(checkpoint) in str(error)  # noqa: PT017 (below, where there is none)
            assert_same_state(model, before)
            refused += 1
        else:
            assert_same_state(model, state(expected))
    assert refused > 95


def test_one_of_an_earlier_release_is_resumed(checkpoint: Path) -> None:
    y = recording()
    expected, guide = pair()
    small_fit(expected, guide, y)
    rewrite(checkpoint, lambda *_: None)
    model, guide = pair(seed=9)
    small_fit(model, guide, y, checkpoint=checkpoint, resume=True)
    assert_same_state(model, state(expected))


CHANGES: dict[str, Any] = {
    "no step": lambda c, _: c["training"].pop("step"),
    "no number": lambda c, _: c["training"].update(num_steps="6"),
    "no settings": lambda c, _: c["training"].update(settings=[1]),
    "no record": lambda c, _: c.update(training=3),
    "no history": lambda c, _: c["training"].pop("history"),
    "history of another length": lambda c, _: c["training"].update(step=4),
    "history of other names": lambda c, _: c["training"].update(history=[["evidenc", {"tensor": "training.x"}]]),
    "no optimizer": lambda c, _: c["training"].update(optimizer=[]),
    "optimizer of others": lambda c, _: c["training"]["optimizer"][1][1]["items"].clear(),
    "no tree": lambda c, _: c["training"].update(optimizer=[3]),
    "NaN": lambda _, tensors: tensors["model.dynamics.left_unconstrained"].fill_(torch.nan),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_resumed_changes_nothing(name: str, checkpoint: Path) -> None:
    rewrite(checkpoint, CHANGES[name])
    model, guide = pair(seed=9)
    before = state(model)
    with pytest.raises(ValueError, match=f"{checkpoint}.*(damaged|does not fit this model|of another fit)"):
        small_fit(model, guide, recording(), checkpoint=checkpoint, resume=True)
    assert_same_state(model, before)


def test_parameters_that_became_nan_do_not_replace_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    model, guide = pair()

    def ruin(report: Any) -> None:
        if report.step == 2:
            with torch.no_grad():
                model.observation.noise_scale_unconstrained.fill_(torch.inf)
            raise KeyboardInterrupt

    with pytest.raises(ValueError, match=r"checkpoint is kept as it was, .*: model\.observation\.noise_scale_unc"):
        small_fit(model, guide, recording(), checkpoint=path, checkpoint_every=1, callback=ruin)
    again, _ = plr.load(path)
    assert all(value.isfinite().all() for value in again.state_dict().values())


def test_constants_of_a_users_model_may_be_infinite(tmp_path: Path) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    model, guide = pair()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    small_fit(model, guide, y, checkpoint=path, callback=stop_after(3))
    small_fit(model, guide, y, checkpoint=path, resume=True)
    expected, guide = pair()
    small_fit(expected, guide, y)
    assert torch.equal(model.dynamics.left, expected.dynamics.left)


KILLED = """
import os, signal, sys
import pyro_lowrank as plr
from pyro_lowrank import files
from tests.training.builders import pair, recording, small_fit

def killed(report):
    if report.step == 3:
        files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)

small_fit(*pair(), recording(), checkpoint=sys.argv[1], checkpoint_every=1, callback=killed)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no such signals there")
def test_a_process_that_is_killed_while_it_writes_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / ("c" * 220)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    y = recording()
    model, guide = pair(seed=9)
    small_fit(model, guide, y, checkpoint=path, resume=True)
    expected, guide = pair()
    small_fit(expected, guide, y)
    assert_same_state(model, state(expected))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
