"""Fluorescence and BOLD: responses, what a recording must look like, fits from their defaults, files, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.driven_recording import root
from pyro_lowrank.observations.responses import double_gamma
from tests.builders import assert_close, shaken


def calcium_model(dtype: torch.dtype = torch.float64, **options: Any) -> plr.StateSpaceModel:
    """Build a network that drives fluorescence, in general position."""
    options = {"rank": 2, "features": 3, "bin_size": 0.1} | options
    dynamics = shaken(plr.LowRankRNN(rank=2, units=6, dtype=dtype), 0.1)
    return plr.StateSpaceModel(dynamics, shaken(plr.CalciumObservation(**options, dtype=dtype), 0.1))


def response(observation: Any, steps: int) -> Tensor:
    """Return the response to a drive of one for one bin, `steps x features`."""
    memory = observation.bind_linear_memory()
    state, found = memory.drive, []
    for _ in range(steps):
        found.append((memory.readout * state).sum(-1))
        state = (memory.transition @ state.unsqueeze(-1)).squeeze(-1)
    return torch.stack(found)


def test_an_event_rises_and_decays_with_the_time_constants() -> None:
    """Against the integral of the response over the bin, by its formula."""
    for rise in (False, 0.2):
        observation = plr.CalciumObservation(
            rank=1, features=2, bin_size=0.05, decay=0.8, rise=rise, dtype=torch.float64
        )
        times = 0.05 * torch.arange(60, dtype=torch.float64)
        fine = torch.linspace(0, 0.05, 2001, dtype=torch.float64)
        ages = times.unsqueeze(-1) + fine
        shape = (-ages / 0.8).exp()
        if rise:
            shape = (shape - (-ages / rise).exp()) * 0.8 / (0.8 - rise)
        assert_close(response(observation, 60)[:, 0], torch.trapezoid(shape, fine), factor=1e4)
    assert observation.rise_time[0].item() == pytest.approx(0.2)


def test_blood_flow_follows_its_differential_equation() -> None:
    observation = plr.HaemodynamicObservation(rank=1, features=1, bin_size=1.0, dtype=torch.float64)
    found = response(observation, 30)[:, 0]
    rate, flow, fine = 0.0, 0.0, 1e-4
    for step in range(30):
        for _ in range(round(1 / fine)):
            drive = 1.0 if step == 0 else 0.0
            rate, flow = rate + fine * (0.41 * drive - 0.65 * rate - 0.41 * flow), flow + fine * rate
        assert abs(found[step].item() - flow) < 1e-4
    assert response(observation, 200).sum().item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("bin_size", [0.5, 0.72, 2.0, 3.0])
def test_the_double_gamma_is_that_of_its_formula(bin_size: float) -> None:
    observation = plr.HaemodynamicObservation(
        rank=1, features=1, bin_size=bin_size, response="double_gamma", dtype=torch.float64
    )
    exact = double_gamma(bin_size)
    found = response(observation, len(exact))[:, 0]
    assert (found - exact).abs().max() < 0.012 * exact.max()
    assert response(observation, 500).sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_root_of_any_rank_is_one() -> None:
    full, thin = torch.randn(5, 3, 3, dtype=torch.float64), torch.randn(5, 3, 1, dtype=torch.float64)
    for rows in (full, thin, torch.zeros(5, 3, 3, dtype=torch.float64)):
        covariance = rows @ rows.mT
        assert_close(root(covariance) @ root(covariance).mT, covariance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bin_size": 2.0}, "longer than the decay of the indicator, 0.7 s"),
        ({"bin_size": 0.1, "decay": -0.5}, "`decay` must be finite and above zero"),
        ({"bin_size": 0.1, "rise": -0.1}, "`rise` must be finite and above zero"),
        ({"bin_size": 0.1, "rise": 0.69}, "The rise must be faster than the decay"),
        ({"bin_size": 0.0}, "`bin_size` must be finite and above zero"),
        ({"bin_size": 0.1, "indicator": "OGB"}, "`indicator` must be one of 'GCaMP6f'"),
        ({"bin_size": 0.1, "data": "raw"}, "`data` must be one of 'dff'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plr.CalciumObservation(rank=1, features=2, **options)


def test_recordings_that_cannot_be_are_refused() -> None:
    model = calcium_model(torch.float32)
    guide = plr.BootstrapGuide(model)
    y = 0.3 * torch.rand(1, 8, 3)
    for bad, message in (
        (torch.poisson(3 * torch.ones(1, 8, 3)), "holds whole numbers alone.*use PoissonObservation"),
        (y - 1.5, r"cannot lie below -1.*divide by 100"),
        (y / (y > 0.1), "infinite values"),
    ):
        with pytest.raises(ValueError, match=message):
            plr.SMCFilter(model, guide, 5).run(bad)
    for kind in ("fluorescence", "zscore", "ratio"):
        plr.SMCFilter(calcium := calcium_model(torch.float32, data=kind), plr.BootstrapGuide(calcium), 5).run(3 * y - 2)


def test_what_is_not_served_says_what_is() -> None:
    model = calcium_model()
    y = model.simulate(2, 6).y
    with pytest.raises(ValueError, match="use BootstrapGuide"):
        plr.OptimalGuide(model)
    posterior = plr.SMCFilter(model, plr.LaplaceGuide(model), 10).run(y)
    for refused in (lambda: posterior.smooth(3, method="mcmc"), posterior.smoothed):
        with pytest.raises(ValueError, match='use smooth.num_draws, method="backward"'):
            refused()
    with pytest.raises(ValueError, match="use PMMH"):
        plr.SMCFilter(model, plr.BootstrapGuide(model), 10).run(y, reference=posterior.smooth(1)[0])
    with pytest.raises(ValueError, match="BootstrapGuide"):
        plr.ExtendedKalmanFilter(model).run(y)
    with pytest.raises(plr.NoCompiledForm, match="backend.*online"):
        plr.SMCFilter(model, plr.BootstrapGuide(model), 10, backend="compiled").init(y[:, 0])
    with pytest.raises(TypeError, match="must not remember the latents"):
        plr.JointObservation({"cells": model.observation})
    with pytest.raises(ValueError, match="time bins alone|one time bin"):
        model.bind().emission.distribution(torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guides_agree_on_the_evidence(dtype: torch.dtype) -> None:
    model = calcium_model(dtype, rise=True, drift=5.0)
    y = model.simulate(2, 12).y
    y[0, 3, 1] = y[1, 5] = torch.nan
    encoder = plr.ConvEncoder(features=3, rank=2)
    guides = [plr.BootstrapGuide(model), plr.LaplaceGuide(model), plr.EncoderGuide(model, encoder.to(dtype))]
    evidence = torch.stack([plr.SMCFilter(model, guide, 3000).run(y).log_evidence for guide in guides])
    assert (evidence - evidence[0]).abs().max() < 0.3


@pytest.mark.parametrize("backend", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_an_encoder_learns_along_the_paths(backend: str) -> None:
    model = calcium_model()
    guide = plr.EncoderGuide(model, plr.ConvEncoder(features=3, rank=2).double())
    y = model.simulate(2, 10).y
    y[0, 3, 1] = torch.nan
    plr.SMC_ELBO(50, backend=backend)(model, guide)(y).backward()
    gradients = [parameter.grad for parameter in guide.encoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients if gradient is not None) > 0


def test_padding_changes_nothing() -> None:
    model = calcium_model()
    y = model.simulate(1, 8).y
    padded = torch.cat([y, torch.full((1, 5, 3), torch.nan, dtype=y.dtype)], 1)
    found = []
    for data in (y, padded):
        torch.manual_seed(4)
        found.append(plr.SMCFilter(model, plr.BootstrapGuide(model), 4000).run(data))
    assert (found[1].log_evidence_increments[8:] == 0).all()
    assert (found[0].log_evidence - found[1].log_evidence).abs() < 0.3
    assert int(found[1].forecast(3).start) == 8


def test_files_and_exports_bring_it_back(tmp_path: Path) -> None:
    models = [
        calcium_model(rise=True, drift=9.0, decay=0.5, data="zscore"),
        plr.StateSpaceModel(
            plr.LowRankRNN(rank=1, units=5), plr.HaemodynamicObservation(rank=1, features=3, bin_size=2)
        ),
        plr.StateSpaceModel(
            plr.LowRankRNN(rank=1, units=5),
            plr.HaemodynamicObservation(rank=1, features=3, bin_size=2, response="double_gamma", drive_noise=False),
        ),
        plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.ColouredNoiseObservation(rank=1, features=3, order=2)),
    ]
    for model in models:
        plr.save(tmp_path / "model.safetensors", model, plr.LaplaceGuide(model))
        again, guide = plr.load(tmp_path / "model.safetensors")
        y = model.simulate(2, 6).y
        y[0, 2, 1] = torch.nan
        found = []
        for each, its in ((model, plr.LaplaceGuide(model)), (again, guide)):
            torch.manual_seed(1)
            found.append(plr.SMCFilter(each, its, 20).run(y))
        assert_close(found[1].log_evidence, found[0].log_evidence)
        posterior = found[1]
        z = posterior.smooth(4)
        assert posterior.predict().shape == posterior.predict(z).shape == y.shape
        assert posterior.prequential_pit().isnan().sum() == 1
        assert posterior.forecast(5).y.shape == (100, 2, 5, 3)
        assert posterior.entry_log_likelihood(z).isnan().sum() == 4
        data = plr.to_arviz(posterior, draws=4, chains=1, log_likelihood="entry")
        assert data["posterior_predictive"]["y"].shape == (1, 4, 2, 6, 3)


def test_a_rate_is_deconvolved_with_the_spread_that_it_has() -> None:
    """Given the true latents, which are frozen: the noisy rate lies where the smoother says, as often as it says."""
    model = calcium_model(features=40, rate_noise=True)
    with torch.no_grad():
        model.observation.rate_noise = 2.0 * torch.ones(40, dtype=torch.float64)
        model.observation.noise_scale = 0.1 * torch.ones(40, dtype=torch.float64)
    emission = model.bind().emission
    memory, z = emission.memory, model.simulate(1, 60).z
    driven = emission.along(z, None)
    private = 2.0 * torch.randn_like(driven)
    state = memory.before_mean + (root(memory.before_covariance) @ torch.randn(40, 1, 1, dtype=z.dtype)).squeeze(-1)
    rows = []
    for t in range(60):
        state = memory.ahead(state, driven[:, t] + private[:, t])
        rows.append(memory.expected(state, driven[:, t]) + 0.1 * torch.randn(1, 40, dtype=z.dtype))
    y = torch.stack(rows, 1).detach()
    posterior = plr.SMCFilter(model, plr.LaplaceGuide(model), 5).run(y)
    found = posterior.deconvolve(z[None])
    error = (found.mean[0] - driven - private).detach()
    standard = error / found.variance[0].sqrt()
    assert abs(standard.square().mean().item() - 1) < 0.1
    assert error.square().mean() < 0.75 * private.square().mean()


def test_a_forecast_begins_where_the_recording_ends() -> None:
    """The fluorescence decays from its last value to where the rate holds it; white noise would be there at once."""
    model = calcium_model(features=2, rate_noise=False)
    with torch.no_grad():
        model.observation.noise_scale = 1e-3 * torch.ones(2, dtype=torch.float64)
    y = model.simulate(1, 30).y
    forecast = plr.SMCFilter(model, plr.LaplaceGuide(model), 200).run(y).forecast(200, num_draws=400)
    settled = model.observation.mean(forecast.z[:, :, -1]).mean(0)
    assert ((forecast.mean[:, 0, 0].mean(0) - y[0, -1]).abs() < 0.3 * (settled[0] - y[0, -1]).abs() + 0.1).all()
    assert ((forecast.y[:, 0, -1].mean(0) - settled[0]).abs() < 0.15).all()


@pytest.mark.slow
def test_it_starts_at_the_data_and_a_fit_gains_on_it() -> None:
    truth = calcium_model(torch.float32, features=8)
    with torch.no_grad():
        truth.observation.baseline = 5.0 + torch.rand(8)
    y = truth.simulate(4, 150).y
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=6), plr.CalciumObservation(rank=2, features=8, bin_size=0.1, data="fluorescence")
    )
    guide = plr.LaplaceGuide(model)
    away = plr.SMCFilter(model, guide, 50).run(y).log_evidence.sum()
    plr.initialise_from_data(model, y)
    near = plr.SMCFilter(model, guide, 50).run(y).log_evidence.sum()
    assert near > away + 1000
    assert (model.observation.noise_scale / truth.observation.noise_scale - 1).abs().max() < 0.5
    plr.fit(model, guide, y, num_steps=15, num_particles=8, progress=False)
    assert plr.SMCFilter(model, guide, 50).run(y).log_evidence.sum() > near


def test_time_constants_have_priors_around_what_is_published() -> None:
    model = calcium_model(rise=0.07, decay=0.7)
    sampled = plr.with_priors(model, only=["observation.decay_time", "observation.rise_share"])
    table = plr.prior_table(sampled)
    assert "observation.decay_time  (3,)   LogNormal(-0.357, 0.3)" in table
    assert "observation.rise_share  (3,)   Beta(1, 9)" in table
    bold = plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=5), plr.HaemodynamicObservation(rank=1, features=2, bin_size=2)
    )
    assert "LogNormal(-0.892, 0.2)" in plr.prior_table(plr.with_priors(bold, only=["observation.flow_feedback"]))
