"""The experiment on the full MC_Maze file, on a small file of its form."""

from __future__ import annotations

import datetime
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.tutorials.test_experiments import FOLDER, reduced

ONSETS = 1.0 + np.arange(20)
KINDS = [(1 + trial % 2, trial % 4 // 2) for trial in range(20)]


@pytest.fixture
def mc_maze(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mc_maze")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which the hand's first coordinate is the time, its second the number of the reach's kind."""
    pynwb: Any = pytest.importorskip("pynwb", reason="the extra `nwb` is not installed")
    rng = np.random.default_rng(0)
    begin = datetime.datetime(2009, 9, 15, tzinfo=datetime.timezone.utc)
    file = pynwb.NWBFile(session_description="made by a test", identifier="test", session_start_time=begin)
    for _ in range(8):
        file.add_unit(spike_times=np.sort(rng.uniform(0.0, 22.0, 400)))
    for name in ("move_onset_time", "trial_type", "trial_version"):
        file.add_trial_column(name, name)
    for onset, (kind, version) in zip(ONSETS, KINDS, strict=True):
        file.add_trial(
            start_time=onset - 0.5,
            stop_time=onset + 0.5,
            move_onset_time=onset,
            trial_type=kind,
            trial_version=version,
        )
    file.add_trial(
        start_time=20.5, stop_time=21.5, move_onset_time=np.nan, trial_type=1, trial_version=0
    )  # It never moved.
    times = np.arange(0.0, 23.0, 0.01)
    kind_now = np.array([10 * kind + version for kind, version in KINDS])[np.searchsorted(ONSETS[1:] - 0.5, times)]
    behaviour = file.create_processing_module("behavior", "of the hand")
    for name in ("hand_vel", "hand_pos"):
        series = pynwb.TimeSeries(name=name, data=np.stack([times, kind_now], -1), unit="m", timestamps=times)
        behaviour.add(series)
    target = tmp_path / "mc_maze_full.nwb"
    with pynwb.NWBHDF5IO(str(target), mode="w") as opened:
        opened.write(file)
    return target


def test_trials_begin_before_the_movement_and_the_hand_lags_behind(mc_maze: ModuleType, path: Path) -> None:
    recording, velocity, ends = mc_maze.trials_of(path)
    assert recording.data.shape == (20, 35, 8)
    assert list(recording.conditions[:4]) == ["1.0", "2.0", "1.1", "2.1"]
    np.testing.assert_allclose(recording.start_times, ONSETS - 0.25)
    middles = ONSETS[:, None] - 0.25 + 0.02 * (np.arange(35) + 0.5)
    np.testing.assert_allclose(velocity[..., 0], middles + 0.08, atol=1e-6)
    np.testing.assert_allclose(ends[:, 0], ONSETS + 0.45, atol=1e-6)


def test_cues_are_the_mean_ends_of_the_trials_that_were_seen(mc_maze: ModuleType, path: Path) -> None:
    recording, _, ends = mc_maze.trials_of(path)
    seen = list(range(12))
    inputs = mc_maze.with_cues(recording, ends, seen).inputs
    assert inputs.shape == (20, 35, 2)
    same = [trial for trial in seen if KINDS[trial] == KINDS[0]]
    farthest = np.abs([ends[[t for t in seen if KINDS[t] == kind]].mean(0) for kind in set(KINDS)]).max()
    np.testing.assert_allclose(inputs[16, 0], ends[same].mean(0) / farthest)


@pytest.mark.slow
def test_it_runs(path: Path) -> None:
    (row,) = reduced("mc_maze", path.parent, path.parent)["rows"]
    assert row["latents_r2"] <= 1
    assert np.shape(row["paths"]) == np.shape(row["hand"])
