"""What experiments measure beside `pyro_lowrank.metrics`, against what can be worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tutorials" / "experiments"


@pytest.fixture
def attractors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("attractors")


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("premotor_generation")


def test_binned_divergence_is_that_of_the_histograms(attractors: ModuleType) -> None:
    # Three of four points in the first of 30 bins, one in the last; and the other way round.
    real, generated = np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([[0.0], [1.0], [1.0], [1.0]])
    found = attractors.binned_divergence(real, generated, np.zeros(1), np.ones(1))
    assert found == pytest.approx(0.5 * np.log(3), rel=1e-3)  # 3/4 log 3 - 1/4 log 3
    assert attractors.binned_divergence(real, real, np.zeros(1), np.ones(1)) == 0


def test_what_is_generated_out_of_range_does_not_count(attractors: ModuleType) -> None:
    real = np.random.default_rng(0).uniform(size=(500, 3))
    beyond = np.concatenate([real, 5 + real])
    assert attractors.binned_divergence(real, beyond, np.zeros(3), np.ones(3)) == 0
    # With nothing within it all bins are alike: the entropy is what is missing.
    nothing = attractors.binned_divergence(real, 5 + real, np.zeros(3), np.ones(3))
    assert nothing == pytest.approx(np.log(30**3 / 500), rel=0.05)


def test_cues_are_on_from_their_onset_to_the_end_of_each_trial(generation: ModuleType) -> None:
    from pyro_lowrank.data import Recording

    trials = [np.zeros((4, 1)), np.zeros((6, 1))]
    inputs = generation.with_cues(Recording.from_trials(trials, conditions=["right", "left"]), onset=2).inputs
    assert inputs is not None
    np.testing.assert_array_equal(inputs[0, :, 1], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(inputs[1, :, 0], [0, 0, 1, 1, 1, 1])
    assert inputs.sum() == 6


def test_targets_are_compared_by_what_each_adds_to_the_mean(generation: ModuleType) -> None:
    rng = np.random.default_rng(0)
    units, targets = 50 * rng.uniform(size=(1, 400)), rng.normal(size=(5, 400))
    same = generation.compared(units + targets, units + 3 * targets)
    assert same["r"] == pytest.approx(1)
    assert same["matched"] == 1
    assert same["matrix_r"] == pytest.approx(1)
    other = generation.compared(units + targets, units + targets[[1, 2, 3, 4, 0]])
    assert abs(other["r"] + 0.25) < 0.1  # independent up to the mean over five
    assert other["matched"] == 0
