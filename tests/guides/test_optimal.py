"""The locally optimal guide against dense Gaussian conditioning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_lowrank as plr
from pyro_lowrank.guides.base import Bin
from pyro_lowrank.guides.optimal import OptimalProposal
from pyro_lowrank.observations.observed import Observed
from tests.oracles.linear import linear_model


def one_bin(proposal: OptimalProposal, y_t: Tensor, *, first: bool) -> Bin:
    """Encode a time bin `trials x features` by itself."""
    encoding = proposal.encode(Observed.of(y_t.unsqueeze(-2)), None, first=first)
    return Bin(Observed.of(y_t), None, {name: value.squeeze(-2) for name, value in encoding.items()})


def dense_posterior(model: plr.StateSpaceModel, mean: Tensor, covariance: Tensor, y_t: Tensor) -> tuple[Tensor, ...]:
    """Condition one latent on one time bin with textbook formulas: log p(y), posterior mean and covariance."""
    seen = ~y_t.isnan()
    c = model.observation.readout.weight[seen]
    spread = c @ covariance @ c.mT + torch.diag(model.observation.noise_variance[seen])
    residual = y_t[seen] - c @ mean - model.observation.readout.bias[seen]
    gain = covariance @ c.mT @ torch.linalg.inv(spread)
    evidence = -0.5 * (residual @ torch.linalg.solve(spread, residual) + torch.linalg.slogdet(2 * torch.pi * spread)[1])
    return evidence, mean + gain @ residual, covariance - gain @ c @ covariance


@pytest.mark.parametrize(("rank", "features"), [(2, 7), (3, 3), (5, 2), (1, 1)])
@pytest.mark.parametrize("missing", ["none", "some", "all"])
@pytest.mark.parametrize("first", [True, False])
def test_proposal_and_weights_match_dense_conditioning(
    rank: int, features: int, missing: str, first: bool, dtype: torch.dtype
) -> None:
    model = linear_model(rank=rank, features=features, dtype=dtype)
    bound = model.bind()
    proposal = plr.OptimalGuide(model).bind(bound)
    noise = bound.transition.initial_noise if first else bound.transition.noise
    y_t = 3 * torch.randn(4, features, dtype=dtype)
    if missing == "some":
        y_t[0, 0] = y_t[2, -1] = torch.nan
    if missing == "all":
        y_t[1] = torch.nan
    mean = 2 * torch.randn(6, 4, rank, dtype=dtype)
    slice_t = one_bin(proposal, y_t, first=first)
    loc, log_weights = proposal.propose(noise, mean, torch.zeros_like(mean), slice_t)
    density = proposal.distribution(noise, mean, slice_t.encoding)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for particle in range(6):
        for trial in range(4):
            evidence, posterior_mean, posterior_covariance = dense_posterior(
                model, mean[particle, trial], noise.covariance, y_t[trial]
            )
            at = (particle, trial)
            torch.testing.assert_close(log_weights[at], evidence, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(loc[at], posterior_mean, rtol=tolerance, atol=tolerance)
            covariance = density.covariance_matrix.expand(6, 4, rank, rank)[at]
            torch.testing.assert_close(covariance, posterior_covariance, rtol=tolerance, atol=tolerance)


def test_weights_do_not_depend_on_the_latents_drawn(dtype: torch.dtype) -> None:
    model = linear_model(dtype=dtype)
    bound = model.bind()
    proposal = plr.OptimalGuide(model).bind(bound)
    mean = torch.randn(5, 3, 2, dtype=dtype)
    slice_t = one_bin(proposal, torch.randn(3, 4, dtype=dtype), first=False)
    draws = [proposal.propose(bound.transition.noise, mean, torch.randn_like(mean), slice_t) for _ in range(2)]
    assert not torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_draws_have_the_density_that_the_effects_path_uses() -> None:
    """p(y | z) p(z | mean) / q(z) at the drawn z is the closed-form weight, which ties density, draw and weight."""
    model = linear_model()
    bound = model.bind()
    proposal = plr.OptimalGuide(model).bind(bound)
    noise = bound.transition.noise
    mean = torch.randn(5, 3, 2, dtype=torch.float64)
    y_t = torch.randn(3, 4, dtype=torch.float64)
    slice_t = one_bin(proposal, y_t, first=False)
    z, log_weights = proposal.propose(noise, mean, torch.randn_like(mean), slice_t)
    likelihood = bound.emission.distribution(z).log_prob(y_t)
    replayed = likelihood + noise.log_prob(z - mean) - proposal.distribution(noise, mean, slice_t.encoding).log_prob(z)
    torch.testing.assert_close(log_weights, replayed)


@pytest.mark.parametrize("noise_scale", [1e-3, 10.0])
def test_float32_weights_stay_exact_far_from_the_origin_and_for_any_noise(noise_scale: float) -> None:
    """The quadratic form of small noise has terms of 1e7 that cancel: the reference latent removes them."""
    torch.manual_seed(1)
    exact = linear_model(features=50, noise_scale=noise_scale)
    with torch.no_grad():
        exact.observation.noise_scale_unconstrained.fill_(noise_scale).log_()
    rough = linear_model(features=50, dtype=torch.float32)
    rough.load_state_dict({name: value.float() for name, value in exact.state_dict().items()})
    exact.load_state_dict({name: value.double() for name, value in rough.state_dict().items()})
    z = 10 + torch.randn(3, 2)
    y_t = (rough.observation.mean(z) + noise_scale * torch.randn(3, 50)).detach()
    # As far from the data as the transition noise (0.4) takes the mean.
    mean = z + 0.4 * torch.randn(20, 3, 2)
    weights = []
    for model in (rough, exact):
        bound = model.bind()
        proposal = plr.OptimalGuide(model).bind(bound)
        dtype = model.dynamics.left.dtype
        slice_t = one_bin(proposal, y_t.to(dtype), first=False)
        weights.append(proposal.propose(bound.transition.noise, mean.to(dtype), mean.to(dtype), slice_t)[1])
    # What is left is the rounding of y - C z itself; the terms that cancel are 1e4 times larger.
    torch.testing.assert_close(weights[0].double(), weights[1], rtol=0, atol=0.03)


def test_gradients_are_finite_and_right_with_missing_entries() -> None:
    model = linear_model()
    y = torch.randn(3, 5, 4, dtype=torch.float64)
    y[0, 2] = y[1, :, 1] = y[2, 4, 0] = torch.nan
    guide = plr.OptimalGuide(model)

    def loss(*parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        names = [name for name, _ in model.named_parameters()]
        elbo = plr.SMC_ELBO(3, resampler=plr.NoResampling(), gradient=plr.PathwiseGradient())
        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(elbo(model, guide), {f"model.{k}": v for k, v in replaced.items()}, (y,))

    parameters = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    torch.autograd.gradcheck(loss, parameters, atol=1e-5)


def test_no_tensor_of_particles_by_trials_by_features_is_made() -> None:
    num_particles, trials, features = 50, 3, 200
    model = linear_model(features=features)
    guide = plr.OptimalGuide(model)
    y = model.simulate(trials, 4).y
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return out

    with Watch():
        plr.SMC_ELBO(num_particles=num_particles)(model, guide)(y).backward()
    assert largest < num_particles * trials * features


@pytest.mark.parametrize(
    "observation",
    [
        plr.PoissonObservation(rank=2, features=3),
        plr.GaussianObservation(readout=plr.UnitReadout(units=7, source="rates")),
    ],
    ids=["poisson", "rates"],
)
def test_observations_that_are_not_affine_gaussian_are_refused(observation: plr.Observation) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=7), observation)
    with pytest.raises(ValueError, match="affine-Gaussian observations .* got .*BootstrapGuide"):
        plr.OptimalGuide(model)
