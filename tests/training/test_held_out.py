"""A share of the data, in place of data, is held out of a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.data import Recording
from pyro_lowrank.data.held_out import held_out


def fitted(y: Any, u: Tensor | None = None, **options: Any) -> plr.FitResult:
    torch.manual_seed(0)
    inputs = 0 if u is None and not isinstance(y, Recording) else 1
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=5, inputs=inputs), plr.GaussianObservation(rank=1, features=3)
    )
    options = {"num_steps": 2, "num_particles": 4, "progress": False, "check_particles": False, **options}
    return plr.fit(model, plr.OptimalGuide(model), y, u, **options)


def same(one: plr.FitResult, other: plr.FitResult) -> bool:
    return one.held_out_evidence.tolist() == other.held_out_evidence.tolist() and one.evidence.tolist() == (
        other.evidence.tolist()
    )


def test_of_trials_it_is_drawn_with_their_inputs() -> None:
    y, u = torch.randn(10, 6, 3), torch.randn(10, 6, 1)
    places = held_out(10, 6, 0.2)
    expected = fitted(y[places.train], u[places.train], held_out=y[places.held_out], held_out_inputs=u[places.held_out])
    assert same(fitted(y, u, held_out=0.2), expected)
    assert same(fitted(y, u, held_out=np.float32(0.25)), fitted(y, u, held_out=0.25))
    assert not same(fitted(y, u, held_out=0.4), expected)


def test_every_condition_of_a_recording_gives_its_share() -> None:
    rng = np.random.default_rng(0)
    conditions = np.repeat(["left", "right"], [8, 4])
    y, u = rng.normal(size=(12, 6, 3)), rng.normal(size=(12, 6, 1))
    recording = Recording(y, inputs=u, conditions=conditions)
    places = held_out(12, 6, 0.25, recording)
    assert sorted(conditions[places.held_out]) == ["left", "left", "right"]
    train, left = (
        {"y": torch.tensor(y[rows]).float(), "u": torch.tensor(u[rows]).float()}
        for rows in (places.train, places.held_out)
    )
    expected = fitted(**train, held_out=left["y"], held_out_inputs=left["u"])
    assert same(fitted(recording, held_out=0.25), expected)


def test_of_a_single_recording_it_is_the_end() -> None:
    y = torch.randn(1, 50, 3)
    assert same(fitted(y, held_out=0.2), fitted(y[:, :40], held_out=y[:, 40:]))
    assert len(fitted(y, held_out=0.0).held_out_evidence) == 0


def test_what_is_no_share_is_refused(tmp_path: Path) -> None:
    y, u = torch.randn(4, 6, 3), torch.randn(4, 6, 1)
    with pytest.raises(ValueError, match="a share, at least 0 and below 1, got 1.5"):
        fitted(y, held_out=1.5)
    with pytest.raises(ValueError, match="a share, at least 0 and below 1, got 1"):
        fitted(y, held_out=1)
    with pytest.raises(ValueError, match="or with a share of `y`"):
        fitted(y, u, held_out=0.5, held_out_inputs=u)
    for where, kept in (("held out", slice(0, 8)), ("left", slice(8, 10))):
        single = torch.full((1, 10, 3), torch.nan)
        single[:, kept] = 0.5
        with pytest.raises(ValueError, match=f"what is {where} of `y` holds NaN only"):
            fitted(single, held_out=0.2)
    np.save(tmp_path / "y.npy", y.numpy())
    with pytest.raises(TypeError, match="of data that stay where they are pass the part"):
        fitted(np.load(tmp_path / "y.npy", mmap_mode="r"), held_out=0.5)
