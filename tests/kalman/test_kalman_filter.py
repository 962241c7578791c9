"""The Gaussian filter and smoother against exact moments, quadrature and the particle filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.kalman import filter as kalman
from pyro_lowrank.kalman.linearise import linearise
from tests.builders import assert_close, gaussian_model, network, shaken
from tests.oracles.linear import exact_log_evidence, kalman_filter, linear_model
from tests.oracles.quadrature import log_evidence_on_a_grid
from tests.smc.test_smoothing import rts_smoother

NAN = float("nan")


def gapped(y: Tensor) -> Tensor:
    """A recording with a missing bin, a missing entry and an early end."""
    y = y.clone()
    y[0, 2], y[1, 3, 1], y[1, -2:] = NAN, NAN, NAN
    return y


@pytest.mark.parametrize("with_gaps", [False, True])
@pytest.mark.parametrize("inputs", [0, 2])
def test_all_moments_and_the_evidence_are_exact_where_the_model_is_linear(
    dtype: torch.dtype, inputs: int, with_gaps: bool
) -> None:
    model = linear_model(inputs=inputs, dtype=dtype)
    u = torch.randn(3, 9, inputs, dtype=dtype) if inputs else None
    y = model.simulate(3, 9, u).y
    y = gapped(y) if with_gaps else y
    posterior = plr.ExtendedKalmanFilter(model).run(y, u)
    filtered, smoothed = kalman_filter(model, y, u), rts_smoother(model, y, u)
    assert_close(posterior.log_evidence_increments, filtered.increments, factor=3)
    assert_close(posterior.filtered_mean, filtered.mean)
    assert_close(posterior.filtered_covariance, filtered.covariance)
    assert_close(posterior.smoothed_mean, smoothed.mean)
    assert_close(posterior.smoothed_covariance, smoothed.covariance)
    assert_close(posterior.lagged_covariance, smoothed.lagged)
    if not with_gaps:
        assert_close(posterior.log_evidence, exact_log_evidence(model, y, u).detach(), factor=3)


def test_float32_stays_exact_under_precise_data_and_small_transition_noise() -> None:
    model = linear_model(features=64, noise_scale=0.01, dtype=torch.float64)
    with torch.no_grad():
        model.dynamics.noise_scale_unconstrained.sub_(torch.eye(2, dtype=torch.float64) * 5)
        model.observation.readout.bias.add_(5.0)
    y = model.simulate(4, 60).y
    exact = plr.ExtendedKalmanFilter(model).run(y)
    rough = plr.ExtendedKalmanFilter(model.float()).run(y.float())
    for name in ("filtered_covariance", "smoothed_covariance"):
        assert (torch.linalg.eigvalsh(getattr(rough, name)) > 0).all()
        torch.testing.assert_close(getattr(rough, name).double(), getattr(exact, name), rtol=1e-3, atol=1e-12)
    width = exact.filtered_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((rough.filtered_mean - exact.filtered_mean).abs() / width).max() < 0.02
    torch.testing.assert_close(rough.log_evidence.double(), exact.log_evidence, rtol=1e-5, atol=0.0)


def test_padding_and_what_lies_beyond_a_trials_end_change_nothing(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, activation="tanh")
    y = model.simulate(3, 8).y
    padded = torch.cat([y, torch.full_like(y[:, :5], NAN)], 1)
    own, longer = (plr.ExtendedKalmanFilter(model).run(data) for data in (y, padded))
    assert_close(longer.log_evidence, own.log_evidence)
    assert_close(longer.smoothed_mean[:, :8], own.smoothed_mean)
    assert_close(longer.smoothed_covariance[:, :8], own.smoothed_covariance)
    assert (longer.log_evidence_increments[8:] == 0).all()
    # Beyond the end the posterior is the prediction.
    mean = model.dynamics(longer.filtered_mean[:, 7:12]).detach()
    assert_close(longer.filtered_mean[:, 8:], mean)


def test_ragged_trials_are_those_run_alone(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, activation="tanh")
    y = model.simulate(3, 8).y.clone()
    y[0, 3:] = y[1, 6:] = NAN
    evidence = plr.EKFEvidence().log_evidence(model, None, y)
    alone = [plr.EKFEvidence().log_evidence(model, None, y[i : i + 1, :n])[0] for i, n in enumerate((3, 6, 8))]
    assert_close(evidence.detach(), torch.stack(alone).detach())


def test_a_missing_feature_is_one_that_was_never_recorded() -> None:
    model = gaussian_model(features=4, activation="tanh")
    y = model.simulate(2, 6).y.clone()
    y[..., 1] = NAN
    fewer = plr.StateSpaceModel(model.dynamics, plr.GaussianObservation(rank=2, features=3, dtype=y.dtype))
    keep = [0, 2, 3]
    with torch.no_grad():
        fewer.observation.readout.weight.copy_(model.observation.readout.weight[keep])
        fewer.observation.readout.bias.copy_(model.observation.readout.bias[keep])
        fewer.observation.noise_scale_unconstrained.copy_(model.observation.noise_scale_unconstrained[keep])
    found, expected = (
        plr.ExtendedKalmanFilter(m).run(data) for m, data in ((model, y), (fewer, y[..., keep].contiguous()))
    )
    assert_close(found.log_evidence_increments, expected.log_evidence_increments)
    assert_close(found.smoothed_mean, expected.smoothed_mean)


@pytest.mark.parametrize("observation", [plr.GaussianObservation, plr.PoissonObservation])
def test_without_any_data_all_moments_are_the_prior(dtype: torch.dtype, observation: Any) -> None:
    model = plr.StateSpaceModel(network(dtype, activation="tanh"), observation(rank=2, features=3, dtype=dtype))
    y = torch.full((2, 4, 3), NAN, dtype=dtype)
    posterior = plr.ExtendedKalmanFilter(model).run(y)
    assert (posterior.log_evidence == 0).all()
    assert_close(posterior.filtered_covariance, posterior.predicted_covariance)
    assert_close(posterior.smoothed_mean, posterior.predicted_mean, factor=10)
    assert_close(posterior.smoothed_covariance, posterior.predicted_covariance, factor=10)
    assert_close(posterior.predicted_covariance[:, 0], model.dynamics.initial_covariance.detach().expand(2, 2, 2))
    loss = plr.EKFEvidence()(model, None)(y)
    loss.backward()
    for p in model.parameters():
        assert_close(torch.zeros_like(p) if p.grad is None else p.grad, torch.zeros_like(p), factor=10)


def test_one_trial_of_one_time_bin(dtype: torch.dtype) -> None:
    model = linear_model(dtype=dtype)
    y = model.simulate(1, 1).y
    posterior = plr.ExtendedKalmanFilter(model).run(y)
    assert_close(posterior.log_evidence, exact_log_evidence(model, y).detach(), factor=3)
    assert posterior.lagged_covariance.shape == (1, 0, 2, 2)
    assert_close(posterior.smoothed_mean, posterior.filtered_mean)
    assert posterior.smooth(3).shape == (3, 1, 1, 2)
    plr.EKFEvidence()(model, None)(y).backward()


def observation_of(kind: str, rank: int, features: int, dtype: torch.dtype = torch.float64) -> Any:
    """An observation model in general position."""
    options: dict[str, Any] = {"rank": rank, "features": features, "dtype": dtype}
    made: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: plr.GaussianObservation(noise_scale=0.5, **options),
        "poisson-exp": lambda: plr.PoissonObservation(link="exp", **options),
        "poisson": lambda: plr.PoissonObservation(**options),
        "negative-binomial": lambda: plr.NegativeBinomialObservation(**options),
        "bernoulli": lambda: plr.BernoulliObservation(**options),
        "student-t": lambda: plr.StudentTObservation(noise_scale=0.5, **options),
        "joint": lambda: plr.JointObservation(
            {
                "a": observation_of("poisson-exp", rank, features // 2, dtype),
                "b": observation_of("gaussian", rank, features - features // 2, dtype),
            }
        ),
    }
    return shaken(made[kind](), 0.2)


KINDS = ["gaussian", "poisson-exp", "poisson", "negative-binomial", "bernoulli", "student-t", "joint"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("input_filter", [False, True])
def test_the_evidence_of_nonlinear_models_is_near_quadrature(kind: str, input_filter: bool) -> None:
    dynamics = plr.LowRankRNN(
        rank=1,
        units=8,
        activation="tanh",
        inputs=1,
        input_filter=input_filter,
        noise_scale=0.05,
        initial_scale=0.2,
        dtype=torch.float64,
    )
    model = plr.StateSpaceModel(shaken(dynamics, 0.2), observation_of(kind, 1, 20))
    with torch.no_grad():
        dynamics.noise_scale_unconstrained.fill_(-3.0)
        dynamics.initial_noise_scale_unconstrained.fill_(-1.6)
    u = torch.randn(3, 8, 1, dtype=torch.float64)
    y = gapped(model.simulate(3, 8, u).y)
    found = plr.ExtendedKalmanFilter(model).run(y, u).log_evidence
    effective = dynamics.transition().drift.effective_inputs(u).detach()
    expected = log_evidence_on_a_grid(model, y, effective, half_width=3.0, points=501)
    # A wrong determinant, a missing bin or the wrong input is off by tenths of a nat and more.
    assert (found - expected).abs().max() < 0.05


def test_with_little_noise_the_particle_filter_agrees() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=50, activation="tanh", noise_scale=0.03, initial_scale=0.1)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=10, noise_scale=0.3))
    y = model.simulate(5, 40).y
    ekf = plr.ExtendedKalmanFilter(model).run(y)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 2000).run(y)
    assert (ekf.log_evidence - smc.log_evidence).abs().max() < 0.5
    width = ekf.filtered_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((ekf.filtered_mean - smc.mean()) / width).square().mean().sqrt() < 0.1
    assert (ekf.variance() / smc.variance()).mean().item() == pytest.approx(1, abs=0.03)


def softsign(x: Tensor, h: Tensor) -> Tensor:
    return (x - h) / (1 + (x - h).abs())


@pytest.mark.parametrize("activation", ["relu", "clipped_relu", "tanh", "softplus", "identity", "leaky", "own"])
@pytest.mark.parametrize("rank", [3, None])
def test_the_jacobian_in_closed_form_is_that_of_automatic_differentiation(activation: str, rank: int | None) -> None:
    chosen: Any = {
        "leaky": plr.PiecewiseLinear(knots=(0.1, 0.4), slopes=(0.1, 1.0, 0.3)),
        "own": Activation("softsign", softsign),
    }.get(activation, activation)
    made = (
        plr.FullRankRNN(units=5, activation=chosen, inputs=2, dtype=torch.float64)
        if rank is None
        else plr.LowRankRNN(rank=rank, units=9, activation=chosen, inputs=2, decay=[0.9, 0.8, 0.7], dtype=torch.float64)
    )
    transition = shaken(made).transition()
    z = torch.randn(4, 6, transition.rank, dtype=torch.float64)
    v = torch.randn(4, 6, 2, dtype=torch.float64)

    class Plain(torch.nn.Module):
        mean = staticmethod(transition.mean)

    closed, general = linearise(transition), linearise(Plain())
    for a, b in zip(closed.step(z, v), general.step(z, v), strict=True):
        torch.testing.assert_close(a, b)
    # What comes back from a gradient of the Jacobian.
    grad = torch.randn(4, 6, transition.rank, transition.rank, dtype=torch.float64)
    bend, general_bend = closed.bend(z, v), general.bend(z, v)
    assert general_bend is not None
    expected = general.pull_back(general_bend, grad)
    torch.testing.assert_close(torch.zeros_like(z) if bend is None else closed.pull_back(bend, grad), expected)


@pytest.mark.parametrize("kind", ["poisson-exp", "student-t", "bernoulli"])
def test_modes_found_together_are_those_found_bin_by_bin(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plr.StateSpaceModel(network(activation="tanh"), observation_of(kind, 2, 6))
    y = gapped(model.simulate(3, 10).y)
    together = plr.ExtendedKalmanFilter(model).run(y)
    monkeypatch.setattr(kalman, "_MOST_PASSES", 0)
    alone = plr.ExtendedKalmanFilter(model).run(y)
    torch.testing.assert_close(together.filtered_mean, alone.filtered_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(together.filtered_covariance, alone.filtered_covariance, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together.log_evidence, alone.log_evidence, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("kind", ["poisson-exp", "student-t", "negative-binomial"])
def test_modes_are_found_where_the_model_is_far_from_the_data(dtype: torch.dtype, kind: str) -> None:
    """As at the beginning of a fit."""
    teacher, model = (
        plr.StateSpaceModel(network(dtype, units=30, activation="tanh"), observation_of(kind, 2, 20, dtype))
        for _ in range(2)
    )
    y = 5 * teacher.simulate(4, 8).y.clamp(-200 if kind == "student-t" else 0, 200)
    found = plr.ExtendedKalmanFilter(model).run(y)
    mean = found.filtered_mean.requires_grad_()
    predicted = torch.distributions.MultivariateNormal(found.predicted_mean, found.predicted_covariance)
    density = model.bind().emission.distribution(mean).log_prob(y).sum() + predicted.log_prob(mean).sum()
    (slope,) = torch.autograd.grad(density, mean)
    # In units of the posterior's width no way leads up.
    width = found.filtered_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert (slope * width).abs().max() < (2e-2 if dtype == torch.float32 else 1e-5)
