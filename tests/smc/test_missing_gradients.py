"""Where nothing was recorded a density may overflow: it is left out, and so is its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_lowrank as plr

OBSERVATIONS: dict[str, Any] = {
    "gaussian": plr.GaussianObservation(rank=2, features=3),
    "poisson": plr.PoissonObservation(rank=2, features=3, link="exp"),
    "negative binomial": plr.NegativeBinomialObservation(rank=2, features=3),
    "student": plr.StudentTObservation(rank=2, features=3),
    "joint": plr.JointObservation(
        {"a": plr.GaussianObservation(rank=2, features=2), "b": plr.PoissonObservation(rank=2, features=1, link="exp")}
    ),
}
GRADIENTS = {"fisher": plr.FisherGradient(), "pathwise": plr.PathwiseGradient()}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *((kind, "plain") for kind in OBSERVATIONS),
        # A loop is compiled for each.
        *(
            pytest.param(kind, "auto", marks=[] if kind in ("gaussian", "poisson") else pytest.mark.slow)
            for kind in OBSERVATIONS
        ),
    ],
)
def test_a_recording_of_gaps_has_no_gradient_however_far_the_latents(kind: str, gradient: str, backend: str) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5, activation="softplus"), OBSERVATIONS[kind])
    with torch.no_grad():
        # The square of the residual, and the exponential of the readout, are infinite in float32.
        model.dynamics.initial_mean.fill_(1e25)
    elbo = plr.SMC_ELBO(1, gradient=GRADIENTS[gradient], backend=backend)
    model.zero_grad()
    loss = elbo.differentiable_loss(model, None, torch.full((2, 4, 3), torch.nan))
    assert loss.item() == 0
    if loss.requires_grad:
        loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


def test_an_entry_that_is_missing_throughout_has_no_gradient_however_far() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=3))
    with torch.no_grad():
        model.observation.readout.weight[0] = 1e25
    y = torch.randn(2, 4, 3)
    y[..., 0] = torch.nan
    elbo = plr.SMC_ELBO(4, gradient=plr.PathwiseGradient())
    loss = elbo.differentiable_loss(model, plr.BootstrapGuide(model), y)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert not model.observation.readout.weight_unconstrained.grad[0].any()
    assert model.observation.readout.weight_unconstrained.grad[1:].abs().min() > 0


def test_the_model_of_the_report() -> None:
    torch.manual_seed(68)
    dynamics = plr.LowRankRNN(rank=3, units=3, activation="softplus", noise="scalar", weights="gaussian")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=3, features=2))
    elbo = plr.SMC_ELBO(1, gradient=plr.PathwiseGradient())
    elbo.differentiable_loss(model, None, torch.full((2, 4, 2), torch.nan)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_encoder_learns_nothing_from_gaps_however_far_the_latents() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=3))
    guide = plr.EncoderGuide(model, plr.ConvEncoder(features=3, rank=2, channels=(4,), kernel_sizes=(3, 1)))
    with torch.no_grad():
        model.dynamics.initial_mean.fill_(1e25)
    for backend in ("auto", "plain"):
        guide.zero_grad()
        loss = plr.SMC_ELBO(4, backend=backend).differentiable_loss(model, guide, torch.full((2, 4, 3), torch.nan))
        loss.backward()
        assert loss.isfinite()
        gradients = {name: p.grad for name, p in guide.named_parameters() if p.grad is not None}
        assert gradients
        for name, gradient in gradients.items():
            assert not gradient.any(), name
