"""Negative binomial, Bernoulli and Student-t observations, and the curvature of all observation models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, negative_binomial, network, poisson, shaken

FAMILIES: dict[str, Any] = {
    "gaussian": lambda **o: plr.GaussianObservation(noise_scale=0.7, **o),
    "student": lambda **o: plr.StudentTObservation(noise_scale=0.7, freedom=3.0, **o),
    "poisson softplus": lambda **o: plr.PoissonObservation(**o),
    "poisson exp": lambda **o: plr.PoissonObservation(link="exp", **o),
    "negative binomial softplus": lambda **o: plr.NegativeBinomialObservation(dispersion=0.6, **o),
    "negative binomial exp": lambda **o: plr.NegativeBinomialObservation(dispersion=0.6, link="exp", **o),
    "shared dispersion": lambda **o: plr.NegativeBinomialObservation(dispersion_kind="shared", **o),
    "bernoulli": lambda **o: plr.BernoulliObservation(**o),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, dtype: torch.dtype = torch.float64, *, rank: int = 2, features: int = 3) -> Any:
    """A model in general position."""
    observation = shaken(FAMILIES[family](rank=rank, features=features, dtype=dtype), 0.2)
    return plr.StateSpaceModel(network(dtype, rank=rank), observation)


@pytest.mark.parametrize("dispersion", [1e-6, 1e-3, 0.3, 5.0])
def test_negative_binomial_equals_scipys(dispersion: float, dtype: torch.dtype) -> None:
    rate, y = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64), torch.arange(0.0, 60.0).unsqueeze(-1)
    size = 1 / dispersion
    expected = stats.nbinom.logpmf(y.numpy(), size, size / (size + rate.numpy()))
    found = negative_binomial(rate.log().to(dtype), torch.tensor(dispersion, dtype=dtype))
    assert_close(found.log_prob(y.to(dtype)), torch.tensor(expected), factor=10 if dtype == torch.float32 else 1e4)
    assert_close(found.mean, rate)
    assert_close(found.variance, rate + dispersion * rate**2)


def test_without_dispersion_it_is_a_poisson_distribution(dtype: torch.dtype) -> None:
    log_rate, y = torch.linspace(-5, 4, 7, dtype=dtype), torch.arange(7.0).to(dtype)
    found = negative_binomial(log_rate, torch.tensor(1e-7, dtype=dtype)).log_prob(y)
    # The two differ by about dispersion * (rate - y)^2 / 2, here 1.2e-4 at most.
    torch.testing.assert_close(found, poisson(log_rate).log_prob(y), rtol=0, atol=2e-4)


def test_negative_binomial_draws_have_its_moments() -> None:
    distribution = negative_binomial(torch.tensor([0.2, 3.0]).log(), torch.tensor([2.0, 0.5]))
    draws = distribution.sample((100_000,))
    assert torch.equal(draws, draws.round())
    torch.testing.assert_close(draws.mean(0), distribution.mean, rtol=0.05, atol=0)
    torch.testing.assert_close(draws.var(0), distribution.variance, rtol=0.1, atol=0)
    larger = distribution.expand(torch.Size((5, 2)))
    assert larger.sample((3,)).shape == (3, 5, 2)
    assert torch.equal(larger.log_prob(draws[:5]), distribution.log_prob(draws[:5]))


@every_family
@pytest.mark.parametrize("readout", [-1e4, -100.0, 100.0, 1e4])
def test_values_and_gradients_are_finite_far_away(family: str, readout: float, dtype: torch.dtype) -> None:
    model = model_of(family, dtype, rank=1, features=1)
    with torch.no_grad():
        model.observation.readout.weight.fill_(1.0)
    z = torch.full((1, 1), readout, dtype=dtype, requires_grad=True)
    emission = model.bind().emission
    for y in (torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)):
        log_prob = emission.distribution(z, None).log_prob(y)
        assert log_prob.isfinite().all()
        curvature = emission.curvature(z, None, y)
        assert curvature.score.isfinite().all()
        assert curvature.information.isfinite().all()
        for value in (log_prob, curvature.score, curvature.information):
            (gradient,) = torch.autograd.grad(
                value.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert gradient.isfinite().all()


@every_family
def test_score_is_the_gradient_of_the_log_likelihood(family: str) -> None:
    model = model_of(family)
    y = model.simulate(num_trials=5, num_steps=1).y[:, 0]
    z = torch.randn(7, 5, 2, dtype=torch.float64, requires_grad=True)
    emission = model.bind().emission
    (gradient,) = torch.autograd.grad(emission.distribution(z, None).log_prob(y).sum(), z)
    found = emission.curvature(z, None, y)
    assert_close((found.score @ found.weight).detach(), gradient)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "student"])
def test_information_is_the_variance_of_the_score(family: str) -> None:
    model = model_of(family)
    emission = model.bind().emission
    z = 0.7 * torch.randn(3, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        y = emission.distribution(z.expand(3, 60_000, 2), None).sample()
        scores, information = emission.curvature(z, None, y).score, emission.curvature(z, None, y[:, :1]).information
    assert scores.mean(1).abs().max() < 5 * (information.max() / 60_000) ** 0.5
    torch.testing.assert_close(scores.var(1), information[:, 0], rtol=0.05, atol=0)


@every_family
def test_gradients_reach_every_parameter_and_models_are_saved(family: str, tmp_path: Any) -> None:
    model = model_of(family, torch.float32)
    y = model.simulate(num_trials=4, num_steps=6).y
    y[0, 1, 0] = torch.nan
    guide = plr.LaplaceGuide(model)
    loss = plr.SMC_ELBO(num_particles=8, backend="plain").differentiable_loss(model, guide, y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    plr.save(tmp_path / "model.safetensors", model, guide)
    again, guide_again = plr.load(tmp_path / "model.safetensors")
    assert isinstance(guide_again, plr.LaplaceGuide)
    assert guide_again.num_iterations == 2
    torch.manual_seed(3)
    first = plr.SMCFilter(model, guide, 20, backend="plain").run(y).log_evidence
    torch.manual_seed(3)
    assert torch.equal(plr.SMCFilter(again, guide_again, 20, backend="plain").run(y).log_evidence, first)


@pytest.mark.parametrize("family", ["negative binomial softplus", "negative binomial exp", "bernoulli"])
def test_a_model_starts_at_the_mean_of_the_recording(family: str) -> None:
    model = model_of(family, torch.float32, features=4)
    y = torch.bernoulli(torch.tensor([0.05, 0.3, 0.6, 0.0]).expand(30, 200, 4))
    y[0, :10] = torch.nan
    plr.initialise_from_data(model, y)
    at_zero = model.observation.mean(torch.zeros(1, 2))[0].detach()
    torch.testing.assert_close(at_zero, y.nanmean((0, 1)).clamp(min=1e-4), rtol=1e-3, atol=1e-6)


def test_outliers_pull_a_student_t_less() -> None:
    truth = plr.StateSpaceModel(network(torch.float32), plr.GaussianObservation(rank=2, features=5, noise_scale=0.3))
    clean = truth.simulate(num_trials=4, num_steps=30).y
    dirty = clean.clone()
    dirty[:, ::10] += 8.0 * torch.randn_like(dirty[:, ::10])
    student = plr.StateSpaceModel(
        truth.dynamics, plr.StudentTObservation(readout=truth.observation.readout, noise_scale=0.3)
    )

    def filtered(model: Any, y: Tensor) -> Tensor:
        return plr.SMCFilter(model, plr.LaplaceGuide(model), 500).run(y).mean()

    pull = [(filtered(model, dirty) - filtered(model, clean)).abs().mean() for model in (truth, student)]
    assert pull[1] < 0.5 * pull[0]
    assert plr.StudentTObservation(rank=1, features=1, freedom=1.5).noise_variance.isinf().all()
    four = plr.StudentTObservation(rank=1, features=1, freedom=4.0, noise_scale=0.5)
    assert_close(four.noise_variance.detach(), torch.tensor([0.5]))


def test_bad_data_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="BernoulliObservation takes zeros and ones: `y` holds 1 other values"):
        plr.BernoulliObservation(rank=1, features=1).check_data(torch.tensor([[[0.0], [2.0]]]))
    with pytest.raises(ValueError, match="NegativeBinomialObservation takes counts"):
        plr.NegativeBinomialObservation(rank=1, features=1).check_data(torch.tensor([[[0.5]]]))
    with pytest.raises(ValueError, match="dispersion_kind"):
        plr.NegativeBinomialObservation(rank=1, features=1, dispersion_kind="unit")
    with pytest.raises(ValueError, match="dispersion"):
        plr.NegativeBinomialObservation(rank=1, features=1, dispersion=0.0)
