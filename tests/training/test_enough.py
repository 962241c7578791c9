"""A fit says whether its particles were enough: the evidence with more of them, until it no longer changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.training.particles import ParticleCheck
from tests.training.builders import assert_same_state, pair, recording, small_fit, state
from tests.training.test_progress import result_of


def checked(evidence: list[float], error: float, *, settled: bool = True) -> ParticleCheck:
    """A check that began at 16 particles."""
    number = len(evidence)
    return ParticleCheck(16 * 2 ** np.arange(number), np.array(evidence), np.full(number, error), settled)


@pytest.fixture
def precise() -> tuple[plr.StateSpaceModel, torch.Tensor]:
    """A model whose observations are so precise that few particles from the transition miss them, and its data."""
    model, _ = pair()
    with torch.no_grad():
        model.observation.noise_scale = torch.full((3,), 0.05)
        return model, model.simulate(6, 30).y


def test_particles_are_doubled_until_the_evidence_no_longer_changes() -> None:
    model, guide = pair()
    y = recording(trials=9, steps=20)
    result = small_fit(model, guide, y[:5], held_out=y[5:], num_particles=16)
    found = result.particles
    assert found is not None
    assert found.settled
    assert found.num_particles.tolist() == [16 * 2**k for k in range(len(found.num_particles))]
    change = np.abs(np.diff(found.evidence))
    within = change <= np.hypot(found.error[1:], found.error[:-1])
    assert within.tolist() == [False] * (len(within) - 1) + [True]
    # The locally optimal proposal has a small error here: what it settles at is what very many particles say.
    with torch.no_grad():
        many = plr.SMC_ELBO(4000).log_evidence(model, guide, y[5:]).sum().item() / (4 * 20)
    assert found.evidence[-1] == pytest.approx(many, abs=4 * found.error.max() + 1e-3)
    assert f"{found.evidence[0]:.3f} nats per bin at 16 particles, as trained" in str(result)


def test_a_fit_whose_particles_are_too_few_says_so(precise: tuple[plr.StateSpaceModel, torch.Tensor]) -> None:
    model, y = precise
    elbo = plr.SMC_ELBO(4, backend="plain")  # nothing to compile
    result = small_fit(
        model,
        plr.BootstrapGuide(model),
        y[:3],
        held_out=y[3:],
        num_particles=None,
        elbo=elbo,
        num_steps=1,
        learning_rate=1e-9,
    )
    found = result.particles
    assert found is not None
    assert found.parts
    assert found.gap > 0.5
    assert not found.settled
    assert found.num_particles.tolist() == [4, 8, 16, 32, 64]
    assert any("Go on with more particles (num_particles=64)" in line for line in result.advice)
    assert "and still changes" in str(found)


def test_what_is_only_noise_or_small_is_not_advised_on() -> None:
    held_out = [-9.0, -5.0, -2.0, -1.01, -1.0]
    for check in (checked([-1.0, -0.9], 0.1), checked([-1.0, -0.9], 0.001)):
        assert replace(result_of(held_out), particles=check).advice == ()
    apart = replace(result_of(held_out), particles=checked([-1.0, -0.5], 0.001))
    assert apart.advice == (
        "The evidence at 16 particles, as trained, is not that at 32: it is +0.500 nats per bin off, and what was "
        "maximised is another function. Go on with more particles (num_particles=32), or with a guide that aims "
        "better.",
    )


def test_it_changes_nothing_and_can_be_left_out() -> None:
    y = recording()
    models = [pair() for _ in range(2)]
    results = [
        small_fit(*each, y[:3], held_out=y[3:], check_particles=check)
        for each, check in zip(models, (True, False), strict=True)
    ]
    assert results[1].particles is None
    assert_same_state(models[0][0], state(models[1][0]))
    before = torch.get_rng_state()
    small_fit(*pair(), y[:3], held_out=y[3:])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_held_out_data_or_particles_there_is_nothing_to_check() -> None:
    y = recording()
    model, guide = pair()
    assert small_fit(model, guide, y).particles is None
    result = small_fit(model, None, y[:3], held_out=y[3:], num_particles=None, elbo=plr.EKFEvidence(), num_steps=1)
    assert result.particles is None
