"""Fixed-lag smoothing online, against the exact smoother of what was seen so far, with bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.smc.transitions import BuiltInTransitions
from tests.oracles.linear import kalman_filter, linear_model, linear_system
from tests.smc.test_effects import Delegate
from tests.smc.test_smoothing import Smoothed, errors, rts_smoother

LAG = 6


def online(smc: plr.SMCFilter, y: Tensor, u: Tensor | None) -> plr.SMCFilter:
    """Filter bin after bin."""
    for t in range(y.shape[1]):
        arguments = (y[:, t],) if u is None else (y[:, t], u[:, t])
        (smc.step if t else smc.init)(*arguments)
    return smc


def case(inputs: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor, Tensor | None]:
    """A linear model, its data and inputs."""
    model = linear_model(dtype=dtype, inputs=inputs, noise_scale=1.0)
    u = torch.randn(4, 20, inputs, dtype=dtype) if inputs else None
    y = model.simulate(4, 20, u).y
    y[1, 15:17] = torch.nan
    return model, y, u


@pytest.mark.parametrize("method", ["backward", "mcmc"])
@pytest.mark.parametrize(("inputs", "dtype"), [(0, torch.float32), (1, torch.float64)])
def test_the_last_bins_match_the_exact_smoother(method: str, inputs: int, dtype: torch.dtype) -> None:
    model, y, u = case(inputs, dtype)
    many = None if u is None else u.repeat(6, 1, 1)
    smc = online(plr.SMCFilter(model, plr.OptimalGuide(model), 1000, lag=LAG), y.repeat(6, 1, 1), many)
    z = smc.posterior().smooth(300, method=method)
    assert z.shape == (300, 24, LAG + 1, 2)
    exact = rts_smoother(model, y, u)
    last = Smoothed(exact.mean[:, -LAG - 1 :], exact.covariance[:, -LAG - 1 :], exact.lagged[:, -LAG:])
    error, variance, lagged = errors(z.unflatten(1, (6, 4)).flatten(0, 1), last)
    assert error < 0.05
    assert 0.97 < variance < 1.03
    assert 0.97 < lagged < 1.03
    # What was filtered alone is another distribution: this could fail.
    filtered = kalman_filter(model, y, u).covariance[:, -LAG - 1].diagonal(dim1=-2, dim2=-1)
    assert (z[:, :, 0].var(0).mean() / filtered.mean()) < 0.95


def test_users_models_are_smoothed_too() -> None:
    model, y, u = case(1)
    smc = plr.SMCFilter(Delegate(model), Delegate(plr.OptimalGuide(model)), 300, lag=2)
    assert u is not None
    z = online(smc, y.repeat(6, 1, 1), u.repeat(6, 1, 1)).posterior().smooth(200)
    exact = rts_smoother(model, y, u)
    last = Smoothed(exact.mean[:, -3:], exact.covariance[:, -3:], exact.lagged[:, -2:])
    error, variance, _ = errors(z.unflatten(1, (6, 4)).flatten(0, 1), last)
    assert error < 0.1
    assert 0.95 < variance < 1.05


def test_memory_is_bounded_and_the_numbers_are_those_of_the_filter() -> None:
    model, y, u = case(1)
    smc = online(plr.SMCFilter(model, plr.OptimalGuide(model), 50, lag=3), y, u)
    posterior = smc.posterior()
    assert len(smc._bins) == 4
    assert posterior.start == 16
    assert posterior.log_weights.shape == (4, 50, 4)
    assert torch.equal(posterior.particles["z"][:, :, -1], smc.state["z"])
    assert torch.equal(posterior.log_weights[-1], smc.log_weights)
    recorded, inputs = posterior.recording
    assert u is not None
    assert inputs is not None
    torch.testing.assert_close(recorded, y[:, -4:], equal_nan=True)
    assert torch.equal(inputs, u[:, -4:])
    # A short history has all there is, and begins as a whole run does.
    short = online(plr.SMCFilter(model, plr.OptimalGuide(model), 50, lag=30), y, u)
    assert short.posterior().start == 0
    torch.testing.assert_close(short.posterior().log_evidence, short.log_evidence)


def test_a_buffer_that_is_read_into_again_does_not_change_the_past() -> None:
    model, y, u = case(1)
    assert u is not None
    smc, buffers = plr.SMCFilter(model, plr.OptimalGuide(model), 50, lag=3), (y[:, 0].clone(), u[:, 0].clone())
    torch.manual_seed(0)
    for t in range(20):
        for buffer, sequence in zip(buffers, (y, u), strict=True):
            buffer.copy_(sequence[:, t])
        (smc.step if t else smc.init)(*buffers)
    torch.manual_seed(0)
    fresh = online(plr.SMCFilter(model, plr.OptimalGuide(model), 50), y, u)
    assert torch.equal(smc.log_evidence, fresh.log_evidence)
    posterior = smc.posterior()
    torch.testing.assert_close(posterior.recording[0], y[:, -4:], equal_nan=True)
    torch.testing.assert_close(posterior.recording[1], u[:, -4:])
    assert isinstance(posterior.transitions, BuiltInTransitions)
    torch.testing.assert_close(posterior.transitions.data.v, u[:, -4:])


def test_forecasts_and_calibration_go_on_from_the_last_bins() -> None:
    model, y, u = case(0)
    smc = online(plr.SMCFilter(model, plr.OptimalGuide(model), 2000, lag=2), y, u)
    forecast = smc.posterior().forecast(1, num_draws=4000)
    assert forecast.start.tolist() == [20] * 4
    filtered, system = kalman_filter(model, y), linear_system(model, 21)
    expected = filtered.mean[:, -1] @ system.transition.mT + system.transition_offset[0, -1]
    spread = filtered.covariance[0, -1].diagonal().max().sqrt() + system.noise.diagonal().max().sqrt()
    assert ((forecast.z.mean(0)[:, 0] - expected).abs() < 0.07 * spread).all()
    pit = smc.posterior().prequential_pit()
    assert pit[:, 0].isnan().all()
    assert pit[:, 1:].isfinite().all()


def test_an_online_filter_without_bins_says_so() -> None:
    model, y, _ = case(0)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20, lag=2)
    with pytest.raises(RuntimeError, match="call `init` or `step`"):
        smc.posterior()
    online(smc, y, None)
    state = smc.state_dict()
    smc.load_state_dict(state)
    with pytest.raises(RuntimeError, match="since `init` or `load_state_dict`"):
        smc.posterior()
    smc.step(y[:, 0])
    assert smc.posterior().start == 20
    with pytest.raises(ValueError, match="not know its filter"):
        smc.posterior().rerun()
    with pytest.raises(ValueError, match="`lag` must be at least 0"):
        plr.SMCFilter(model, plr.OptimalGuide(model), 20, lag=-1)
