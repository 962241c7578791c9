"""Minibatches hold what stands at their place in the data, cover it evenly, and depend on seed and step alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_lowrank.training.batches import Batch, TrialBatches, WindowBatches, observed_bins

NAN = float("nan")


def labelled(num_trials: int, num_steps: int) -> Tensor:
    """A recording that tells its own place: 1000 * trial + time, in two features."""
    place = 1000.0 * torch.arange(num_trials).unsqueeze(-1) + torch.arange(num_steps)
    return torch.stack([place, -place], -1)


def test_trials_come_once_per_epoch_in_a_new_order() -> None:
    batches = TrialBatches(Batch.whole(labelled(7, 3), None), batch_size=2, seed=5)
    orders = [[int(t) for step in range(3 * e, 3 * e + 3) for t in batches.draw(step).trials] for e in range(20)]
    assert all(len(set(order)) == 6 for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert {t for order in orders for t in order} == set(range(7)), "what one epoch leaves over comes in another"


@pytest.mark.parametrize("window", [None, 4])
def test_a_batch_holds_what_stands_at_its_place(window: int | None) -> None:
    y, u = labelled(6, 30), 0.5 * labelled(6, 30)[..., :1]
    if window is None:
        batch = TrialBatches(Batch.whole(y, u), batch_size=3, seed=0).draw(1)
    else:
        batch = WindowBatches(Batch.whole(y, u), window=window, batch_size=3, seed=0).draw(1)
    length = window or 30
    for row, (trial, start) in enumerate(zip(batch.trials.tolist(), batch.starts.tolist(), strict=True)):
        assert torch.equal(batch.y[row], y[trial, start : start + length])
        assert batch.u is not None
        assert torch.equal(batch.u[row], u[trial, start : start + length])
    assert batch.size == 3 * length
    assert batch.arguments == (batch.y, batch.u)


@pytest.mark.parametrize("window", [None, 4])
def test_a_step_depends_on_its_number_and_the_seed_alone(window: int | None) -> None:
    def make(seed: int) -> TrialBatches | WindowBatches:
        if window is None:
            return TrialBatches(Batch.whole(labelled(9, 30), None), batch_size=4, seed=seed)
        return WindowBatches(Batch.whole(labelled(9, 30), None), window=window, batch_size=4, seed=seed)

    generator = torch.get_rng_state()
    forwards, backwards = make(0), make(0)
    drawn = [forwards.draw(step).y for step in range(6)]
    assert all(torch.equal(backwards.draw(step).y, drawn[step]) for step in reversed(range(6)))
    assert not torch.equal(make(1).draw(0).y, drawn[0])
    assert torch.equal(torch.get_rng_state(), generator)


def test_all_trials_are_one_batch_in_their_order() -> None:
    y = labelled(3, 5)
    batch = TrialBatches(Batch.whole(y, None), batch_size=None, seed=0).draw(17)
    assert batch.y is y
    assert batch.arguments == (y,)


def test_windows_are_drawn_evenly() -> None:
    batches = WindowBatches(Batch.whole(labelled(2, 12), None), window=3, batch_size=500, seed=0)
    drawn = [batches.draw(step) for step in range(20)]
    places = torch.cat([10 * (batch.trials * 100 + batch.starts) for batch in drawn])
    counts = places.unique(return_counts=True)[1]
    assert len(counts) == 2 * 10
    # 10,000 windows over 20 places: 500 each, with a standard deviation of 22.
    assert ((counts - 500).abs() < 4.5 * 22).all()


def test_windows_of_ragged_trials_hold_no_padding() -> None:
    y = labelled(4, 20)
    y[1, 12:] = NAN  # ends early
    y[2, :9] = NAN  # begins late
    y[3, 3:] = NAN  # shorter than the window
    batches = WindowBatches(Batch.whole(y, None), window=5, batch_size=400, seed=0)
    batch = batches.draw(0)
    whole = observed_bins(batch.y).all(-1)
    assert whole[batch.trials < 3].all()
    short = batch.trials == 3
    assert (batch.starts[short] == 0).all()
    assert set(batch.trials.tolist()) == {0, 1, 2, 3}
    assert batch.starts[batch.trials == 1].max() == 7
    assert batch.starts[batch.trials == 2].min() == 9


def test_windows_in_which_everything_is_missing_are_never_drawn() -> None:
    y = labelled(2, 30)
    y[0, 8:22] = NAN
    y[1] = NAN
    batch = WindowBatches(Batch.whole(y, None), window=4, batch_size=300, seed=0).draw(0)
    assert (batch.trials == 0).all()
    assert observed_bins(batch.y).any(-1).all()


def test_a_trial_that_ends_too_late_for_a_window_to_begin_at_its_first_bin() -> None:
    y = torch.full((1, 10, 1), NAN)
    y[0, 8:] = 1.0
    batch = WindowBatches(Batch.whole(y, None), window=5, batch_size=3, seed=0).draw(0)
    assert (batch.starts == 5).all()


def test_batch_of_everything_knows_its_places() -> None:
    batch = Batch.whole(labelled(3, 4), None)
    assert batch.trials.tolist() == [0, 1, 2]
    assert batch.starts.tolist() == [0, 0, 0]


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"at most the number of trials, 3, got 4\.$"):
        TrialBatches(Batch.whole(labelled(3, 5), None), batch_size=4, seed=0)
    with pytest.raises(ValueError, match="pass `window` to train on windows of a long recording"):
        TrialBatches(Batch.whole(labelled(1, 5), None), batch_size=4, seed=0)
    with pytest.raises(ValueError, match="at most the number of time bins, 5, got 6"):
        WindowBatches(Batch.whole(labelled(3, 5), None), window=6, batch_size=None, seed=0)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        WindowBatches(Batch.whole(labelled(3, 5), None), window=2, batch_size=0, seed=0)
