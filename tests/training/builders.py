"""Small fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyro_lowrank as plr


def pair(dtype: torch.dtype = torch.float32, *, inputs: int = 0, seed: int = 1) -> tuple[plr.StateSpaceModel, Any]:
    """Build a small model and its guide, always with the same weights."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        dynamics = plr.LowRankRNN(rank=2, units=6, inputs=inputs, dtype=dtype)
        observation = plr.GaussianObservation(rank=2, features=3, noise_scale=0.5, dtype=dtype)
    model = plr.StateSpaceModel(dynamics, observation)
    return model, plr.OptimalGuide(model)


def recording(dtype: torch.dtype = torch.float32, *, trials: int = 5, steps: int = 12, seed: int = 2) -> Tensor:
    """Data of another small model."""
    model, _ = pair(dtype, seed=seed)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return model.simulate(trials, steps).y


def small_fit(model: Any, guide: Any, y: Tensor, *args: Any, **options: Any) -> plr.FitResult:
    """Fit with few particles and steps, from where the model is, unless told otherwise."""
    few: dict[str, Any] = {"num_steps": 6, "num_particles": 4, "progress": False, "start_at_data": False}
    return plr.fit(model, guide, y, *args, **{**few, **options})


def state(model: Any) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model: Any, expected: dict[str, Tensor]) -> None:
    """Compare parameters and buffers bit by bit."""
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []
