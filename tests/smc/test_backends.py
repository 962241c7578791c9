"""Which loop runs a filter, and what is said when it is not the compiled one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.smc import runs
from pyro_lowrank.smc.loop import ParticlesDied
from tests.smc.test_effects import Delegate


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    torch.manual_seed(0)
    runs.say_once.cache_clear()


def pair() -> tuple[Any, Any, torch.Tensor]:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=10), plr.GaussianObservation(rank=2, features=4))
    return model, plr.OptimalGuide(model), torch.randn(3, 6, 4)


def test_a_model_without_a_compiled_form_is_refused_or_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    model, guide, y = pair()
    programs = Delegate(model), Delegate(guide)
    with pytest.raises(ValueError, match=r"'auto' or 'plain'.*written by the user"):
        plr.SMC_ELBO(5, backend="compiled").loss(*programs, y)
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        for _ in range(2):
            plr.SMC_ELBO(5).loss(*programs, y)
    assert [record.message for record in caplog.records if "written by the user" in record.message] == [
        "The filter runs on plain tensor operations, not compiled: the model or guide is written by the user."
    ]


def test_it_says_what_it_compiled_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pyro_lowrank.smc.compiled import pair as compiled_pair

    clock = iter([0.0, 7.0])
    monkeypatch.setattr(compiled_pair.time, "perf_counter", lambda: next(clock))
    model, guide, y = pair()
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        plr.SMC_ELBO(5).loss(model, guide, y)
    assert "Compiled the loops of OptimalProposal for 2 latents in 7 s" in caplog.text


def test_gradients_along_the_particles_have_no_compiled_form() -> None:
    model, guide, y = pair()
    elbo = plr.SMC_ELBO(5, gradient=plr.PathwiseGradient(), backend="compiled")
    with pytest.raises(plr.NoCompiledForm, match=r"PathwiseGradient differentiates the run itself; FisherGradient"):
        elbo.differentiable_loss(model, guide, y)
    # Without gradients there is nothing to differentiate.
    assert elbo.loss(model, guide, y) > 0


@pytest.mark.parametrize("backend", ["compiled", "plain"])
def test_a_backend_that_cannot_be_had_online_is_refused(backend: str) -> None:
    model, guide, y = pair()
    programs = Delegate(model), Delegate(guide)
    if backend == "plain":
        plr.SMCFilter(*programs, 5, backend=backend).init(y[:, 0])
        return
    with pytest.raises(ValueError, match=r"'auto' or 'plain'.*written by the user"):
        plr.SMCFilter(*programs, 5, backend=backend).init(y[:, 0])


@pytest.mark.parametrize("backend", ["compiled", "plain"])
def test_dead_particles_are_named_by_trial_and_time(backend: str) -> None:
    model, _, y = pair()
    y[1, 4] = 1e30
    with pytest.raises(ParticlesDied, match="trial 1 are dead at time 4"):
        plr.SMC_ELBO(5, backend=backend).loss(model, plr.BootstrapGuide(model), y)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'compiled', 'plain'"):
        plr.SMC_ELBO(5, backend="fast")


def test_more_latents_than_the_loops_hold_run_plainly() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=32, units=40), plr.GaussianObservation(rank=32, features=4))
    guide, y = plr.BootstrapGuide(model), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="32 latents are more than the 31"):
        plr.SMC_ELBO(5, backend="compiled").loss(model, guide, y)
    losses = []
    for backend in ("auto", "plain"):
        torch.manual_seed(1)
        losses.append(plr.SMC_ELBO(5, backend=backend).loss(model, guide, y))
    assert losses[0] == losses[1]
