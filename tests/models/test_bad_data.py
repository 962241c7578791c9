"""What a model refuses, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import gaussian_model

GOOD_Y, GOOD_U = torch.randn(4, 6, 3), torch.randn(4, 6, 2)


def with_entry(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed[1, 2, 0] = value
    return changed


BAD = {
    "array": (GOOD_Y.numpy(), GOOD_U, TypeError, "`y` must be a torch.Tensor .* got ndarray; convert it with"),
    "integers": (torch.ones(4, 6, 3, dtype=torch.int64), GOOD_U, TypeError, "`y` must hold floats .* got torch.int64"),
    "other type": (GOOD_Y.double(), GOOD_U, TypeError, "`y` holds torch.float64, the model torch.float32; pass y.to"),
    "other type of inputs": (GOOD_Y, GOOD_U.double(), TypeError, "`u` holds torch.float64, the model torch.float32"),
    "one trial": (GOOD_Y[0], GOOD_U, ValueError, r"`y` must have 3 dims, .* got 2 with shape \(6, 3\); .* y\[None\]"),
    "four dims": (GOOD_Y[None], GOOD_U, ValueError, r"`y` must have 3 dims, .* got 4 with shape \(1, 4, 6, 3\)"),
    "features": (GOOD_Y[..., :2], GOOD_U, ValueError, "`y` must have 3 features in its last dim, .* got 2"),
    "time last": (GOOD_Y.mT, GOOD_U.mT, ValueError, "`y` must have 3 features .* got 6 .* try y.mT"),
    "no trials": (GOOD_Y[:0], GOOD_U[:0], ValueError, r"`y` is empty: .* got \(0, 6, 3\)"),
    "no time": (GOOD_Y[:, :0], GOOD_U[:, :0], ValueError, r"`y` is empty: .* got \(4, 0, 3\)"),
    "infinity": (with_entry(GOOD_Y, torch.inf), GOOD_U, ValueError, r"`y` holds 1 infinite .* index \(1, 2, 0\)"),
    "no inputs": (GOOD_Y, None, ValueError, "built with inputs=2, but no inputs came; pass `u`"),
    "dims of inputs": (GOOD_Y, GOOD_U[0], ValueError, "`u` must have 3 dims, trials x time x inputs, got 2"),
    "channels": (GOOD_Y, GOOD_U[..., :1], ValueError, "`u` must have 2 inputs in its last dim, .* got 1"),
    "short inputs": (GOOD_Y, GOOD_U[:, :5], ValueError, "`u` must be as long as the data, 6 time bins, got 5"),
    "long inputs": (GOOD_Y[:, :5], GOOD_U, ValueError, "`u` must be as long as the data, 5 time bins, got 6"),
    "trials of inputs": (GOOD_Y, GOOD_U[:3], ValueError, "`u` must have as many trials as the data, 4, got 3"),
    "infinite input": (GOOD_Y, with_entry(GOOD_U, -torch.inf), ValueError, "`u` holds 1 infinite values"),
    "missing input": (GOOD_Y, with_entry(GOOD_U, torch.nan), ValueError, "`u` holds NaN: inputs cannot be missing"),
}


@pytest.mark.parametrize(("y", "u", "error", "message"), BAD.values(), ids=BAD)
def test_data_that_do_not_fit_are_refused_before_anything_is_sampled(
    y: Any, u: Tensor | None, error: type[Exception], message: str
) -> None:
    model = gaussian_model(torch.float32, inputs=2)
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        model(y, u)
    with pytest.raises(error, match=message):
        model.check_data(y, u)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_to_a_model_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="Inputs `u` came, but the dynamics were built with inputs=0"):
        gaussian_model(torch.float32)(GOOD_Y, GOOD_U)


@pytest.mark.parametrize("value", [-1.0, 1.5])
def test_what_is_no_count_is_refused_by_a_model_of_counts(value: float) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.PoissonObservation(rank=2, features=3))
    with pytest.raises(ValueError, match=rf"negative or fractional values, the first at index \(1, 2, 0\), {value:g}"):
        model(with_entry(torch.ones(4, 6, 3), value))


def test_a_constant_feature_warns_and_works(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype)
    y = torch.randn(4, 6, 3, dtype=dtype)
    y[..., 2] = 0.5
    with pytest.warns(UserWarning, match=r"Features \[2\] of `y` never change") as caught:
        model(y)
    assert caught[0].filename == __file__


def test_a_model_is_made_of_dynamics_and_an_observation_model() -> None:
    dynamics, observation = plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=3)
    with pytest.raises(TypeError, match="`dynamics` must be a LowRankRNN or FullRankRNN, got GaussianObservation"):
        plr.StateSpaceModel(observation, dynamics)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`observation` must be an Observation, got ndarray"):
        plr.StateSpaceModel(dynamics, np.zeros(3))  # type: ignore[arg-type]
