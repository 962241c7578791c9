"""Plain Pyro inference on the same model object, against the exact posterior of a linear-Gaussian model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, sites
from tests.models.dense_gaussian import smooth
from tests.oracles.linear import exact_log_evidence


@pytest.fixture
def model() -> plr.StateSpaceModel:
    """A linear-Gaussian model whose parameters are known."""
    model = gaussian_model(torch.float64, activation="identity", decay=0.6, noise_scale=0.4, noise="full")
    return model.requires_grad_(False)


@pytest.fixture
def y(model: plr.StateSpaceModel) -> Tensor:
    return model.simulate(num_trials=3, num_steps=5).y


def test_the_density_at_the_posterior_mean_gives_the_exact_evidence(model: plr.StateSpaceModel, y: Tensor) -> None:
    posterior = smooth(model, y)
    found = sites(poutine.condition(model, {"z": posterior.mean}), y)
    joint = found["z"]["log_prob"] + found["y"]["log_prob"]
    at_mean = dist.MultivariateNormal(posterior.mean.flatten(1), posterior.covariance).log_prob(
        posterior.mean.flatten(1)
    )
    assert_close(joint - at_mean, exact_log_evidence(model, y))


def test_autonormal_under_trace_elbo_finds_the_means_and_precisions(model: plr.StateSpaceModel, y: Tensor) -> None:
    posterior = smooth(model, y)
    guide = AutoNormal(model)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / 300)})
    svi = SVI(model, guide, optimiser, Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(300):
        svi.step(y)
    # Mean field has the exact means, and the inverse diagonal of the precision for variances.
    deviation = (guide.median()["z"] - posterior.mean).abs() / posterior.covariance.diagonal().sqrt().reshape(5, 2)
    assert deviation.max() < 0.1
    scale = guide.quantiles([0.8413447])["z"][0] - guide.median()["z"]
    expected = torch.linalg.inv(posterior.covariance).diagonal().rsqrt().reshape(5, 2).expand(3, 5, 2)
    torch.testing.assert_close(scale, expected, rtol=0.15, atol=0)


def test_the_elbo_of_the_exact_posterior_is_the_evidence(model: plr.StateSpaceModel, y: Tensor) -> None:
    posterior = smooth(model, y)

    def guide(y: Tensor) -> None:
        with pyro.plate("trials", 3, dim=-1):
            normal = dist.MultivariateNormal(posterior.mean.flatten(1), posterior.covariance)
            transform = dist.transforms.ReshapeTransform((10,), (5, 2))
            pyro.sample("z", dist.TransformedDistribution(normal, [transform]))

    # With the exact posterior every draw gives the evidence, without variance.
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        loss = torch.tensor(elbo.loss(model, guide, y), dtype=torch.float64)
        assert_close(loss, -exact_log_evidence(model, y).sum())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_a_compiled_elbo_has_the_same_value_and_gradient(y: Tensor) -> None:
    model = gaussian_model(torch.float64, activation="tanh", noise="full")
    guide = AutoNormal(model)
    losses, gradients = [], []
    guide(y)
    for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
        pyro.set_rng_seed(1)
        # The compiled one runs the model to record it, before the call that counts.
        for _ in range(2):
            pyro.set_rng_seed(1)
            model.zero_grad()
            losses.append(elbo.loss_and_grads(model, guide, y))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(losses[3], rel=1e-8)
    assert len(gradients[0]) == len(list(model.parameters()))
    for actual, expected in zip(*gradients, strict=True):
        assert_close(actual, expected, factor=100)


@pytest.mark.slow
def test_nuts_draws_from_the_exact_posterior(model: plr.StateSpaceModel, y: Tensor) -> None:
    posterior = smooth(model, y)
    mcmc = MCMC(
        NUTS(model, max_tree_depth=4), num_samples=100, warmup_steps=40, disable_progbar=True, disable_validation=True
    )
    mcmc.run(y)
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (100, 3, 5, 2)
    scale = posterior.covariance.diagonal().sqrt().reshape(5, 2)
    size = torch.as_tensor(mcmc.diagnostics()["z"]["n_eff"]).clamp(max=100)
    assert (((draws.mean(0) - posterior.mean) / scale).abs() < 5 * size.rsqrt()).all()
    torch.testing.assert_close(draws.std(0).mean(0), scale, rtol=0.3, atol=0)


@pytest.mark.parametrize("parallel", [False, True], ids=["one_by_one", "parallel"])
def test_the_prior_predictive_has_the_moments_of_the_model(model: plr.StateSpaceModel, parallel: bool) -> None:
    num_samples = 200
    draws = Predictive(model, num_samples=num_samples, parallel=parallel)(num_trials=4, num_steps=3)
    assert draws["z"].shape == (num_samples, 4, 3, 2)
    assert draws["y"].shape == (num_samples, 4, 3, 3)
    y = draws["y"].flatten(0, 1)[:, 0]
    weight = model.observation.readout.weight
    mean = model.observation.mean(model.dynamics.initial_mean)
    covariance = weight @ model.dynamics.initial_covariance @ weight.mT + torch.diag(model.observation.noise_variance)
    spread = covariance.diagonal().sqrt()
    assert ((y.mean(0) - mean).abs() < 5 * spread / (4 * num_samples) ** 0.5).all()
    torch.testing.assert_close(torch.cov(y.mT), covariance, rtol=0, atol=0.25 * covariance.max().item())


@pytest.mark.parametrize("parallel", [False, True], ids=["one_by_one", "parallel"])
def test_the_posterior_predictive_reads_the_recording_off_the_given_latents(
    model: plr.StateSpaceModel, parallel: bool
) -> None:
    z = torch.randn(150, 4, 6, 2, dtype=torch.float64)
    draws = Predictive(model, {"z": z}, parallel=parallel)(num_trials=4, num_steps=6)
    assert draws["y"].shape == (150, 4, 6, 3)
    residual = (draws["y"] - model.observation.mean(z)).reshape(-1, 3)
    torch.testing.assert_close(residual.var(0), model.observation.noise_variance, rtol=0.1, atol=0)


def test_conditioning_on_the_recording_is_passing_it(model: plr.StateSpaceModel, y: Tensor) -> None:
    z = torch.randn(3, 5, 2, dtype=torch.float64)
    passed = sites(poutine.condition(model, {"z": z}), y)
    conditioned = sites(poutine.condition(model, {"z": z, "y": y}), num_trials=3, num_steps=5)
    assert conditioned["y"]["is_observed"]
    for name in ("z", "y"):
        assert torch.equal(conditioned[name]["log_prob"], passed[name]["log_prob"])
