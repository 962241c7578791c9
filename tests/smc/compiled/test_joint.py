"""Recordings of several kinds, and sessions, in the compiled loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.observations.family import ScalarEmission
from tests.smc.compiled.test_equals_plain import assert_equal

SHAPE: dict[str, Any] = {"rank": 2, "dtype": torch.float64}


def of_three_families(inputs: int = 0) -> plr.JointObservation:
    readout = plr.AffineReadout(features=3, inputs=inputs, **SHAPE)
    return plr.JointObservation(
        {
            "spikes": plr.PoissonObservation(readout=readout),
            "field": plr.StudentTObservation(features=2, **SHAPE),
            "bursts": plr.NegativeBinomialObservation(features=4, **SHAPE),
        }
    )


def model_of(observation: plr.Observation, inputs: int = 0) -> plr.StateSpaceModel:
    torch.manual_seed(3)
    dynamics = plr.LowRankRNN(units=21, noise_scale=0.4, inputs=inputs, **SHAPE)
    return plr.StateSpaceModel(dynamics, observation)


@pytest.mark.parametrize(
    ("guide_of", "inputs"),
    [
        (plr.BootstrapGuide, 0),
        pytest.param(plr.BootstrapGuide, 1, marks=pytest.mark.slow),
        pytest.param(plr.LaplaceGuide, 0, marks=pytest.mark.slow),
        pytest.param(plr.LaplaceGuide, 1, marks=pytest.mark.slow),
    ],
)
def test_several_families_give_the_numbers_of_the_plain_loop(guide_of: Any, inputs: int) -> None:
    model = model_of(of_three_families(inputs), inputs)
    u = torch.randn(3, 12, inputs, dtype=torch.float64) if inputs else None
    y = model.simulate(3, 12, u).y.clone()
    # An entry of each kind, a whole part, a whole bin, and the end of a trial.
    y[0, 3, [1, 4, 7]] = y[2, 4, 3:5] = y[1, 5] = y[2, 9:] = torch.nan
    assert_equal(model, guide_of(model), y, *([] if u is None else [u]))


@pytest.mark.parametrize("guide_of", [plr.BootstrapGuide, plr.LaplaceGuide])
def test_sessions_of_one_family_are_one_recording(guide_of: Any) -> None:
    sessions = {name: plr.PoissonObservation(features=size, **SHAPE) for name, size in (("a", 3), ("b", 4))}
    pooled = plr.MultiSession(sessions)
    model = model_of(pooled)
    assert isinstance(model.bind().emission, ScalarEmission)
    y = pooled.pool(
        {
            name: torch.poisson(torch.ones(2, 9, part.features, **{"dtype": torch.float64}))
            for name, part in sessions.items()
        }
    ).y
    one = plr.PoissonObservation(features=7, **SHAPE)
    with torch.no_grad():
        for called in ("weight", "bias"):
            parts = [getattr(part.readout, called) for part in sessions.values()]
            getattr(one.readout, called).copy_(torch.cat(parts))
    alone = plr.StateSpaceModel(model.dynamics, one)
    found = []
    for each in (model, alone):
        torch.manual_seed(5)
        loss = plr.SMC_ELBO(8).differentiable_loss(each, guide_of(each), y)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.dynamics.parameters()))])
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)
    assert_equal(model, guide_of(model), y)


def test_parameters_of_one_family_stand_side_by_side() -> None:
    parts = {
        "few": plr.StudentTObservation(features=2, **SHAPE),
        "many": plr.StudentTObservation(features=3, **SHAPE),
    }
    with torch.no_grad():
        parts["few"].freedom.fill_(3.0)
        parts["many"].noise_scale.copy_(torch.tensor([0.5, 0.7, 0.9]))
    joint = plr.JointObservation(parts)
    model = model_of(joint)
    z, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    expected = sum(
        part.distribution(z).log_prob(piece) for part, piece in zip(parts.values(), y.split((2, 3), -1), strict=True)
    )
    torch.testing.assert_close(model.bind().emission.distribution(z).log_prob(y), expected)


def test_a_part_that_is_read_from_rates_is_left_to_tensors() -> None:
    parts = {
        "ones": plr.BernoulliObservation(features=2, **SHAPE),
        "counts": plr.PoissonObservation(readout=plr.UnitReadout(units=21, source="rates", dtype=torch.float64)),
    }
    model = model_of(plr.JointObservation(parts))
    with pytest.raises(plr.NoCompiledForm, match="rates"):
        plr.SMCFilter(model, plr.BootstrapGuide(model), 8, backend="compiled").run(model.simulate(2, 5).y)
