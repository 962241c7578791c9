"""`SMC_ELBO.log_evidence`: one number per trial, its gradient, and trials whose particles die."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.infer.smcfilter import SMCFailed

import pyro_lowrank as plr
from tests.oracles.linear import exact_log_evidence, linear_model
from tests.smc.test_effects import Delegate


def test_it_is_the_exact_one_of_each_trial_and_so_is_its_gradient() -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 5).y
    parameters = [p for p in model.parameters() if p.requires_grad]
    exact = exact_log_evidence(model, y)
    elbo = plr.SMC_ELBO(5_000, gradient=plr.FisherGradient(num_paths=2_000))
    found = elbo.log_evidence(model, plr.OptimalGuide(model), y)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    for trial in range(3):
        pair = [
            torch.autograd.grad(value[trial], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            for value in (found, exact)
        ]
        ours, theirs = (torch.cat([g.flatten() for g in gradients]) for gradients in pair)
        assert theirs.norm() > 0.5
        assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize("own", [False, True], ids=["built in", "by hand"])
def test_its_sum_is_minus_the_loss(own: bool) -> None:
    model: Any = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
    guide: Any = plr.OptimalGuide(model)
    if own:
        model, guide = Delegate(model), Delegate(guide)
    elbo, y = plr.SMC_ELBO(10), torch.randn(4, 5, 3)
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(model, guide, y)
    torch.manual_seed(1)
    found = elbo.log_evidence(model, guide, y)
    assert found.shape == (4,)
    assert torch.equal(-found.sum(), loss)


GRADIENTS = {
    "fisher": plr.FisherGradient(),
    "pathwise": plr.PathwiseGradient(),
    "stop": plr.StopGradient(),
    "score": plr.ScoreFunctionGradient(),
}


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_dead_trials_are_minus_infinity_on_request_and_leave_the_others_alone(kind: str, backend: str) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
    guide = plr.BootstrapGuide(model)
    y = torch.randn(4, 6, 3)
    parameters = list(model.parameters())
    resampler = plr.MultinomialResampling() if kind == "score" else None
    elbo = plr.SMC_ELBO(8, gradient=GRADIENTS[kind], resampler=resampler, backend=backend)
    torch.manual_seed(1)
    alive = elbo.log_evidence(model, guide, y)
    expected = torch.autograd.grad(alive[[0, 3]].sum(), parameters, allow_unused=True, materialize_grads=True)
    # Too far for float32: the densities are exactly zero.
    y[1, 3] = y[2, 0] = 1e30
    with pytest.raises(SMCFailed, match="trial 2 are dead at time 0: every particle has weight zero"):
        elbo.log_evidence(model, guide, y)
    torch.manual_seed(1)
    found = elbo.log_evidence(model, guide, y, allow_dead=True)
    assert found[[1, 2]].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(found[[0, 3]], alive[[0, 3]])
    gradients = torch.autograd.grad(found[[0, 3]].sum(), parameters, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_dead_trials_of_a_users_model_are_minus_infinity_too() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
    y = torch.randn(3, 4, 3)
    y[1, 2] = 1e30
    found = plr.SMC_ELBO(8).log_evidence(Delegate(model), None, y, allow_dead=True)
    assert found.isneginf().tolist() == [False, True, False]
    assert found[[0, 2]].isfinite().all()


def test_what_is_not_a_number_is_no_dead_trial() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
    with torch.no_grad():
        model.dynamics.initial_mean.fill_(torch.nan)
    for backend in ("auto", "plain"):
        with pytest.raises(SMCFailed, match="a weight is not a number"):
            plr.SMC_ELBO(8, backend=backend).log_evidence(
                model, plr.BootstrapGuide(model), torch.zeros(2, 3, 3), allow_dead=True
            )
