"""The gradient of the Gaussian filter's evidence: against that of the exact one, and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import network, shaken
from tests.kalman.test_kalman_filter import KINDS, gapped, observation_of
from tests.oracles.linear import exact_log_evidence, linear_model


@pytest.mark.parametrize("inputs", [0, 1])
def test_the_gradient_is_that_of_the_exact_evidence_where_the_model_is_linear(dtype: torch.dtype, inputs: int) -> None:
    model = linear_model(inputs=inputs, dtype=dtype)
    u = torch.randn(3, 9, inputs, dtype=dtype) if inputs else None
    y = model.simulate(3, 9, u).y
    # Trials of different weight, so that a gradient of the sum alone would not pass.
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(plr.EKFEvidence().log_evidence(model, None, y, u) @ weights, list(parameters.values()))
    exact = torch.autograd.grad(exact_log_evidence(model, y, u) @ weights, list(parameters.values()))
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    for name, a, b in zip(parameters, found, exact, strict=True):
        assert b.any(), name
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1.0), name


def check_by_differences(model: plr.StateSpaceModel, y: Tensor, u: Tensor | None, *, rtol: float) -> None:
    """Compare every parameter's gradient, along a random direction, to a central difference."""
    elbo = plr.EKFEvidence()
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(elbo.log_evidence(model, None, y, u).sum(), list(parameters.values()))
    for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(step * direction)
                ends.append(elbo.log_evidence(model, None, y, u).sum().item())
            parameter.add_(1e-5 * direction)
        expected = (ends[0] - ends[1]) / 2e-5
        assert (grad * direction).sum().item() == pytest.approx(expected, rel=rtol, abs=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model = plr.StateSpaceModel(
        network(activation="tanh", inputs=1, input_filter=True, noise_scale=0.3), observation_of(kind, 2, 6)
    )
    u = torch.randn(2, 6, 1, dtype=torch.float64)
    check_by_differences(model, gapped(model.simulate(2, 6, u).y), u, rtol=1e-5)


def test_gradients_of_a_full_rank_network_and_of_heavy_tailed_noise() -> None:
    dynamics = shaken(
        plr.FullRankRNN(units=4, activation="softplus", noise_freedom=6.0, gain=0.5, dtype=torch.float64), 0.1
    )
    model = plr.StateSpaceModel(dynamics, observation_of("gaussian", 4, 3))
    check_by_differences(model, model.simulate(2, 5).y, None, rtol=1e-5)


def test_gradients_of_units_with_kinks_are_those_between_them() -> None:
    model = plr.StateSpaceModel(network(activation="relu", units=30), observation_of("poisson", 2, 6))
    check_by_differences(model, model.simulate(2, 5).y, None, rtol=1e-4)


def test_an_overflow_names_trial_and_time() -> None:
    model: Any = plr.StateSpaceModel(network(torch.float32), observation_of("gaussian", 2, 3, torch.float32))
    y = model.simulate(3, 6).y.clone()
    y[1, 4] = 1e30
    with pytest.raises(SMCFailed, match="of trial 1 fails at time 4"):
        plr.EKFEvidence()(model, None)(y)


def test_latents_that_run_away_in_the_padding_leave_evidence_and_gradient_alone() -> None:
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=4, activation="identity"), plr.GaussianObservation(rank=1, features=3)
    )
    with torch.no_grad():
        # Latents triple at each step: 200 steps leave the range of float32.
        model.dynamics.left.fill_(1.0)
        model.dynamics.right.fill_(2.1 / 4)
    y = torch.randn(2, 5, 3)
    padded = torch.cat([y, torch.full((2, 200, 3), torch.nan)], 1)
    padded[0, 5] = 1.0
    longer = torch.cat([y, torch.full((2, 1, 3), torch.nan)], 1)
    longer[0, 5] = 1.0
    grads = []
    for data in (longer, padded):
        model.zero_grad()
        plr.EKFEvidence()(model, None)(data).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
