"""Models of features that remember their own past: programs, online filters, forecasts, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.memory import Past, observation, roll
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.training.standardise import Standardisation
from tests.builders import assert_close, shaken, sites
from tests.observations.remembering import gaps, remembering
from tests.oracles.autoregression import autocovariance, exact_increments, outlooks


def test_as_a_program_the_recording_has_the_density_of_the_filter() -> None:
    """Latents that the data do not see: then the evidence is the density of the recording."""
    model = remembering()
    with torch.no_grad():
        model.observation.readout.weight.zero_()
    for y in (model.simulate(2, 8).y, gaps(model.simulate(2, 8).y)):
        found = sites(model, y)["y"]
        assert_close(found["log_prob_sum"], plr.ExtendedKalmanFilter(model).run(y).log_evidence.sum())


def test_init_and_step_have_the_same_density_and_remember_what_they_drew() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 6).y)
    z = sites(model, y)["z"]["value"]
    whole = sites(pyro.condition(model, data={"z": z}), y)["y"]["log_prob_sum"]
    state: dict[Any, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(6):
        step = pyro.condition(model.step if t else model.init, data={"z": z[:, t]})
        total = total + sites(step, state, y[:, t])["y"]["log_prob_sum"]
    assert_close(total, whole)


def test_it_runs_in_the_filter_of_pyro() -> None:
    model = remembering()
    y = model.simulate(2, 6).y
    y[0, 2, 1] = y[1, 4, 2] = torch.nan
    filtered = pyro.infer.SMCFilter(model, plr.OptimalGuide(model), 500, max_plate_nesting=1)
    filtered.init(y[:, 0])
    for t in range(1, 6):
        filtered.step(y[:, t])
    exact_mean = plr.ExtendedKalmanFilter(model).run(y).filtered_mean[:, -1]
    mean = filtered.get_empirical()["z"].mean
    assert ((mean - exact_mean).abs() < 0.3).all()


def test_online_it_remembers_the_last_bins_and_goes_on_from_a_saved_state() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 8).y)
    exact = exact_increments(model, y).sum(0)
    guide = plr.OptimalGuide(model)
    smc = plr.SMCFilter(model, guide, 3000, lag=3)
    smc.init(y[:, 0])
    for t in range(1, 5):
        smc.step(y[:, t])
    again = plr.SMCFilter(model, guide, 3000, lag=3)
    again.load_state_dict(smc.state_dict())
    for t in range(5, 8):
        again.step(y[:, t])
        smc.step(y[:, t])
    for each in (smc, again):
        assert ((each.log_evidence - exact).abs() < 0.25).all()
    whole = plr.SMCFilter(model, guide, 3000).run(y)
    last = smc.posterior()
    one, other = (posterior.forecast(3, num_draws=4000).y for posterior in (last, whole))
    assert ((one.mean(0) - other.mean(0)).abs() < 0.2 * other.std(0)).all()
    assert torch.equal(last.recording[0].nan_to_num(), y[:, -4:].nan_to_num())


def test_online_from_the_first_bin_on_it_is_the_run_over_the_whole() -> None:
    model = remembering()
    y = model.simulate(2, 3).y
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20, lag=5)
    smc.init(y[:, 0])
    smc = copy.deepcopy(smc)
    smc.step(y[:, 1])
    smc.step(y[:, 2])
    posterior = smc.posterior()
    z = posterior.smooth(3)
    whole = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(y)
    assert_close(posterior.predict(z), whole.predict(z))
    assert posterior.forecast(2).y.shape == (100, 2, 2, 4)


@pytest.mark.parametrize("with_gaps", [False, True])
def test_forecasts_go_on_from_the_last_bins(with_gaps: bool) -> None:
    """Mean and variance of the next bin are those of the exact filter, as is the mean of the bin after it."""
    model = remembering()
    y = model.simulate(2, 8).y
    if with_gaps:
        y[0, -1, :2] = y[0, -3, 3] = torch.nan
    further = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
    forecast = plr.ExtendedKalmanFilter(model).run(y).forecast(2, num_draws=20_000)
    with torch.no_grad():
        mean, scale = (each[:, -1] for each in outlooks(model, further))
        predicted = plr.ExtendedKalmanFilter(model).run(torch.cat([y, y[:, :1] * torch.nan], 1))
        o = model.observation
        latents = predicted.predicted_mean[:, -1] @ o.readout.weight.mT
        spread = o.readout.weight @ predicted.predicted_covariance[:, -1] @ o.readout.weight.mT + o.noise_covariance
        expected = o.readout.bias + mean + scale * latents
        deviation = scale * spread.diagonal(dim1=-2, dim2=-1).sqrt()
    error = deviation / 20_000**0.5
    assert ((forecast.y[:, :, 0].mean(0) - expected).abs() < 5 * error).all()
    torch.testing.assert_close(forecast.y[:, :, 0].std(0), deviation, rtol=0.05, atol=0)
    assert ((forecast.y.mean(0) - forecast.mean.mean(0)).abs() < 5 * forecast.y.std(0) / 20_000**0.5).all()


def test_simulations_begin_at_the_stationary_law() -> None:
    model = remembering(noise_factors=0, order=2)
    with torch.no_grad():
        model.observation.readout.weight.zero_()
    y = model.simulate(40_000, 5).y
    o = model.observation
    with torch.no_grad():
        for i in range(4):
            expected = o.noise_variance[i] * autocovariance(o.autoregression.coefficients[i], 5)
            # The standard error of a covariance is at most 0.7 % of the variance.
            torch.testing.assert_close(y[:, :, i].mT.cov(), expected, rtol=0, atol=0.035 * float(expected[0, 0]))


def test_innovations_and_observations_are_inverse_maps(dtype: torch.dtype) -> None:
    model = remembering(dtype)
    y = model.simulate(2, 8).y
    memory = model.bind().memory
    assert memory is not None
    past = Past.of(memory, Observed.of(y))
    x = past.innovations.y
    assert_close(roll(memory, x), y, factor=50)
    assert_close(observation(memory.center, past.outlook, x), y, factor=50)


def test_expected_observations_are_those_given_the_own_past() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 8).y)
    z = torch.randn(1, 2, 8, 2, dtype=torch.float64)
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    mean, scale = outlooks(model, y)
    o = model.observation
    with torch.no_grad():
        assert_close(posterior.predict(z), o.readout.bias + mean + scale * (z[0] @ o.readout.weight.mT))
    assert torch.equal(posterior.recording[0].isnan(), y.isnan())
    assert_close(posterior.recording[0].nan_to_num(), y.nan_to_num())


def test_entries_have_the_likelihood_of_the_recording_not_of_innovations() -> None:
    model = remembering(noise_factors=0)
    y = gaps(model.simulate(2, 8).y)
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    z = posterior.smooth(1)
    found = posterior.entry_log_likelihood(z)
    conditioned = sites(pyro.condition(model, data={"z": z[0]}), y)["y"]
    assert_close(found.nansum(), conditioned["log_prob_sum"])


def test_one_step_predictions_are_calibrated() -> None:
    model = remembering()
    y = model.simulate(20, 100).y
    pit = plr.SMCFilter(model, plr.OptimalGuide(model), 300).run(y).prequential_pit()
    assert abs(float(pit.mean()) - 0.5) < 0.02
    assert abs(float(pit.std()) - 12**-0.5) < 0.01


def test_replicates_follow_the_paths() -> None:
    model = remembering()
    y = model.simulate(2, 6).y
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    z = posterior.smooth(1).expand(20_000, -1, -1, -1)
    mean, draws = posterior.replicate(z)
    assert mean is not None
    assert ((draws.mean(0) - mean[0]).abs() < 5 * draws.std(0) / 20_000**0.5).all()


def test_what_the_data_settle_at() -> None:
    model = remembering()
    z = torch.randn(2, dtype=torch.float64)
    memory = model.bind().memory
    assert memory is not None
    with torch.no_grad():
        settled = model.observation.settled(z)
        long = roll(memory, model.observation.mean(z).expand(1, 3000, 4))
    torch.testing.assert_close(long[0, -1], settled, rtol=1e-4, atol=1e-4)


def test_files_hold_it(tmp_path: Path) -> None:
    model = remembering(torch.float32)
    plr.save(tmp_path / "model.safetensors", model, plr.OptimalGuide(model))
    again, _ = plr.load(tmp_path / "model.safetensors")
    assert torch.equal(again.observation.autoregression.coefficients, model.observation.autoregression.coefficients)
    y = model.simulate(2, 6).y
    one, other = (plr.ExtendedKalmanFilter(each).run(y).log_evidence for each in (model, again))
    assert torch.equal(one, other)


def test_other_units_are_the_same_model() -> None:
    model = remembering()
    y = model.simulate(2, 8).y
    before = plr.ExtendedKalmanFilter(model).run(y).log_evidence
    units = Standardisation(torch.tensor([1.0, -2.0, 0.0, 3.0]).double(), torch.tensor([1.0, 2.0, 0.5, 10.0]).double())
    units.fold_into(model.observation)
    after = plr.ExtendedKalmanFilter(model).run(y * units.scale + units.mean).log_evidence
    assert_close(after, before - 8 * units.scale.log().sum())


def test_beside_counts_that_remember_nothing() -> None:
    """Counts stay counts, and the part that remembers has the evidence that it has alone."""
    eeg = plr.GaussianObservation(rank=2, features=3, noise="autoregressive", order=2, dtype=torch.float64)
    counts = plr.PoissonObservation(rank=2, features=2, dtype=torch.float64)
    joint = plr.JointObservation({"spikes": counts, "eeg": shaken(eeg)})
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6, dtype=torch.float64), joint)
    y = model.simulate(2, 6).y
    assert torch.equal(y[..., :2], y[..., :2].round())
    memory = model.bind().memory
    assert memory is not None
    assert torch.equal(Past.of(memory, Observed.of(y)).innovations.y[..., :2], y[..., :2])
    alone = plr.StateSpaceModel(model.dynamics, eeg)
    z = sites(alone, y[..., 2:])["z"]["value"]
    data = {"z": z}
    together = sites(pyro.condition(model, data=data), y)["y"]["log_prob_sum"]
    of_counts = counts.distribution(z.movedim(1, 0)).log_prob(y[..., :2].movedim(1, 0)).sum()
    of_eeg = sites(pyro.condition(alone, data=data), y[..., 2:])["y"]["log_prob_sum"]
    assert_close(together, of_counts + of_eeg)


def test_with_outliers() -> None:
    observation = plr.StudentTObservation(
        rank=2, features=3, noise="autoregressive", order=2, freedom=5.0, dtype=torch.float64
    )
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6, dtype=torch.float64), shaken(observation))
    y = model.simulate(2, 6).y
    z = sites(model, y)["z"]["value"]
    found = sites(pyro.condition(model, data={"z": z}), y)["y"]["log_prob_sum"]
    with torch.no_grad():
        mean, scale = outlooks(model, y)
        location = observation.readout.bias + mean + scale * (z @ observation.readout.weight.mT)
        expected = torch.distributions.StudentT(observation.freedom, location, scale * observation.noise_scale)
        assert_close(found, expected.log_prob(y).sum())
    compiled, plain = [], []
    for backend, kept in (("compiled", compiled), ("plain", plain)):
        torch.manual_seed(1)
        kept.append(plr.SMCFilter(model, plr.LaplaceGuide(model), 20, backend=backend).run(y).log_evidence)
    assert_close(compiled[0], plain[0], factor=50)
