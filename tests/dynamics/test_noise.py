from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

import pyro_lowrank as plr
from pyro_lowrank.dynamics.noise import GaussianNoise, noise_of
from tests.builders import assert_close, network

KINDS = ("scalar", "diagonal", "full")


def factor_of(dynamics: plr.LowRankRNN) -> Tensor:
    """The Cholesky factor, from the parameter as its kind defines it."""
    scale, eye = dynamics.noise_scale, torch.eye(dynamics.rank, dtype=dynamics.left.dtype)
    return {"scalar": lambda: scale * eye, "diagonal": lambda: torch.diag(scale), "full": lambda: scale}[
        dynamics.noise_kind
    ]()


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_density_and_draws_are_those_of_a_multivariate_normal(kind: str, dtype: torch.dtype) -> None:
    dynamics = network(dtype, rank=3, noise=kind, initial_noise=kind)
    factor = factor_of(dynamics)
    assert_close(dynamics.noise_covariance, factor @ factor.mT)
    noise = dynamics.transition().noise
    assert_close(noise.scale_tril, factor)
    assert_close(noise.covariance, dynamics.noise_covariance)
    residual, mean = 0.3 * torch.randn(4, 5, 3, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    normal = dist.MultivariateNormal(torch.zeros(3, dtype=dtype), dynamics.noise_covariance)
    assert_close(noise.log_prob(residual), normal.log_prob(residual), factor=20)
    assert_close(noise.around(mean).log_prob(mean + residual), normal.log_prob(residual), factor=20)
    assert noise.around(mean).event_shape == (3,)
    white = torch.randn(4, 5, 3, dtype=dtype)
    assert_close(noise.colour(white), (factor @ white.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_starts_isotropic_with_the_given_standard_deviations(kind: str, dtype: torch.dtype) -> None:
    dynamics = plr.LowRankRNN(
        rank=3, units=5, noise=kind, noise_scale=0.2, initial_noise=kind, initial_scale=1.5, dtype=dtype
    )
    eye = torch.eye(3, dtype=dtype)
    assert_close(dynamics.noise_covariance, 0.04 * eye)
    assert_close(dynamics.initial_covariance, 2.25 * eye)
    assert_close(dynamics.transition().initial_noise.covariance, 2.25 * eye)


def test_a_full_scale_is_constrained_as_torch_constrains_cholesky_factors(dtype: torch.dtype) -> None:
    constraint = plr.LowRankRNN(rank=3, units=5, noise="full")._pyro_params["noise_scale"][0]
    x = torch.randn(2, 3, 3, dtype=dtype, requires_grad=True)
    ours, torchs = transform_to(constraint), transform_to(constraints.lower_cholesky)
    factor, expected = ours(x), torchs(x)
    assert torch.equal(factor, expected)
    assert torch.equal(ours.inv(factor), torchs.inv(expected))
    weights = torch.randn(2, 3, 3, dtype=dtype)
    found, known = (torch.autograd.grad((weights * each).sum(), x)[0] for each in (factor, expected))
    assert torch.equal(found, known)
    assert constraint.check(factor).all()
    assert not constraint.check(-factor).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_scale_acts_on_its_own_particle_only(kind: str, dtype: torch.dtype) -> None:
    shape = {"scalar": (), "diagonal": (3,), "full": (3, 3)}[kind]
    scales = 0.5 + torch.rand(6, 1, *shape, dtype=dtype)
    scales = scales.tril() if kind == "full" else scales
    residual = torch.randn(6, 4, 3, dtype=dtype)
    together = noise_of(kind, 3, scales)
    assert together.batch_shape == (6, 1)
    apart = [noise_of(kind, 3, scale) for scale in scales[:, 0]]
    assert_close(
        together.log_prob(residual), torch.stack([n.log_prob(r) for n, r in zip(apart, residual, strict=True)])
    )
    assert_close(together.colour(residual), torch.stack([n.colour(r) for n, r in zip(apart, residual, strict=True)]))
    assert_close(together.covariance[:, 0], torch.stack([noise.covariance for noise in apart]))


def test_density_is_differentiable_in_the_scale() -> None:
    residual = torch.randn(4, 3, dtype=torch.float64)
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.4, 0.2, 0.6]], dtype=torch.float64)

    def full(scale: Tensor) -> Tensor:
        return GaussianNoise(scale.tril(), diagonal=False).log_prob(residual)

    def diagonal(scale: Tensor) -> Tensor:
        return GaussianNoise(scale, diagonal=True).log_prob(residual)

    assert torch.autograd.gradcheck(full, factor.requires_grad_())
    assert torch.autograd.gradcheck(diagonal, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True))
