"""A fit that breaks down says at which step, trial and time of the data, and keeps what was good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor, nn

import pyro_lowrank as plr
from pyro_lowrank.training.batches import Batch, WindowBatches
from tests.training.builders import assert_same_state, pair, recording, small_fit, state


def overflowing(trial: int, time: int) -> Tensor:
    """A recording with one value whose square is infinite in float32."""
    y = recording(steps=20)
    y[trial, time, 1] = 1e30
    return y


def test_a_loss_that_is_not_finite_stops_at_its_place(tmp_path: Path) -> None:
    model, guide = pair()
    y, path = overflowing(trial=3, time=17), tmp_path / "checkpoint"
    states = [state(model)]
    with pytest.raises(
        SMCFailed, match=r"Step \d+: the loss is not finite at trial 3, time 17 of `y`: a weight is not a number"
    ):
        small_fit(
            model,
            guide,
            y,
            num_steps=50,
            batch_size=1,
            seed=2,
            learning_rate=0.01,
            checkpoint=path,
            checkpoint_every=1,
            callback=lambda _: states.append(state(model)),
        )
    assert len(states) > 1, "some steps went well before"
    assert_same_state(model, states[-1])
    assert_same_state(plr.load(path)[0], states[-1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_places_within_windows_are_those_of_the_data() -> None:
    model, guide = pair()
    y = overflowing(trial=2, time=11)
    batches = WindowBatches(Batch.whole(y, None), window=6, batch_size=4, seed=0)
    step = next(s for s in range(100) if bool((batches.draw(s).y > 1e29).any()))
    with pytest.raises(SMCFailed, match=rf"Step {step}: the loss is not finite at trial 2, time 11 of `y`"):
        small_fit(model, guide, y, window=6, batch_size=4, num_steps=100)


def test_held_out_data_are_named() -> None:
    with pytest.raises(SMCFailed, match=r"Step 0: the loss is not finite at trial 1, time 4 of `held_out`"):
        small_fit(*pair(), recording(steps=20), held_out=overflowing(trial=1, time=4))


class Kinked(plr.Observation):
    """Noise around the latents, and around the square root of zero where the input is 1: its gradient is infinite."""

    def __init__(self) -> None:
        super().__init__(features=2)
        self.shift = nn.Parameter(torch.tensor(0.3))

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        assert v is not None
        kink = torch.where(v > 0, self.shift - self.shift.detach(), 1.0).sqrt()
        return dist.Normal(z + torch.where(v > 0, kink, 0.0), 0.5).to_event(1)


@pytest.mark.parametrize("window", [None, 5])
def test_a_gradient_that_is_not_finite_stops_at_its_place(window: int | None) -> None:
    model = plr.StateSpaceModel(pair(inputs=1)[0].dynamics, Kinked())
    y, u = torch.randn(4, 12, 2), torch.zeros(4, 12, 1)
    u[2, 7] = 1.0
    before = state(model)
    with pytest.raises(SMCFailed, match=r"the gradient of the loss is not finite at trial 2, time 7 of `y`"):
        small_fit(model, plr.BootstrapGuide(model), y, u, window=window, num_steps=50, learning_rate=1e-30)
    for name, value in state(model).items():
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=1e-20)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_covariance_that_cannot_be_factored_is_told_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise torch.linalg.LinAlgError("the input is not positive-definite")

    monkeypatch.setattr(plr.SMC_ELBO, "loss_and_history", fail)
    with pytest.raises(SMCFailed, match="Step 0: the loss of `y` cannot be computed: the input is not positive"):
        small_fit(*pair(), recording())
