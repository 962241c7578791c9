"""A cross-validation tells what its folds are worth without latent dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.data import Recording, trial_folds
from pyro_lowrank.training.baselines import Terms
from pyro_lowrank.validation.beside import baselines_by_trial
from pyro_lowrank.validation.parts import Fold
from tests.builders import shaken

# So slow that nothing is learned.
STANDING: dict[str, Any] = {"num_steps": 1, "learning_rate": 1e-12, "hidden": None, "num_filter_particles": 20}
NAMES = ["independent features", "AR(4) features", "AR(4), 1 static factor", "AR(4), 2 static factors", "VAR(1)"]


def factory(rank: int, observation: Any = plr.GaussianObservation) -> tuple[Any, Any]:
    """A model and its guide."""
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=rank, units=6), shaken(observation(rank=rank, features=4)))
    return model, plr.BootstrapGuide(model)


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Trials of different lengths."""
    torch.manual_seed(0)
    y = factory(2)[0].simulate(6, 40).y.numpy()
    return Recording.from_trials([trial[: 40 - 2 * place] for place, trial in enumerate(y)])


@pytest.fixture(scope="module")
def found(recording: Recording) -> plr.CrossValidation:
    """Two ranks on two folds."""
    folds = trial_folds(recording, 2, seed=3)
    return plr.cross_validate(factory, recording, ranks=(1, 2), folds=folds, progress=False, **STANDING)


def test_every_fold_has_those_of_its_own_training_part(recording: Recording, found: plr.CrossValidation) -> None:
    assert list(found.baselines) == NAMES
    for number, (train, held_out) in enumerate(trial_folds(recording, 2, seed=3)):
        bins = np.where(found.folds == number, found.bins, 0.0)
        expected = plr.baselines(train, held_out, order=4, factors=2)
        for name in set(NAMES) - {"AR(4), 1 static factor"}:
            there = np.where(found.folds == number, found.baselines[name], 0.0)
            assert there.sum() / bins.sum() == pytest.approx(expected[name], rel=1e-4)
    total = found.without_dynamics["AR(4) features"]
    assert float(total) == pytest.approx(found.baselines["AR(4) features"].sum() / found.bins.sum())


def test_the_table_and_the_picture_have_them(found: plr.CrossValidation) -> None:
    lines = str(found).splitlines()
    assert lines[-6] == "  without latent dynamics"
    assert [line.split("  ")[-1] for line in lines[-5:]] == NAMES
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    found.plot(axes)
    best = max(found.without_dynamics, key=lambda name: found.without_dynamics[name])
    labels = [line.get_label() for line in axes.lines]
    line = axes.lines[labels.index(f"{best}, no latents")]
    assert line.get_ydata()[0] == pytest.approx(float(found.without_dynamics[best]))


def test_there_are_none_of_counts(recording: Recording) -> None:
    assert Terms.of(factory(1, plr.PoissonObservation)[0]) is None
    assert baselines_by_trial([], [Fold(*split) for split in trial_folds(recording, 2)]) == {}


def test_a_sweep_has_them_too(recording: Recording) -> None:
    options = STANDING | {"grid": {"rank": [1]}, "folds": 2, "progress": False}
    found = plr.sweep(lambda rank: factory(rank), recording, **options)
    assert "  without latent dynamics" in str(found).splitlines()
    assert "VAR(1)" in found.baselines
