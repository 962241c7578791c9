"""Gradient estimators: what each is unbiased for, shown where the others fail."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.smc.pair import Pair
from pyro_lowrank.smc.plain import PlainKernel
from tests.oracles.linear import exact_log_evidence, linear_model


def bootstrap_case(num_steps: int) -> tuple[plr.StateSpaceModel, plr.BootstrapGuide, Tensor]:
    """A model whose bootstrap weights differ a lot, so that ignoring resampling shows."""
    model = linear_model(rank=1, features=1, noise_scale=0.5)
    return model, plr.BootstrapGuide(model), model.simulate(1, num_steps).y


def test_stop_gradient_is_unbiased_for_the_gradient_of_the_evidence_and_pathwise_is_not() -> None:
    model, guide, y = bootstrap_case(3)
    replicates = 50_000
    exact = exact_log_evidence(model, y).squeeze()
    expected = gradient_of(model, exact)
    errors = {}
    for name, gradient in {"stop": plr.StopGradient(), "path": plr.PathwiseGradient()}.items():
        elbo = plr.SMC_ELBO(3, gradient=gradient)
        _, history = elbo.loss_and_history(model, guide, y.expand(replicates, -1, -1))
        # Without averaging, the standard error takes a gradient per replicate: split them into groups.
        ratio = (history.increments.sum(0) - exact.detach()).exp()
        found = torch.stack([gradient_of(model, group.mean()) for group in ratio.chunk(50)])
        errors[name] = ((found.mean(0) - expected) / (found.std(0) / 50**0.5)).abs().max()
    assert errors["stop"] < 4
    assert errors["path"] > 8


def gradient_of(model: plr.StateSpaceModel, value: Tensor) -> Tensor:
    """Return the gradient with respect to the readout and the mean of the first latent, on which all weights depend."""
    parameters = [model.observation.readout.weight, model.dynamics.initial_mean]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


def enumerated_gradient(model: plr.StateSpaceModel, guide: plr.BootstrapGuide, y: Tensor, white: Tensor) -> Tensor:
    """Differentiate E[log Zhat] over all ancestors of two particles at two time bins, for fixed noise, exactly."""
    pair = Pair.of(model, guide)
    kernel = PlainKernel(pair, 2)
    slices = [type(s)(s.bin, s.v_before, white[t]) for t, s in enumerate(kernel.slices(pair.read(y)))]
    state, log_first = kernel.init(slices[0])
    weights = log_first[:, 0].softmax(0)
    expectation = torch.zeros((), dtype=y.dtype)
    for ancestors in itertools.product(range(2), repeat=2):
        _, log_second = kernel.step({"z": state["z"][list(ancestors)]}, slices[1])
        log_evidence = log_first[:, 0].logsumexp(0) + log_second[:, 0].logsumexp(0)
        expectation = expectation + weights[list(ancestors)].prod() * log_evidence
    return gradient_of(model, expectation)


def test_score_function_is_unbiased_for_the_gradient_of_the_objective_and_pathwise_is_not() -> None:
    model, guide, y = bootstrap_case(2)
    white = torch.randn(2, 2, 1, 1, dtype=torch.float64)
    expected = enumerated_gradient(model, guide, y, white)
    replicates = 100_000
    errors = {}
    for name, gradient in {"score": plr.ScoreFunctionGradient(), "path": plr.PathwiseGradient()}.items():
        elbo = plr.SMC_ELBO(2, gradient=gradient, resampler=plr.MultinomialResampling())
        original = torch.randn
        try:
            # The same noise in every replicate: only ancestors are left to average over.
            torch.randn = lambda *size, **kwargs: white.expand(2, 2, replicates, 1)
            loss = -elbo.differentiable_loss(model, guide, y.expand(replicates, -1, -1)) / replicates
        finally:
            torch.randn = original
        found = gradient_of(model, loss)
        errors[name] = (found - expected).norm() / expected.norm()
    assert errors["score"] < 0.02
    assert errors["path"] > 0.05


def test_estimators_share_the_value_of_the_log_evidence() -> None:
    model, guide, y = bootstrap_case(6)
    values = []
    for gradient in (plr.PathwiseGradient(), plr.StopGradient(), plr.ScoreFunctionGradient(), plr.FisherGradient()):
        torch.manual_seed(5)
        elbo = plr.SMC_ELBO(10, gradient=gradient, resampler=plr.MultinomialResampling())
        values.append(elbo.loss(model, guide, y))
    torch.testing.assert_close(values[1:], values[:1] * 3)
