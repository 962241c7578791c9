"""Windows from the middle of a trial start from a distribution of their own, and trials from the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.serialization import read_archive
from pyro_lowrank.training.batches import Batch, FirstAndOtherWindows
from pyro_lowrank.training.setting import noise_scale_of, set_value
from pyro_lowrank.training.team import ALONE
from pyro_lowrank.training.window_start import OneStart, WindowStart, batches_of
from tests.oracles.linear import exact_log_evidence, kalman_filter, linear_model, linear_system
from tests.training.builders import assert_same_state, pair, recording, small_fit, state
from tests.training.test_batches import labelled
from tests.training.test_checkpoint import ctrl_c_after, history
from tests.training.test_recipe import recipe

NAN = float("nan")
INITIAL = ("dynamics.initial_mean_unconstrained", "dynamics.initial_noise_scale_unconstrained")


def test_first_windows_stand_before_others() -> None:
    y = labelled(6, 30)
    y[2, :9] = NAN  # begins late
    y[3, 3:] = NAN  # shorter than the window
    batches = FirstAndOtherWindows(Batch.whole(y, None), window=5, batch_size=300, num_first=100, seed=0)
    first = torch.tensor([0, 0, 9, 0, 0, 0])
    for step in range(3):
        batch = batches.draw(step)
        assert ((batch.starts == first[batch.trials]) == (torch.arange(300) < 100)).all()
        assert [len(batch.trials[rows].unique()) for rows in (slice(100), slice(100, 300))] == [6, 5]
    options = {"window": 5, "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match="the first of their trials"):
        FirstAndOtherWindows(Batch.whole(labelled(3, 5), None), num_first=1, **options)
    with pytest.raises(ValueError, match="at least 1 and below `batch_size`=2, got 2"):
        FirstAndOtherWindows(Batch.whole(y, None), num_first=2, **options)


def test_rows_are_cut_where_first_windows_end() -> None:
    start = WindowStart(plr.LowRankRNN(rank=1, units=2), num_first=3, window=5)
    parts = [slice(0, 2), slice(2, 5), slice(5, 7)]
    assert start.split(parts) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 7)]
    assert start.split([slice(4, 6)]) == [slice(4, 6)], "another process has the first windows"


def test_evidence_of_a_window_is_what_it_is_given_the_past() -> None:
    """Started where the Kalman filter predicts the latents, a window has its evidence given all before it."""
    torch.manual_seed(3)
    model = linear_model()
    y, begin = model.simulate(1, 12).y, 7
    system, seen = linear_system(model, 12), kalman_filter(model, y)
    mean = seen.mean[0, begin - 1] @ system.transition.mT + system.transition_offset[0, begin]
    covariance = system.transition @ seen.covariance[0, begin - 1] @ system.transition.mT + system.noise
    starts, before = WindowStart(model.dynamics, num_first=2, window=5), state(model)
    elbo = plr.EKFEvidence()
    with starts.in_place(), torch.no_grad():
        set_value(model.dynamics, "initial_mean", mean)
        set_value(model.dynamics, "initial_noise_scale", noise_scale_of("full", covariance))
    with starts.of(slice(2, 4)):
        found = elbo.log_evidence(model, None, y[:, begin:])
    expected = exact_log_evidence(model, y) - exact_log_evidence(model, y[:, :begin])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_state(model, before)
    with starts.of(slice(0, 2)):
        torch.testing.assert_close(elbo.log_evidence(model, None, y), exact_log_evidence(model, y))


@pytest.mark.parametrize("kind", ["full", "diagonal", "scalar"])
def test_windows_begin_where_the_latents_are(kind: str) -> None:
    torch.manual_seed(0)
    # Trials start at a point, where windows do not.
    options: dict[str, Any] = {"activation": "identity", "noise_scale": 0.5, "initial_scale": 1e-3}
    dynamics = plr.LowRankRNN(rank=2, units=6, initial_noise=kind, **options)
    with torch.no_grad():
        dynamics.right.zero_()
        dynamics.initial_mean.fill_(0.0)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3))
    starts = WindowStart(model.dynamics, num_first=2, window=500)
    starts.begin(Batch.whole(torch.zeros(12, 500, 3), None))
    with starts.in_place():
        mean, covariance = dynamics.initial_mean.detach(), dynamics.initial_covariance.detach()
    # A leak of 0.9: correlated over 20 bins, so that 1,000 bins tell the spread within a third.
    expected = 0.25 / (1 - 0.81) * torch.eye(2)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.5)
    assert mean.abs().max() < 0.8


class Grows(plr.Dynamics):
    """Latents that grow by a factor in each bin."""

    def __init__(self, growth: float) -> None:
        super().__init__(rank=2)
        self.growth = torch.nn.Parameter(torch.tensor(growth))

    def mean(self, z: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
        return self.growth * z


@pytest.mark.parametrize("growth", [1.2, 1.5, 2.0, 1e4])
def test_windows_start_as_trials_do_where_latents_run_away(growth: float) -> None:
    torch.manual_seed(0)
    model = plr.StateSpaceModel(Grows(growth), plr.GaussianObservation(rank=2, features=3))
    starts = WindowStart(model.dynamics, num_first=2, window=20)
    before = [parameter.detach().clone() for parameter in starts.parameters]
    starts.begin(Batch.whole(torch.zeros(12, 100, 3), None))
    assert all(torch.equal(*each) for each in zip(before, starts.parameters, strict=True))


def test_first_windows_have_the_share_that_they_have_of_the_recording() -> None:
    model, _ = pair()
    y = torch.zeros(12, 1000, 3)
    y[:, 1::2] = NAN
    asked = recipe(y, window=100, batch_size=10)
    starts = batches_of(model, Batch.whole(y, None), asked, 0, ALONE)[1]
    assert starts.settings == {"first_windows": 1}
    assert "1 of each batch" in starts.told


def test_windows_from_the_middle_do_not_train_where_trials_start() -> None:
    model, guide = pair()
    starts, y = WindowStart(model.dynamics, num_first=2, window=5), recording(trials=4)
    own = tuple(model.get_parameter(name) for name in INITIAL)
    for rows, trained in ((slice(0, 2), own), (slice(2, 4), starts.parameters)):
        with starts.of(rows):
            loss = plr.SMC_ELBO(4)(model, guide)(y)
        found = torch.autograd.grad(loss, (*own, *starts.parameters), allow_unused=True)
        has_gradient = [each is not None and bool(each.any()) for each in found]
        assert has_gradient == [
            any(parameter is other for other in trained) for parameter in (*own, *starts.parameters)
        ]


def test_parts_of_a_batch_change_nothing() -> None:
    y = recording(torch.float64, trials=12)
    fits = [pair(torch.float64) for _ in range(2)]
    for (model, guide), number in zip(fits, (1, 3), strict=True):
        small_fit(model, guide, y, window=5, batch_size=5, num_steps=3, parts=number)
    found, expected = (state(model) for model, _ in fits)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    assert found.keys() == state(pair()[0]).keys(), "the start of windows is no part of the model"


def test_a_start_that_is_frozen_stays_and_that_of_windows_learns(tmp_path: Path) -> None:
    model, guide = pair()
    for name in INITIAL:
        model.get_parameter(name).requires_grad_(False)
    before, y = state(model), recording(trials=12)
    kept = []
    for num_steps in (1, 6):
        path = tmp_path / str(num_steps)
        small_fit(model, guide, y, window=5, batch_size=2, num_steps=num_steps, checkpoint=path)
        tensors = read_archive(path).tensors
        kept.append([tensors[f"training.besides.{number}"] for number in range(2)])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in INITIAL)
    assert all(not torch.equal(first, last) for first, last in zip(*kept, strict=True))


def test_a_fit_with_a_start_of_windows_is_resumed(tmp_path: Path) -> None:
    y, options = recording(trials=12), {"window": 5, "batch_size": 2, "num_steps": 8, "checkpoint_every": 3}
    model, guide = pair()
    expected = small_fit(model, guide, y, **options)
    stopped, guide = pair()
    path = tmp_path / "stopped"
    small_fit(stopped, guide, y, checkpoint=path, callback=ctrl_c_after(4), **options)
    again, guide = pair(seed=77)
    result = small_fit(again, guide, y, checkpoint=path, resume=True, **options)
    assert history(result) == history(expected)
    assert_same_state(again, state(model))
    fewer, guide = pair()
    with pytest.raises(ValueError, match="first_windows was 1, is None"):
        small_fit(fewer, guide, y[:5], checkpoint=path, resume=True, **options)


def test_only_trials_that_are_enough_tell_how_they_start() -> None:
    model, _ = pair()

    def starts(trials: int, bins: int = 12, window: int | None = 5, owner: Any = model) -> type:
        y = torch.zeros(trials, bins, 3)
        asked = recipe(y, window=window, batch_size=2)
        return type(batches_of(owner, Batch.whole(y, None), asked, 0, ALONE)[1])

    assert starts(10) is WindowStart
    assert starts(9) is OneStart
    assert starts(1, 400) is OneStart
    assert starts(10, window=None) is OneStart
    assert starts(10, bins=5) is OneStart, "no window is from the middle"
    assert starts(10, owner=torch.nn.Linear(1, 1)) is OneStart
