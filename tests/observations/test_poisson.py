from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pyro_lowrank as plr
from pyro_lowrank.scalars.torch_code import log_softplus
from tests.builders import assert_close, poisson, shaken

LINKS = {"softplus": functional.softplus, "exp": torch.exp}


def fixed_readout(link: str, dtype: torch.dtype) -> plr.PoissonObservation:
    """An observation model of one feature whose readout is the latent itself."""
    observation = plr.PoissonObservation(rank=1, features=1, link=link, dtype=dtype)
    with torch.no_grad():
        observation.readout.weight.fill_(1.0)
    return observation


@pytest.mark.parametrize("link", LINKS)
def test_log_probability_is_that_of_torchs_poisson_in_the_safe_range(link: str, dtype: torch.dtype) -> None:
    observation = shaken(plr.PoissonObservation(rank=2, features=3, link=link, dtype=dtype))
    z, y = 2 * torch.randn(50, 4, 2, dtype=dtype), torch.randint(0, 12, (4, 3)).to(dtype)
    readout = observation.readout
    rate = LINKS[link](z.double() @ readout.weight.double().mT + readout.bias.double())
    expected = torch.distributions.Poisson(rate).log_prob(y.double()).sum(-1)
    assert_close(observation.distribution(z).log_prob(y), expected, factor=5)
    assert_close(observation.mean(z), rate, factor=5)
    assert_close(observation.distribution(z).variance, rate, factor=5)


@pytest.mark.parametrize("readout", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("count", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("link", LINKS)
def test_values_and_gradients_are_finite_at_extreme_readouts(
    link: str, count: float, readout: float, dtype: torch.dtype
) -> None:
    z = torch.full((1,), readout, dtype=dtype, requires_grad=True)
    log_prob = fixed_readout(link, dtype).distribution(z).log_prob(torch.tensor([count], dtype=dtype))
    (gradient,) = torch.autograd.grad(log_prob, z)
    assert log_prob.isfinite()
    assert gradient.isfinite().all()
    if readout < 0:
        # The rate vanishes: what is left is count x log rate, and log rate is the readout itself for both links.
        assert_close(log_prob.detach(), torch.tensor(count * readout - math.lgamma(count + 1), dtype=torch.float64))
        assert_close(gradient, torch.tensor([count], dtype=torch.float64))
    elif link == "softplus":
        expected = count * math.log(readout) - readout - math.lgamma(count + 1)
        assert_close(log_prob.detach(), torch.tensor(expected, dtype=torch.float64))
        assert_close(gradient, torch.tensor([count / readout - 1], dtype=torch.float64), factor=5)


def test_log_softplus_is_exact_over_the_whole_line(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -50.0, -40.1, -39.9, -20.0, -1.0, 0.0, 1.0, 20.0, 1e4], dtype=dtype, requires_grad=True)
    # log log(1 + e^x) with the series of the inner logarithm where it would round to zero.
    expected = [v if v < -30 else math.log(v if v > 30 else math.log1p(math.exp(v))) for v in x.tolist()]
    value = log_softplus(x)
    assert_close(value, torch.tensor(expected, dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), x)
    slopes = [
        1.0 if v < -30 else 1 / v if v > 30 else (1 / (1 + math.exp(-v))) / math.log1p(math.exp(v)) for v in x.tolist()
    ]
    assert_close(slope, torch.tensor(slopes, dtype=torch.float64))


@pytest.mark.parametrize("link", LINKS)
def test_gradients_of_the_log_probability_are_exact(link: str) -> None:
    observation = shaken(plr.PoissonObservation(rank=2, features=3, link=link, dtype=torch.float64))
    y = torch.tensor([0.0, 2.0, 7.0], dtype=torch.float64)
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def log_prob(latents: Tensor) -> Tensor:
        return observation.distribution(latents).log_prob(y)

    assert torch.autograd.gradcheck(log_prob, z)


def test_draws_are_counts_with_the_rate_as_mean_and_variance(dtype: torch.dtype) -> None:
    rate = torch.tensor([0.2, 1.0, 7.0], dtype=dtype)
    distribution = poisson(rate.log())
    draws = distribution.sample((40_000,))
    assert draws.dtype == dtype
    assert torch.equal(draws, draws.round())
    assert ((draws.mean(0) - rate).abs() < 5 * (rate / 40_000).sqrt()).all()
    # Variance of the sample variance: (rate + 2 rate^2) / n.
    assert ((draws.var(0) - rate).abs() < 5 * ((rate + 2 * rate**2) / 40_000).sqrt()).all()


def test_expanding_repeats_the_rates() -> None:
    base = poisson(torch.randn(3))
    larger = base.expand(torch.Size((5, 3)))
    assert larger.batch_shape == (5, 3)
    assert larger.sample((2,)).shape == (2, 5, 3)
    value = torch.randint(0, 5, (5, 3)).float()
    assert torch.equal(larger.log_prob(value), base.log_prob(value))


@pytest.mark.parametrize("bad", [-1.0, 0.5])
def test_negative_and_fractional_counts_are_refused_with_their_place(bad: float) -> None:
    observation = plr.PoissonObservation(rank=2, features=3)
    y = torch.randint(0, 5, (2, 5, 3)).float()
    y[0, 0, 0] = torch.nan
    observation.check_data(y)
    y[1, 2, 0] = bad
    with pytest.raises(ValueError, match=rf"`y` holds 1 negative or fractional .* index \(1, 2, 0\), {bad:g}; bin the"):
        observation.check_data(y)


def test_infinite_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="`y` holds 30 infinite values"):
        plr.PoissonObservation(rank=2, features=3).check_data(torch.full((2, 5, 3), torch.inf))


def test_a_misspelt_link_is_refused() -> None:
    with pytest.raises(ValueError, match="`link` must be one of 'softplus', 'exp', got 'log'"):
        plr.PoissonObservation(rank=2, features=3, link="log")


def test_no_poisson_model_is_affine_gaussian() -> None:
    assert plr.PoissonObservation(rank=2, features=3).affine_gaussian(None) is None
