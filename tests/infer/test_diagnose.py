"""Diagnoses: numbers that are right on hand-made and on simulated runs, and words where they are bad."""

from __future__ import annotations

import pytest
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
