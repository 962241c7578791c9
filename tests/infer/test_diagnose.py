"""Diagnoses: numbers that are right on hand-made and on simulated runs, and words where they are bad."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch

import pyro_lowrank as plr
from tests.oracles.linear import linear_model


def runs(num_particles: int, count: int, guide: type = plr.OptimalGuide) -> list[plr.SMCPosterior]:
    model = linear_model(noise_scale=0.3)
    y = model.simulate(2, 20).y
    smc = plr.SMCFilter(model, guide(model), num_particles)
    return [smc.run(y) for _ in range(count)]


def test_a_hand_made_run_is_read_right() -> None:
    ancestors = torch.tensor([[0, 1, 2], [0, 0, 2], [0, 1, 1]]).unsqueeze(-1)
    posterior = plr.SMCPosterior(
        particles={"z": torch.zeros(3, 1, 3, 1)},
        log_weights=torch.tensor([[0.2, 0.2, 0.6]] * 3).log().unsqueeze(-1),
        ancestors=ancestors,
        log_evidence_increments=torch.zeros(3, 1),
        ess=torch.tensor([[3.0], [1.5], [2.0]]),
        resampled=torch.tensor([[False], [True], [False]]),
    )
    found = plr.diagnose(posterior, num_worst=2)
    # Particles 0, 1, 2 of the last bin come from 0, 1, 1 at the second, and all from 0 at the first.
    assert found.coalescence.tolist() == [2.0]
    assert [(p.trial, p.time, p.ess) for p in found.worst] == [(0, 1, 1.5), (0, 2, 2.0)]
    assert found.largest_weight == pytest.approx(0.6)
    assert found.resampling_rate == 0.5
    assert found.suggested_particles is None
    assert "1.5 at trial 0, time bin 1" in str(found)
    assert "One particle carries most" in str(found)


def test_the_suggested_number_of_particles_brings_the_variance_near_one() -> None:
    torch.manual_seed(1)
    found = plr.diagnose(runs(100, 30, plr.BootstrapGuide))
    assert found.variance_log_evidence.max() > 2
    assert any("more than a nat" in line for line in found.advice)
    assert found.suggested_particles is not None
    torch.manual_seed(1)
    again = plr.diagnose(runs(found.suggested_particles, 30, plr.BootstrapGuide))
    assert 0.1 < again.variance_log_evidence.max() < 3
    assert again.rhat < found.rhat


def test_a_good_run_draws_no_complaint_of_its_weights() -> None:
    found = plr.diagnose(runs(2000, 3))
    assert found.rhat < 1.05
    assert not any("R-hat" in line or "nat" in line for line in found.advice)


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(TypeError, match="SMCPosterior or a list"):
        plr.diagnose([])
    with pytest.raises(ValueError, match="same time bins, particles and trials"):
        plr.diagnose([*runs(10, 1), *runs(20, 1)])


def poisson(noise_scale: float = 0.3) -> plr.StateSpaceModel:
    """A model of counts at low rates, where ties are common."""
    torch.manual_seed(4)
    dynamics = plr.LowRankRNN(rank=2, units=20, noise_scale=noise_scale)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=4))
    with torch.no_grad():
        model.observation.readout.weight.copy_(1.5 * torch.randn(4, 2))
    return model


def test_predictions_of_the_model_that_made_the_data_are_calibrated() -> None:
    for model in (linear_model(inputs=1, noise_scale=0.3), poisson()):
        u = torch.randn(20, 60, 1, dtype=torch.float64) if model.dynamics.num_inputs else None
        y = model.simulate(20, 60, u).y
        y[3, 10:20, 1] = torch.nan
        arguments = (y,) if u is None else (y, u)
        posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 500).run(*arguments)
        pit = posterior.prequential_pit()
        assert torch.equal(pit.isnan(), y.isnan())
        # Time bins are independent of each other, features are not: each by itself, at the level of 0.1 %.
        for feature in pit.unbind(-1):
            values = feature[~feature.isnan()].double()
            assert scipy.stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
            assert torch.stack([values[1:], values[:-1]]).corrcoef()[0, 1].abs() < 0.12
        found = plr.diagnose(posterior).calibration
        assert found is not None
        assert found.advice == ()


@pytest.mark.parametrize(
    ("change", "word"), [("narrow", "too narrow"), ("wide", "too wide"), ("bias", "lies higher than predicted")]
)
def test_wrong_models_are_told_how_they_are_wrong(change: str, word: str) -> None:
    model = linear_model(noise_scale=0.5)
    y = model.simulate(10, 60).y
    with torch.no_grad():
        if change == "bias":
            model.observation.readout.bias.sub_(0.5)
        else:
            factor = 0.5 if change == "narrow" else 2.0
            for part in (model.observation, model.dynamics):
                part.noise_scale = part.noise_scale.detach() * factor
    found = plr.diagnose(plr.SMCFilter(model, plr.OptimalGuide(model), 500).run(y))
    assert found.calibration is not None
    assert found.calibration.distance > found.calibration.allowed
    assert any(word in line for line in found.advice)
    assert "predictions" in str(found)


def with_variance(variance: float, count: int, num_particles: int = 100) -> list[plr.SMCPosterior]:
    """Runs whose log evidences have a variance, all else at its best."""
    evidence = torch.randn(count, dtype=torch.float64)
    evidence = (evidence - evidence.mean()) / evidence.std() * variance**0.5
    ess = torch.full((2, 1), float(num_particles), dtype=torch.float64)
    z = torch.randn(num_particles, 1, 2, 1, dtype=torch.float64)
    return [
        plr.SMCPosterior(
            particles={"z": z},
            log_weights=torch.full((2, num_particles, 1), 1 / num_particles, dtype=torch.float64).log(),
            ancestors=torch.arange(num_particles).reshape(1, -1, 1).expand(2, -1, 1),
            log_evidence_increments=torch.stack([value, 0 * value]).unsqueeze(-1),
            ess=ess,
            resampled=torch.zeros(2, 1, dtype=torch.bool),
        )
        for value in evidence
    ]


@pytest.mark.parametrize("count", [2, 5, 30])
def test_the_suggested_number_comes_with_the_interval_of_a_variance(count: int) -> None:
    found = plr.diagnose(with_variance(4.0, count))
    assert found.suggested_particles == pytest.approx(400, abs=1)
    assert found.suggested_interval is not None
    for bound, tail in zip(found.suggested_interval, (0.975, 0.025), strict=True):
        expected = 400 * (count - 1) / scipy.stats.chi2(count - 1).ppf(tail)
        assert bound == pytest.approx(expected, abs=1.01, rel=1e-6)
    low, high = found.suggested_interval
    assert f"at least {found.suggested_particles:,} particles (95 % interval {low:,} to {high:,})" in str(found)
    assert not found.collapsed


def test_a_collapse_is_said_to_make_numbers_uncertain_and_calibration_no_comfort() -> None:
    found = plr.diagnose(with_variance(50.0, 4))
    assert found.collapsed
    assert any("has collapsed" in line and "says nothing of it" in line for line in found.advice)
    assert not any("has collapsed" in line for line in plr.diagnose(with_variance(4.0, 4)).advice)


def test_calibrated_predictions_of_a_collapsed_filter_are_said_to_be_no_comfort() -> None:
    model = linear_model(noise_scale=0.3)
    y = model.simulate(2, 40).y
    with torch.no_grad():
        model.observation.noise_scale = model.observation.noise_scale.detach() / 20
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 30)
    found = plr.diagnose([smc.run(y) for _ in range(3)])
    assert found.collapsed
    lines = str(found).split("\n")
    (place,) = (i for i, line in enumerate(lines) if line.startswith("  predictions"))
    assert "that says nothing of it" in lines[place + 1]


@pytest.mark.parametrize(
    ("kind", "advised", "not_advised"),
    [
        (plr.OptimalGuide, "more particles, or an EncoderGuide", "better guide"),
        (plr.BootstrapGuide, "OptimalGuide where noise is Gaussian", "BootstrapGuide"),
        (None, "OptimalGuide where noise is Gaussian", "use OptimalGuide, in use"),
    ],
)
def test_the_guide_in_use_is_not_advised(kind: Any, advised: str, not_advised: str) -> None:
    torch.manual_seed(0)
    model = linear_model(features=4, noise_scale=0.01)
    y = model.simulate(num_trials=1, num_steps=20).y
    y[:, 10] += 100.0
    smc = plr.SMCFilter(model, None if kind is None else kind(model), 30)
    told = " ".join(plr.diagnose([smc.run(y) for _ in range(2)]).advice)
    assert "falls below a tenth" in told
    assert advised in told
    assert not_advised not in told
