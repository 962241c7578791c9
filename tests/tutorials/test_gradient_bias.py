"""Gradients of the evidence against the exact score, and a fit under a proposal that does not see the data."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from tests.oracles.quadrature import log_evidence_on_a_grid

FOLDER = Path(__file__).resolve().parents[2] / "tutorials" / "experiments"


@pytest.fixture
def bias(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiment."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gradient_bias")


def test_the_score_of_the_experiment_is_that_of_the_evidence_by_quadrature(bias: Any) -> None:
    model, y = bias.recorded(0, replace(bias.FULL, trials=2, bins=4))
    found = bias.exact_log_evidence(model, y, points=801)
    torch.testing.assert_close(found, log_evidence_on_a_grid(model, y, points=801).sum(), rtol=1e-9, atol=1e-9)
    noise = model.get_parameter("dynamics.noise_scale_unconstrained")
    (slope,) = torch.autograd.grad(found, noise)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            noise += sign * 1e-4
            ends.append(log_evidence_on_a_grid(model, y, points=801).sum())
            noise -= sign * 1e-4
    assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-4, rel=1e-5)


@pytest.mark.slow
def test_paths_are_nearer_to_the_score_than_particles(bias: Any) -> None:
    """What the committed table says, of its first network, with room for a third of its estimates."""
    row = bias.run(0, replace(bias.FULL, repeats=20))
    assert row["bias_fisher_optimal"] < 0.1
    assert row["bias_fisher_bootstrap"] < 0.35
    assert row["bias_pathwise_optimal"] > 2 * row["bias_fisher_optimal"]
    assert row["bias_pathwise_bootstrap"] > 1


@pytest.mark.slow
def test_a_fit_under_the_bootstrap_guide_ends_near_the_exact_maximum(bias: Any) -> None:
    """Within one and a half standard errors, of the transition noise; pathwise gradients end outside."""
    model, y = bias.recorded(0, bias.FULL)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    scales = torch.linspace(0.25, 0.6, 36, dtype=torch.float64)
    evidence = []
    for scale in scales:
        with torch.no_grad():
            model.dynamics.noise_scale = scale.reshape(1, 1)
            evidence.append(bias.exact_log_evidence(model, y, 401))
    top = int(torch.stack(evidence).argmax())
    assert 0 < top < len(scales) - 1
    # A parabola through the three highest.
    before, middle, after = evidence[top - 1 : top + 2]
    step, curvature = scales[1] - scales[0], before - 2 * middle + after
    best = scales[top] + 0.5 * step * (before - after) / curvature
    error = step / (-curvature).sqrt()
    found = {}
    for gradient in (plr.FisherGradient(), plr.PathwiseGradient()):
        with torch.no_grad():
            model.dynamics.noise_scale = torch.full((1, 1), 0.3, dtype=torch.float64)
        model.get_parameter("dynamics.noise_scale_unconstrained").requires_grad_(True)
        plr.fit(
            model,
            plr.BootstrapGuide(model),
            y,
            num_steps=300,
            learning_rate=0.03,
            elbo=plr.SMC_ELBO(64, gradient=gradient),
            start_at_data=False,
            progress=False,
        )
        found[type(gradient).__name__] = model.dynamics.noise_scale.item()
    assert abs(found["FisherGradient"] - best) < 1.5 * error, (found, best, error)
    assert abs(found["PathwiseGradient"] - best) > 1.5 * error, (found, best, error)
