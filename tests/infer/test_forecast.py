"""Forecasts against Kalman prediction, expected observations, and paths in `Predictive`."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import Predictive

import pyro_lowrank as plr
from pyro_lowrank.metrics import bits_per_spike
from tests.oracles.linear import kalman_filter, linear_model, linear_system
from tests.smc.test_smoothing import rts_smoother


def test_forecast_moments_match_kalman_prediction_from_each_trials_own_end(dtype: torch.dtype) -> None:
    model = linear_model(inputs=1, noise_scale=0.5, dtype=dtype)
    u = torch.randn(2, 14, 1, dtype=dtype)
    y = model.simulate(2, 10, u[:, :10]).y
    y[1, 7:] = torch.nan
    later = torch.stack([u[0, 10:], u[1, 7:11]])
    forecast = plr.SMCFilter(model, plr.OptimalGuide(model), 4000).run(y, u[:, :10]).forecast(4, later, num_draws=8000)
    assert forecast.start.tolist() == [10, 7]
    for trial, end in enumerate((10, 7)):
        own, inputs = y[trial : trial + 1, :end], u[trial : trial + 1, : end + 4]
        inputs = torch.cat([inputs[:, :end], later[trial : trial + 1]], 1)
        exact = kalman_filter(model, own, inputs[:, :end])
        s = linear_system(model, end + 4, inputs)
        mean, covariance = exact.mean[0, -1], exact.covariance[0, -1]
        for step in range(4):
            mean = s.transition @ mean + s.transition_offset[0, end + step]
            covariance = s.transition @ covariance @ s.transition.mT + s.noise
            z, seen = forecast.z[:, trial, step], forecast.y[:, trial, step]
            assert ((z.mean(0) - mean).abs() < 0.07 * covariance.diagonal().sqrt()).all()
            torch.testing.assert_close(z.T.cov(), covariance, rtol=0.1, atol=0.06 * covariance.max().item())
            spread = s.readout @ covariance @ s.readout.mT + s.readout_noise
            expected = s.readout @ mean + s.readout_offset[0, end + step]
            assert ((seen.mean(0) - expected).abs() < 0.07 * spread.diagonal().sqrt()).all()
            torch.testing.assert_close(seen.T.cov(), spread, rtol=0.1, atol=0.06 * spread.max().item())


def test_expected_observations_are_the_readout_of_the_mean_where_that_is_affine() -> None:
    model = linear_model()
    y = model.simulate(3, 6).y
    y[0, 2] = torch.nan
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 100).run(y)
    torch.testing.assert_close(posterior.predict(), model.observation.mean(posterior.mean()).detach())
    z = posterior.smooth(50)
    torch.testing.assert_close(posterior.predict(z), model.observation.mean(z.mean(0)).detach())


def test_smoothed_paths_go_into_predictive() -> None:
    """`Predictive` draws new observations at the smoothed latents."""
    model = linear_model()
    y = model.simulate(3, 6).y
    z = plr.SMCFilter(model, plr.OptimalGuide(model), 100).run(y).smooth(400)
    drawn = Predictive(model, posterior_samples={"z": z})(num_trials=3, num_steps=6)["y"]
    assert drawn.shape == (400, 3, 6, 4)
    residual = drawn - model.observation.mean(z).detach()
    torch.testing.assert_close(residual.var((0, 1, 2)), model.observation.noise_variance.detach(), rtol=0.1, atol=0)


def test_bad_arguments_are_refused() -> None:
    model = linear_model(inputs=1)
    u = torch.randn(2, 5, 1, dtype=torch.float64)
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(model.simulate(2, 5, u).y, u)
    with pytest.raises(ValueError, match="has 1 inputs, but none came"):
        posterior.forecast(3)
    with pytest.raises(ValueError, match=r"2 trials x 3 time bins, got \(2, 5, 1\)"):
        posterior.forecast(3, u)
    with pytest.raises(ValueError, match="`horizon` must be at least 1"):
        posterior.forecast(0, u)
    with pytest.raises(ValueError, match="`z` must have shape draws x trials x time x rank"):
        posterior.predict(torch.zeros(2, 5, 2))


@pytest.mark.parametrize("which", ["entries", pytest.param("features", marks=pytest.mark.slow)])
def test_missing_entries_and_held_out_features_are_predicted_as_exactly_as_the_smoother_does(which: str) -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(6, 20).y
    seen = y.clone()
    if which == "entries":
        seen[torch.rand_like(y) < 0.3] = torch.nan
        seen[2, 8:12] = torch.nan
    else:
        seen[..., 1] = torch.nan
    hidden = seen.isnan()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 1000).run(seen)
    exact = rts_smoother(model, seen)
    expected = model.observation.mean(exact.mean).detach()
    readout = model.observation.readout.weight.detach()
    spread = torch.einsum("fr,btrs,fs->btf", readout, exact.covariance, readout).sqrt()
    for predicted in (posterior.predict(posterior.smooth(800)), posterior.smoothed().predict()):
        error = ((predicted - expected) / spread)[hidden]
        assert error.square().mean().sqrt() < 0.08
    if which == "entries":
        # Given the past alone the prediction is another one.
        assert ((posterior.predict() - expected) / spread)[hidden].square().mean().sqrt() > 0.15


def test_rates_of_held_out_neurons_predict_their_spikes_nearly_as_well_as_the_true_rates() -> None:
    observation = plr.PoissonObservation(rank=2, features=30)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20, decay=0.95, noise_scale=0.3), observation)
    with torch.no_grad():
        observation.readout.weight.copy_(torch.randn(30, 2))
        observation.readout.bias.fill_(0.5)
    truth = model.simulate(10, 60)
    seen = truth.y.clone()
    seen[..., 20:] = torch.nan
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 500).run(seen)
    rates = posterior.predict(posterior.smooth(100))[..., 20:]
    held_out = truth.y[..., 20:].numpy()
    best = bits_per_spike(held_out, truth.mean[..., 20:].numpy())
    found = bits_per_spike(held_out, rates.numpy())
    assert best > 0.2
    assert 0.7 * best < found < best + 2 * best.standard_error
    # Forward prediction: of the bins after those that were seen.
    forecast = plr.SMCFilter(model, plr.BootstrapGuide(model), 500).run(truth.y[:, :50]).forecast(10, num_draws=500)
    ahead = bits_per_spike(truth.y[:, 50:].numpy(), forecast.mean.mean(0).numpy())
    assert 0 < ahead < bits_per_spike(truth.y[:, 50:].numpy(), truth.mean[:, 50:].numpy())


def test_prior_and_posterior_predictive_come_from_the_same_object() -> None:
    """`Predictive` on the model alone draws from the prior, with paths from the posterior: exact moments of both."""
    model = linear_model()
    y = model.simulate(2, 5).y
    # Trials are independent as calls are, and take less time.
    prior = Predictive(model, num_samples=15)(num_trials=100, num_steps=5)["y"].flatten(0, 1)
    s = linear_system(model, 5)
    mean, covariance = s.initial_mean[0], s.initial_noise
    for t in range(5):
        if t:
            mean = s.transition @ mean + s.transition_offset[0, t]
            covariance = s.transition @ covariance @ s.transition.mT + s.noise
        spread = s.readout @ covariance @ s.readout.mT + s.readout_noise
        expected = s.readout @ mean + s.readout_offset[0, t]
        assert ((prior[:, t].mean(0) - expected).abs() < 0.1 * spread.diagonal().sqrt()).all()
        torch.testing.assert_close(prior[:, t].var(0), spread.diagonal(), rtol=0.15, atol=0)
    z = plr.SMCFilter(model, plr.OptimalGuide(model), 3000).run(y).smooth(1500)
    many = {"z": z.reshape(15, 200, *z.shape[2:])}
    posterior = Predictive(model, posterior_samples=many)(num_trials=200, num_steps=5)["y"].reshape(1500, 2, 5, -1)
    exact = rts_smoother(model, y)
    expected = model.observation.mean(exact.mean).detach()
    spread = torch.einsum("fr,btrs,fs->btf", s.readout, exact.covariance, s.readout) + s.readout_noise.diagonal()
    assert ((posterior.mean(0) - expected).abs() < 0.12 * spread.sqrt()).all()
    torch.testing.assert_close(posterior.var(0), spread, rtol=0.15, atol=0)
