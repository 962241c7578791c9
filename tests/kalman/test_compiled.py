"""The Gaussian filter's compiled loops give the numbers of tensor operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import network
from tests.kalman.test_kalman_filter import NAN, gapped, observation_of


def results(backend: str, model: plr.StateSpaceModel, y: Tensor, u: Tensor | None) -> list[Tensor]:
    """The evidence of each trial, its gradient, and smoothed moments."""
    evidence = plr.EKFEvidence(backend=backend).log_evidence(model, None, y, u)
    gradient = torch.autograd.grad(evidence.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True)
    posterior = plr.ExtendedKalmanFilter(model, backend=backend).run(y, u)
    moments = [posterior.filtered_mean, posterior.smoothed_mean, posterior.smoothed_covariance]
    return [evidence.detach(), torch.cat([each.flatten() for each in gradient]), *moments]


@pytest.mark.parametrize(
    ("kind", "activation", "inputs"),
    [("gaussian", "clipped_relu", 1), ("poisson", "tanh", 0), ("student-t", "tanh", 1), ("joint", "clipped_relu", 0)],
)
def test_they_give_the_numbers_of_tensor_operations(
    kind: str, activation: str, inputs: int, dtype: torch.dtype
) -> None:
    model = plr.StateSpaceModel(
        network(dtype, units=20, activation=activation, inputs=inputs), observation_of(kind, 2, 6, dtype)
    )
    u = torch.randn(3, 9, inputs, dtype=dtype) if inputs else None
    y = gapped(model.simulate(3, 9, u).y)
    y[2, 4:] = NAN
    exact = dtype == torch.float64
    for found, expected in zip(*(results(backend, model, y, u) for backend in ("compiled", "plain")), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            found, expected, rtol=1e-11 if exact else 1e-4, atol=scale * (1e-12 if exact else 1e-4)
        )


@pytest.mark.parametrize("steps", [1, 2])
def test_of_networks_of_full_rank_and_short_trials(steps: int) -> None:
    dynamics = plr.FullRankRNN(units=4, activation="softplus", dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=4, features=5, dtype=torch.float64))
    y = model.simulate(2, steps).y
    for found, expected in zip(*(results(backend, model, y, None) for backend in ("compiled", "plain")), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_peak_that_is_none_falls_back_as_there() -> None:
    """Student-t noise far from its centre pushes away: the expected information takes the place of the Hessian."""
    torch.manual_seed(1)
    model = plr.StateSpaceModel(
        network(torch.float64, units=20, activation="tanh", noise_scale=2.0),
        observation_of("student-t", 2, 6, torch.float64),
    )
    y = 30 * torch.randn(3, 9, 6, dtype=torch.float64)
    for found, expected in zip(*(results(backend, model, y, None) for backend in ("compiled", "plain")), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["compiled", "plain"])
def test_what_runs_away_is_told(backend: str) -> None:
    model = plr.StateSpaceModel(network(torch.float64, activation="relu"), observation_of("gaussian", 2, 6))
    with torch.no_grad():
        model.dynamics.right_unconstrained.mul_(1e60)
    y = torch.full((2, 9, 6), NAN, dtype=torch.float64)
    y[1, 0], y[1, -1] = 1.0, 1.0
    with pytest.raises(SMCFailed, match="The Gaussian filter of trial . fails at time"):
        plr.ExtendedKalmanFilter(model, backend=backend).run(y)


class Half(plr.Dynamics):
    """Latents that halve."""

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        return 0.5 * z


def test_dynamics_of_the_users_own_run_on_tensor_operations() -> None:
    model = plr.StateSpaceModel(Half(rank=2), plr.GaussianObservation(rank=2, features=3))
    y = model.simulate(2, 5).y
    backends: Any = [plr.ExtendedKalmanFilter(model, backend=name).run(y).log_evidence for name in ("auto", "plain")]
    torch.testing.assert_close(*backends)
    with pytest.raises(plr.NoCompiledForm, match="dynamics that the user has written"):
        plr.ExtendedKalmanFilter(model, backend="compiled").run(y)
    with pytest.raises(plr.NoCompiledForm, match="dynamics that the user has written"):
        plr.EKFEvidence(backend="compiled")(model, None)(y)
    with pytest.raises(ValueError, match="`backend` must be one of"):
        plr.ExtendedKalmanFilter(model, backend="fast")
