"""Noise that features share, against dense Gaussians and the exact Kalman filter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.smc.joint import log_joint
from pyro_lowrank.smc.pair import Pair
from pyro_lowrank.training.standardise import Standardisation
from tests.builders import assert_close, shaken
from tests.oracles.linear import exact_log_evidence, kalman_filter, linear_model


def shared(dtype: torch.dtype = torch.float64, **options: Any) -> plr.GaussianObservation:
    """Build observations with shared noise in general position."""
    options = {"rank": 2, "features": 5, "noise_factors": 2, "noise_scale": 0.7} | options
    observation: plr.GaussianObservation = shaken(plr.GaussianObservation(dtype=dtype, **options))
    return observation


def gaps(y: Tensor) -> Tensor:
    """Leave out several patterns of features, and whole bins."""
    y = y.clone()
    y[0, 1, :2] = y[0, 3, 4] = y[1, 0, 1:] = y[1, 2] = y[1, -1] = torch.nan
    return y


@pytest.mark.parametrize("noise", ["scalar", "diagonal"])
def test_density_is_that_of_the_dense_normal_and_of_its_marginals(noise: str, dtype: torch.dtype) -> None:
    observation = shared(dtype, noise=noise)
    z, y = torch.randn(7, 4, 2, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    missing = torch.rand(4, 5) < 0.4
    missing[1], missing[2] = True, False
    mean, covariance = observation.mean(z), observation.noise_covariance
    assert_close(observation.noise_variance, covariance.diagonal())
    assert_close(
        observation.distribution(z).log_prob(y),
        torch.distributions.MultivariateNormal(mean, covariance).log_prob(y),
        factor=10,
    )
    marginal: Any = observation.distribution(z)
    found = marginal.leave_out(missing).log_prob(y)
    for trial in (0, 2, 3):
        there = ~missing[trial]
        expected = torch.distributions.MultivariateNormal(mean[:, trial, there], covariance[there][:, there])
        assert_close(found[:, trial], expected.log_prob(y[trial, there]), factor=10)
    assert_close(found[:, 1], torch.zeros(7))


def test_draws_have_the_covariance() -> None:
    observation = shared()
    z = torch.randn(2, dtype=torch.float64)
    with torch.no_grad():
        draws = observation.distribution(z).sample(torch.Size((200_000,)))
        # The standard error of a covariance is at most 0.3 % of the largest variance.
        largest = float(observation.noise_variance.max())
        torch.testing.assert_close(draws.mT.cov(), observation.noise_covariance, rtol=0, atol=0.015 * largest)


@pytest.mark.parametrize(("rank", "features"), [(2, 5), (4, 3)])
@pytest.mark.parametrize("with_gaps", [False, True])
def test_the_extended_kalman_filter_is_exact(rank: int, features: int, with_gaps: bool, dtype: torch.dtype) -> None:
    model = linear_model(rank=rank, features=max(features, 3), noise_factors=2, dtype=dtype)
    y = 2 * torch.randn(2, 6, max(features, 3), dtype=dtype)
    if with_gaps:
        y[0, 1, :2] = y[1, 0, 1:] = y[1, 2] = y[1, -1] = torch.nan
    posterior, exact = plr.ExtendedKalmanFilter(model).run(y), kalman_filter(model, y)
    assert_close(posterior.log_evidence_increments, exact.increments, factor=20)
    assert_close(posterior.filtered_mean, exact.mean, factor=20)
    assert_close(posterior.filtered_covariance, exact.covariance, factor=20)


def test_the_gradient_of_its_evidence_is_exact() -> None:
    model = linear_model(features=5, noise_factors=2)
    y = 2 * torch.randn(2, 6, 5, dtype=torch.float64)
    plr.EKFEvidence()(model, None)(y).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    (-exact_log_evidence(model, y).sum()).backward()
    assert "observation.noise_factors_unconstrained" in found
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("rank", "features"), [(2, 5), (4, 3)])
def test_optimal_weights_are_those_of_the_dense_normal(rank: int, features: int, dtype: torch.dtype) -> None:
    """One particle: its evidence is the product of p(y_t | z_{t-1}), at the latents that were drawn."""
    model = linear_model(rank=rank, features=features, noise_factors=2, dtype=dtype)
    y = 2 * torch.randn(2, 6, features, dtype=dtype)
    y[0, 1, :2] = y[1, 0, 1:] = y[1, 2] = torch.nan
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 1).run(y)
    transition, o = model.bind().transition, model.observation
    with torch.no_grad():
        z = posterior.particles["z"][0]
        for trial in range(2):
            for t in range(6):
                mean = transition.mean(z[trial, t - 1]) if t else transition.initial_mean
                noise = transition.noise if t else transition.initial_noise
                spread = o.readout.weight @ noise.covariance @ o.readout.weight.mT + o.noise_covariance
                there = ~y[trial, t].isnan()
                expected = torch.zeros((), dtype=dtype)
                if bool(there.any()):
                    normal = torch.distributions.MultivariateNormal(o.mean(mean)[there], spread[there][:, there])
                    expected = normal.log_prob(y[trial, t, there])
                assert_close(posterior.log_evidence_increments[t, trial], expected, factor=20)


@pytest.mark.parametrize("with_gaps", [False, True])
def test_the_compiled_loop_is_the_plain_one(with_gaps: bool, dtype: torch.dtype) -> None:
    model = linear_model(features=5, noise_factors=2, dtype=dtype)
    y = 2 * torch.randn(2, 6, 5, dtype=dtype)
    y = gaps(y) if with_gaps else y
    found = []
    for backend in ("compiled", "plain"):
        torch.manual_seed(1)
        found.append(plr.SMCFilter(model, plr.OptimalGuide(model), 20, backend=backend).run(y))
    compiled, plain = found
    assert_close(compiled.log_evidence_increments, plain.log_evidence_increments, factor=20)
    assert_close(compiled.particles["z"], plain.particles["z"], factor=20)


@pytest.mark.parametrize("guide", [plr.OptimalGuide, plr.BootstrapGuide])
def test_particles_find_the_exact_evidence(guide: Any) -> None:
    model = linear_model(features=5, noise_factors=2)
    y = gaps(model.simulate(2, 6).y)
    exact = kalman_filter(model, y).increments.sum(0)
    runs = torch.stack([plr.SMCFilter(model, guide(model), 4000).run(y).log_evidence for _ in range(4)])
    assert ((runs.mean(0) - exact).abs() < 0.1).all()


@pytest.mark.parametrize("with_gaps", [False, True])
def test_the_density_of_paths_is_the_same_by_moments_and_by_entries(with_gaps: bool, dtype: torch.dtype) -> None:
    model = linear_model(features=5, noise_factors=2, dtype=dtype)
    y = 2 * torch.randn(2, 6, 5, dtype=dtype)
    pair = Pair.of(model, plr.OptimalGuide(model))
    data = pair.read(gaps(y) if with_gaps else y)
    z = torch.randn(4, 2, 6, 2, dtype=dtype)
    by_entries = replace(pair, affine_gaussian=None)
    found, expected = (log_joint(each, data, z, pair.transition.mean) for each in (pair, by_entries))
    assert_close(found, expected, factor=20)


def test_a_model_without_factors_is_the_diagonal_one() -> None:
    observation = plr.GaussianObservation(rank=2, features=3)
    assert observation.noise_factors.shape == (3, 0)
    assert "noise_factors" not in observation.state_dict()
    assert_close(observation.noise_covariance, torch.diag(observation.noise_variance))


def test_files_hold_the_factors(tmp_path: Path) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), shared(torch.float32))
    plr.save(tmp_path / "model.safetensors", model, plr.OptimalGuide(model))
    again, _ = plr.load(tmp_path / "model.safetensors")
    assert torch.equal(again.observation.noise_covariance, model.observation.noise_covariance)


def test_other_units_change_the_covariance_by_their_squares() -> None:
    observation = shared()
    before = observation.noise_covariance.detach()
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0, 10.0], dtype=torch.float64)
    Standardisation(torch.zeros(5, dtype=torch.float64), scale).fold_into(observation)
    assert_close(observation.noise_covariance, scale.unsqueeze(-1) * before * scale)


def test_parts_of_a_joint_recording_share_noise_each_by_itself() -> None:
    parts = {"one": shared(features=3, noise_factors=1), "other": shared(features=4, noise=("scalar"), noise_factors=0)}
    dynamics = plr.LowRankRNN(rank=2, units=6, dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.JointObservation(parts))
    y = torch.randn(2, 6, 7, dtype=torch.float64)
    y[0, 1, :2] = y[1, 2] = torch.nan
    found = []
    for posterior in (
        plr.ExtendedKalmanFilter(model).run(y),
        plr.SMCFilter(model, plr.OptimalGuide(model), 5000).run(y),
        plr.SMCFilter(model, plr.BootstrapGuide(model), 5000).run(y),
    ):
        found.append(posterior.log_evidence)
    assert ((found[1] - found[2]).abs() < 0.2).all()
    affine = model.bind().affine_gaussian
    assert affine is not None
    assert affine.factors is not None
    assert affine.factors[3:].abs().max() == 0


def test_a_start_at_the_data_takes_shared_noise_for_noise() -> None:
    """Slow latents and white factors of the same size: the former are read out, the latter shared."""
    torch.manual_seed(2)
    trajectory = torch.zeros(1, 20_000, 1)
    for t in range(1, 20_000):
        trajectory[:, t] = 0.95 * trajectory[:, t - 1] + (1 - 0.95**2) ** 0.5 * torch.randn(1, 1)
    loadings, factors = torch.randn(8, 1), torch.randn(8, 1)
    y = trajectory @ loadings.mT + torch.randn(1, 20_000, 1) @ factors.mT + 0.3 * torch.randn(1, 20_000, 8)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=10), plr.GaussianObservation(rank=1, features=8, noise_factors=1)
    )
    plr.initialise_from_data(model, y)
    readout, noise = model.observation.readout.weight, model.observation.noise_covariance
    assert torch.nn.functional.cosine_similarity(readout, loadings, 0).abs() > 0.99
    expected = factors @ factors.mT + 0.09 * torch.eye(8)
    torch.testing.assert_close(noise, expected, rtol=0, atol=0.1 * float(expected.max()))


@pytest.mark.parametrize("number", [3, 4])
def test_as_many_factors_as_features_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"fewer than the 3 features.*noise_factors={number}"):
        plr.GaussianObservation(rank=2, features=3, noise_factors=number)


def test_a_laplace_guide_says_what_to_use_instead() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), shared(torch.float32))
    with pytest.raises(ValueError, match="BootstrapGuide"):
        plr.LaplaceGuide(model)
