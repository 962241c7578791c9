"""What is held out of a fit."""

from __future__ import annotations

import numpy as np

from pyro_lowrank.data import Recording
from pyro_lowrank.data.held_out import held_out


def test_a_random_share_of_the_trials_of_every_condition() -> None:
    conditions = np.repeat(["left", "right"], [30, 10])
    found = held_out(40, 20, 0.1, Recording(np.zeros((40, 20, 2)), conditions=conditions))
    assert [int((conditions[found.held_out] == kind).sum()) for kind in ("left", "right")] == [3, 1]
    assert found.held_out.tolist() != [36, 37, 38, 39]
    assert sorted([*found.train, *found.held_out]) == list(range(40))
    assert found.sentence == ("Training on 36 trials; 4 others, drawn at random from 2 conditions alike, are held out.")
    assert held_out(40, 20, 0.1).sentence == "Training on 36 trials; 4 others, drawn at random, are held out."


def test_the_last_stretch_of_a_single_recording() -> None:
    found = held_out(1, 50, 0.1, Recording(np.zeros((1, 50, 2))))
    assert found.dim == 1
    assert found.held_out.tolist() == list(range(45, 50))
    assert found.train.tolist() == list(range(45))


def test_the_last_of_trials_that_overlap() -> None:
    starts = np.arange(20) * 0.5
    found = held_out(20, 20, 0.1, Recording(np.zeros((20, 20, 1)), bin_size=0.05, start_times=starts))
    assert found.held_out.tolist() == [18, 19]
    assert found.train.tolist() == list(range(17))
