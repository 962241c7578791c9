"""The extended Kalman filter's public face: posterior, SVI, fit, export, errors."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroSample
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import gaussian_model, network
from tests.oracles.linear import kalman_filter, linear_model, linear_system
from tests.smc.test_effects import Delegate
from tests.smc.test_smoothing import errors, rts_smoother
from tests.training.builders import pair, recording

NAN = float("nan")


def test_drawn_paths_have_the_smoothers_mean_variance_and_covariance_over_time() -> None:
    model = linear_model()
    y = model.simulate(3, 12).y.clone()
    y[0, 4:7] = NAN
    error, variance, lagged = errors(plr.ExtendedKalmanFilter(model).run(y).smooth(4000), rts_smoother(model, y))
    assert error < 0.03
    assert variance == pytest.approx(1, abs=0.02)
    assert lagged == pytest.approx(1, abs=0.03)


def test_forecasts_go_on_from_each_trials_own_end(dtype: torch.dtype) -> None:
    model = linear_model(inputs=1, dtype=dtype)
    u = torch.randn(2, 14, 1, dtype=dtype)
    y = model.simulate(2, 10, u[:, :10]).y.clone()
    y[1, 7:] = NAN
    later = torch.stack([u[0, 10:], u[1, 7:11]])
    forecast = plr.ExtendedKalmanFilter(model).run(y, u[:, :10]).forecast(4, later, num_draws=8000)
    assert forecast.start.tolist() == [10, 7]
    for trial, end in enumerate((10, 7)):
        inputs = torch.cat([u[trial : trial + 1, :end], later[trial : trial + 1]], 1)
        exact = kalman_filter(model, y[trial : trial + 1, :end], inputs[:, :end])
        s = linear_system(model, end + 4, inputs)
        mean, covariance = exact.mean[0, -1], exact.covariance[0, -1]
        for step in range(4):
            mean = s.transition @ mean + s.transition_offset[0, end + step]
            covariance = s.transition @ covariance @ s.transition.mT + s.noise
            z = forecast.z[:, trial, step]
            assert ((z.mean(0) - mean).abs() < 0.05 * covariance.diagonal().sqrt()).all()
            torch.testing.assert_close(z.T.cov(), covariance, rtol=0.1, atol=0.05 * covariance.max().item())
    with pytest.raises(ValueError, match="has 1 inputs, but none came"):
        plr.ExtendedKalmanFilter(model).run(y, u[:, :10]).forecast(3)


def test_predictions_are_calibrated_under_the_true_model() -> None:
    model = linear_model()
    y = model.simulate(20, 50).y
    pit = plr.ExtendedKalmanFilter(model).run(y).prequential_pit()
    assert pit.shape == y.shape
    assert pit.mean().item() == pytest.approx(0.5, abs=0.03)
    assert pit.var().item() == pytest.approx(1 / 12, rel=0.1)


def test_the_posterior_reads_as_one_of_particles_does() -> None:
    model = gaussian_model(inputs=1)
    u = torch.randn(2, 5, 1, dtype=torch.float64)
    y = model.simulate(2, 5, u).y
    ekf = plr.ExtendedKalmanFilter(model).run(y, u)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(y, u)
    for name in ("log_evidence", "log_evidence_increments"):
        assert getattr(ekf, name).shape == getattr(smc, name).shape
    for call in ("mean", "variance", "predict"):
        assert getattr(ekf, call)().shape == getattr(smc, call)().shape
    z = ekf.smooth(7)
    assert [x.shape for x in ekf.replicate(z)] == [x.shape for x in smc.replicate(smc.smooth(7))]
    assert [x.shape for x in ekf.forecast(3, u[:, :3])] == [x.shape for x in smc.forecast(3, u[:, :3])]
    assert torch.equal(ekf.recording[0], y)
    assert ekf.mean_name == smc.mean_name == "mean"
    assert str(ekf).startswith("GaussianPosterior: 2 trials x 5 time bins, 2 latents")
    assert "approximate" in str(ekf)
    assert not ekf.log_evidence.requires_grad


def test_it_goes_to_arviz() -> None:
    model = gaussian_model()
    y = model.simulate(2, 6).y.clone()
    y[0, 1, 1] = NAN
    posterior = plr.ExtendedKalmanFilter(model).run(y)
    data = plr.to_arviz(posterior, chains=2, draws=300)
    assert dict(data["posterior"].z.sizes) == {"chain": 2, "draw": 300, "trial": 2, "time": 6, "latent": 2}
    np.testing.assert_allclose(data["sample_stats"]["log_evidence"][0], posterior.log_evidence)
    assert "ess" not in data["sample_stats"]
    assert float(az.rhat(data, var_names=["z"])["z"].max()) < 1.05
    error = data["posterior"]["z"].mean(("chain", "draw")).values - posterior.smoothed_mean.numpy()
    width = posterior.smoothed_covariance.diagonal(dim1=-2, dim2=-1).sqrt().numpy()
    assert np.abs(error / width).max() < 5 / 600**0.5


@pytest.mark.parametrize("local", [False, True], ids=["global params", "module-local params"])
def test_svi_raises_the_evidence_and_moves_every_parameter(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model, _ = pair()
        y = recording(trials=10)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        svi = SVI(model, None, ClippedAdam({"lr": 0.02}), loss=plr.EKFEvidence())
        losses = [svi.step(y) for _ in range(40)]
        assert losses[-1] < losses[0] - 10
        for name, value in model.named_parameters():
            assert not torch.equal(value, before[name]), name
        assert svi.evaluate_loss(y) <= losses[-1] + 1


def test_scales_frozen_parameters_and_the_idiom_of_modules() -> None:
    model = gaussian_model()
    y = model.simulate(4, 6).y
    elbo = plr.EKFEvidence()
    plain = elbo.loss(model, None, y)
    assert plain == pytest.approx(-plr.ExtendedKalmanFilter(model).run(y).log_evidence.sum().item())
    assert elbo.loss(poutine.scale(model, scale=0.25), None, y) == pytest.approx(0.25 * plain)
    with pyro.plate("trials", 40, subsample=torch.arange(4), dim=-1):
        assert elbo.loss(model, None, y) == pytest.approx(10 * plain)
    pyro.clear_param_store()
    model.dynamics.requires_grad_(False)
    loss = elbo(model, None)
    loss(y).backward()
    assert len(pyro.get_param_store()) == 0
    assert all(p.grad is None for p in model.dynamics.parameters())
    assert all(p.grad is not None for p in model.observation.parameters())


def test_priors_on_weights_meet_the_evidence_as_a_factor() -> None:
    model = gaussian_model()
    y = model.simulate(3, 5).y
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(6, dtype=y.dtype), 1.0).to_event(1))
    with pytest.raises(ValueError, match="have priors"):
        plr.ExtendedKalmanFilter(model).run(y)
    elbo = plr.EKFEvidence()

    def program() -> None:
        pyro.factor("evidence", -elbo.differentiable_loss(model, None, y))

    bias = torch.randn(6, dtype=y.dtype)
    trace = poutine.trace(poutine.condition(program, data={"dynamics.bias": bias})).get_trace()
    fixed = poutine.condition(lambda: elbo.log_evidence(model, None, y), data={"dynamics.bias": bias})()
    assert trace.nodes["evidence"]["fn"].log_factor.item() == pytest.approx(fixed.sum().item())


@pytest.mark.parametrize("options", [{}, {"window": 5, "batch_size": 3}, {"batch_size": 2}])
def test_fit_takes_it_with_windows_gaps_and_ragged_trials(options: dict[str, Any], tmp_path: Any) -> None:
    model, _ = pair()
    data = recording(trials=6)
    trials = [trial[: 8 + i % 3] for i, trial in enumerate(data)]
    trials[2][3], trials[0][1, 1] = NAN, NAN
    path = tmp_path / "fit.safetensors"
    result = plr.fit(
        model,
        None,
        trials,
        elbo=plr.EKFEvidence(),
        num_steps=40,
        learning_rate=0.02,
        held_out=data,
        progress=False,
        checkpoint=path,
        **options,
    )
    assert result.held_out_evidence[-1] > result.held_out_evidence[0] + 0.1
    assert np.isnan(result.ess).all()
    assert "effective size" not in str(result)
    loaded, guide = plr.load(path)
    assert guide is None
    assert plr.EKFEvidence().loss(loaded, None, data) == pytest.approx(plr.EKFEvidence().loss(model, None, data))


def test_a_step_of_fit_follows_the_gradient() -> None:
    model, _ = pair(torch.float64)
    expected, _ = pair(torch.float64)
    y = recording(torch.float64)
    plr.EKFEvidence()(expected, None)(y).backward()
    options: dict[str, Any] = {"optimizer": torch.optim.SGD, "learning_rate": 0.01, "max_grad_norm": None}
    plr.fit(model, None, y, elbo=plr.EKFEvidence(), num_steps=1, start_at_data=False, progress=False, **options)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert q.grad is not None
        torch.testing.assert_close(p, q - 0.01 * q.grad / y[..., 0].numel())


def test_nothing_global_is_changed_and_no_random_number_is_drawn() -> None:
    model = gaussian_model()
    y = model.simulate(2, 5).y
    before = torch.get_rng_state()
    posterior = plr.ExtendedKalmanFilter(model).run(y)
    plr.EKFEvidence()(model, None)(y).backward()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()
    own = model.dynamics.bias.detach().clone()
    with torch.no_grad():
        model.dynamics.bias.add_(1.0)
    # What was found stands, whatever becomes of the model.
    assert torch.equal(posterior.transitions.transition.drift.bias, own)


class OnlyADensity(plr.Observation):
    """Observations without a curvature."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        return dist.Laplace(z, 1.0).to_event(1)


def test_what_cannot_be_filtered_is_refused_with_a_way_out() -> None:
    model = gaussian_model()
    y = model.simulate(2, 5).y
    ekf, elbo = plr.ExtendedKalmanFilter(model), plr.EKFEvidence()
    with pytest.raises(ValueError, match="must have 3 dims"):
        ekf.run(y[0])
    with pytest.raises(ValueError, match="3 features in its last dim"):
        elbo(model, None)(y.mT)
    with pytest.raises(TypeError, match=r"holds torch.float32, the model torch.float64"):
        ekf.run(y.float())
    with pytest.raises(TypeError, match="needs a StateSpaceModel .* use SMCFilter and SMC_ELBO"):
        plr.ExtendedKalmanFilter(Delegate(model))
    with pytest.raises(TypeError, match="needs a StateSpaceModel"):
        elbo.loss(Delegate(model), None, y)
    with pytest.raises(TypeError, match="pass None as the guide, got OptimalGuide"):
        elbo.loss(model, plr.OptimalGuide(model), y)
    with pytest.raises(TypeError, match="pass None as the guide"):
        plr.fit(model, plr.OptimalGuide(model), y, elbo=elbo, num_steps=1)
    with pytest.raises(ValueError, match="no particles, got num_particles=5"):
        plr.fit(model, None, y, elbo=elbo, num_steps=1, num_particles=5)
    with pytest.raises(ValueError, match="affine-Gaussian or have a method `curvature"):
        plr.ExtendedKalmanFilter(plr.StateSpaceModel(network(), OnlyADensity(features=2)))
    rates = plr.PoissonObservation(readout=plr.UnitReadout(units=6, source="rates", dtype=y.dtype))
    with pytest.raises(ValueError, match="read from latents, inputs or currents"):
        plr.ExtendedKalmanFilter(plr.StateSpaceModel(network(), rates))
    heavy = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=6, noise_freedom=1.5, dtype=y.dtype),
        plr.GaussianObservation(rank=2, features=3, dtype=y.dtype),
    )
    with pytest.raises(ValueError, match="infinite up to 2 degrees of freedom"):
        plr.ExtendedKalmanFilter(heavy).run(y)
