"""Draws of trials take as large a share of every condition, by chance, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.data.draws import draw_trials


@pytest.mark.parametrize("seed", range(5))
def test_every_condition_gives_its_share(seed: int) -> None:
    labels = np.repeat(["a", "b", "c"], [40, 20, 10])
    drawn = draw_trials(70, 7, labels, seed=seed)
    assert [int(drawn[labels == label].sum()) for label in "abc"] == [4, 2, 1]
    # 8 of 70: 4.57, 2.29 and 1.14; the first is nearest to one more.
    assert [int(draw_trials(70, 8, labels, seed=seed)[labels == label].sum()) for label in "abc"] == [5, 2, 1]


def test_rare_conditions_take_turns_and_keep_a_trial_each() -> None:
    labels = np.repeat(np.arange(20), 2)
    drawn = np.array([draw_trials(40, 4, labels, seed=seed) for seed in range(200)])
    assert (drawn.sum(1) == 4).all()
    assert drawn.reshape(200, 20, 2).sum(2).max() == 1
    # Every trial comes with the probability of 4 in 40: 20 times in 200, give or take four standard deviations.
    assert abs(drawn.sum(0) - 20).max() < 4 * np.sqrt(200 * 0.1 * 0.9)


def test_a_draw_is_random_and_depends_on_the_seed_alone() -> None:
    drawn = [draw_trials(30, 10, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert not draw_trials(5, 0).any()


def test_where_conditions_cannot_be_kept_all_trials_are_alike() -> None:
    assert draw_trials(4, 2, ["a", "b", "c", "d"]).sum() == 2
    assert draw_trials(4, 3, ["a", "a", "b", "b"]).sum() == 3
    assert draw_trials(4, 2, ["a", None, "a", "b"]).sum() == 2


def test_bad_numbers_and_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="below the 4 trials, got 4"):
        draw_trials(4, 4)
    with pytest.raises(ValueError, match="one label for each of 4 trials"):
        draw_trials(4, 1, ["a"])
