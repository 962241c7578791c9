"""The log evidence and its gradient against the exact ones of linear-Gaussian models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.guides.base import Guide
from tests.oracles.linear import exact_log_evidence, kalman_filter, linear_model

GUIDES = [plr.OptimalGuide, plr.BootstrapGuide, plr.LaplaceGuide]


def data(model: plr.StateSpaceModel, trials: int, steps: int) -> tuple[Tensor, Tensor | None]:
    inputs = model.dynamics.num_inputs
    u = torch.randn(trials, steps, inputs, dtype=torch.float64) if inputs else None
    return model.simulate(trials, steps, u).y, u


def test_the_two_oracles_agree() -> None:
    model = linear_model(inputs=2)
    y, u = data(model, 3, 6)
    torch.testing.assert_close(kalman_filter(model, y, u).increments.sum(0), exact_log_evidence(model, y, u))


@pytest.mark.parametrize("guide_type", GUIDES)
@pytest.mark.parametrize("inputs", [0, 2])
def test_log_evidence_converges_to_the_exact_one(guide_type: type[Guide], inputs: int) -> None:
    model = linear_model(inputs=inputs, noise_scale=1.0)
    y, u = data(model, 4, 10)
    posterior = plr.SMCFilter(model, guide_type(model), 20_000).run(y, u)
    exact = kalman_filter(model, y, u)
    torch.testing.assert_close(posterior.log_evidence, exact.increments.sum(0), rtol=0, atol=0.12)
    torch.testing.assert_close(posterior.log_evidence_increments, exact.increments, rtol=0, atol=0.06)


@pytest.mark.parametrize("guide_type", GUIDES)
@pytest.mark.parametrize("resampler", [plr.SystematicResampling(), plr.MultinomialResampling(), plr.NoResampling()])
@pytest.mark.parametrize("ess_threshold", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_evidence_is_unbiased(guide_type: type[Guide], resampler: object, ess_threshold: float) -> None:
    model = linear_model(noise_scale=1.0)
    y, _ = data(model, 1, 4)
    exact = exact_log_evidence(model, y)
    replicates = 20_000
    smc = plr.SMCFilter(model, guide_type(model), 5, resampler=resampler, ess_threshold=ess_threshold)
    ratio = (smc.run(y.expand(replicates, -1, -1)).log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 3.5 * ratio.std() / replicates**0.5
    # The bound that makes it an ELBO: with 5 particles the gap is visible.
    assert ratio.log().mean() < 0


@pytest.mark.parametrize("guide_type", GUIDES)
def test_filtering_moments_match_the_kalman_filter(guide_type: type[Guide], dtype: torch.dtype) -> None:
    model = linear_model(dtype=dtype, noise_scale=1.0)
    y = model.simulate(3, 8).y
    y[0, 2] = y[1, 3:5, 1] = torch.nan
    exact = kalman_filter(model, y)
    posterior = plr.SMCFilter(model, guide_type(model), 100_000).run(y)
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    assert posterior.mean().dtype == dtype
    assert ((posterior.mean() - exact.mean) / variance.sqrt()).abs().max() < 0.08
    torch.testing.assert_close(posterior.variance() / variance, torch.ones_like(variance), rtol=0, atol=0.2)


@pytest.mark.parametrize("guide_type", GUIDES)
def test_missing_entries_are_integrated_out(guide_type: type[Guide]) -> None:
    model = linear_model(noise_scale=1.0)
    y, _ = data(model, 3, 8)
    y[0, 2] = y[1, 3:5, 1] = y[2, 5:] = y[2, 0, 0] = torch.nan
    posterior = plr.SMCFilter(model, guide_type(model), 20_000).run(y)
    torch.testing.assert_close(posterior.log_evidence, kalman_filter(model, y).increments.sum(0), rtol=0, atol=0.12)


@pytest.mark.parametrize("guide_type", GUIDES)
def test_padding_changes_no_result(guide_type: type[Guide]) -> None:
    model = linear_model()
    y, _ = data(model, 2, 6)
    padded = torch.cat([y, torch.full((2, 4, 4), torch.nan, dtype=y.dtype)], 1)
    posterior = plr.SMCFilter(model, guide_type(model), 1000).run(padded)
    assert torch.equal(posterior.log_evidence_increments[6:].abs() < 1e-9, torch.ones(4, 2, dtype=torch.bool))


def gradients(model: plr.StateSpaceModel, value: Tensor) -> Tensor:
    """Return the gradient with respect to all parameters, as one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("guide_type", [*GUIDES[:2], pytest.param(GUIDES[2], marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("elbo", "copies", "steps"),
    [
        (plr.SMC_ELBO(50_000, resampler=plr.NoResampling(), gradient=plr.PathwiseGradient()), 5, 2),
        (plr.SMC_ELBO(1000, gradient=plr.FisherGradient(num_paths=100)), 100, 4),
        (plr.SMC_ELBO(1000, gradient=plr.StopGradient()), 100, 4),
        (plr.SMC_ELBO(1000, gradient=plr.StopGradient(), ess_threshold=0.5), 100, 4),
    ],
    ids=["no resampling", "Fisher", "stop-gradient", "stop-gradient below a threshold"],
)
def test_consistent_gradients_converge_to_the_exact_one(
    guide_type: type[Guide], elbo: plr.SMC_ELBO, copies: int, steps: int
) -> None:
    model = linear_model(inputs=1, noise_scale=1.0)
    y, u = data(model, 3, steps)
    exact = gradients(model, exact_log_evidence(model, y, u).sum())
    # Copies of each trial average the noise away; particles, the bias.
    many, many_u = y.repeat(copies, 1, 1), u.repeat(copies, 1, 1)
    found = gradients(model, -elbo.differentiable_loss(model, guide_type(model), many, many_u) / copies)
    assert exact.norm() > 1
    assert (found - exact).norm() < 0.04 * exact.norm()


def test_pathwise_gradient_with_the_optimal_guide_comes_close() -> None:
    """Ignoring resampling is biased, but along the exact gradient for a guide whose weights vary little."""
    model = linear_model(noise_scale=0.3)
    y, _ = data(model, 50, 10)
    exact = gradients(model, exact_log_evidence(model, y).sum())
    elbo = plr.SMC_ELBO(500, gradient=plr.PathwiseGradient())
    found = gradients(model, -elbo.differentiable_loss(model, plr.OptimalGuide(model), y))
    assert torch.cosine_similarity(found, exact, 0) > 0.97


@pytest.mark.parametrize("guide_type", GUIDES)
@pytest.mark.parametrize(
    "activation",
    [
        "clipped_relu",
        "tanh",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("relu", "softplus", "identity")),
    ],
)
def test_gradcheck_without_resampling(guide_type: type[Guide], activation: str) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=3, activation=activation, inputs=1, dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3, inputs=1, dtype=torch.float64))
    guide = guide_type(model)
    elbo = plr.SMC_ELBO(3, resampler=plr.NoResampling(), gradient=plr.PathwiseGradient())(model, guide)
    y, u = torch.randn(2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 1, dtype=torch.float64)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def loss(*parameters: Tensor) -> Tensor:
        torch.manual_seed(2)
        replaced = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(elbo, replaced, (y, u))

    start = tuple(dict(model.named_parameters())[name].detach().clone().requires_grad_() for name in names)
    # Along random directions of all parameters: entry by entry takes ten times as long.
    torch.autograd.gradcheck(loss, start, atol=1e-4, rtol=1e-3, fast_mode=True)
