"""Draws of what drives features, and of what follows: against one Gaussian over everything, jointly over time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import shaken
from tests.oracles.driven import driven_model, joint_of

DRAWS = 4000


def within(found: Tensor, expected: Tensor, variance: Tensor) -> None:
    """Assert that means of draws of a given variance are as expected, to five standard errors."""
    error = (found - expected).detach().abs() / (variance.detach() / DRAWS).sqrt().clamp(min=1e-6)
    assert error.max() < 5


@pytest.mark.parametrize("kind", ["second_order", "double_gamma", "coloured"])
def test_draws_have_the_law_of_the_response_given_path_and_recording(kind: str) -> None:
    steps = 8
    model = driven_model(kind)
    y = model.simulate(2, steps).y
    y[0, 2, 1] = y[1, 5] = torch.nan
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(y)
    z = posterior.smooth(1)
    with torch.no_grad():
        joint, memory = joint_of(model, steps), model.bind().emission.memory
    found = posterior.traces(z.expand(DRAWS, -1, -1, -1))
    response = found[model.observation.trace_names[1]]
    mean, rows = ((memory.readout * joint.s[0]).sum(-1), (memory.readout.unsqueeze(-1) * joint.s[1]).sum(-2))
    for trial in range(2):
        # Everything that is known: the entries that are there, and the path.
        there = ~y[trial].isnan()
        seen = torch.cat([joint.y[1][there], joint.z[1].flatten(0, 1)])
        off = torch.cat([(y[trial] - joint.y[0])[there], (z[0, trial] - joint.z[0]).flatten()])
        gain = torch.linalg.solve(seen @ seen.mT, seen @ rows.flatten(0, 1).mT).mT
        expected = mean + (gain @ off).unflatten(0, mean.shape)
        rest = rows.flatten(0, 1) - gain @ seen
        covariance = rest @ rest.mT
        draws = response[:, trial].flatten(1)
        within(draws.mean(0), expected.flatten(), covariance.diagonal())
        products = (draws - expected.flatten()).unsqueeze(-1) * (draws - expected.flatten()).unsqueeze(-2)
        within(products.mean(0), covariance, products.var(0))


def calcium_model(**options: object) -> plr.StateSpaceModel:
    """A network that drives fluorescence of cells with activity of their own."""
    observation = plr.CalciumObservation(rank=1, features=2, bin_size=0.1, dtype=torch.float64, **options)  # type: ignore[arg-type]
    dynamics = shaken(plr.LowRankRNN(rank=1, units=4, dtype=torch.float64), 0.1)
    return plr.StateSpaceModel(dynamics, shaken(observation, 0.1))


@pytest.mark.parametrize("options", [{}, {"rise": True, "drift": 5.0}, {"rate_noise": False}])
def test_draws_have_the_moments_of_the_deconvolution(options: dict[str, object]) -> None:
    model = calcium_model(**options)
    y = model.simulate(1, 12).y
    y[0, 4, 0] = torch.nan
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 20).run(y)
    z = posterior.smooth(1)
    known, draws = posterior.deconvolve(z), posterior.traces(z.expand(DRAWS, -1, -1, -1))
    assert list(draws) == ["rates", "calcium"]
    within(draws["rates"].mean(0), known.mean[0], known.variance[0])
    spread = (draws["rates"] - known.mean).square()
    within(spread.mean(0), known.variance[0], spread.var(0))
    emission = model.bind().emission
    within(draws["calcium"].mean(0), (emission.response * known.state).sum(-1)[0], draws["calcium"].var(0))
    # A drifting baseline is no calcium.
    expected = 2 if "drift" in options else 1
    assert int((emission.response != 0).sum(-1)[0]) == expected


def test_they_stand_in_arviz_beside_the_latents() -> None:
    model = calcium_model()
    y = model.simulate(2, 6).y
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 20).run(y)
    data = plr.to_arviz(posterior, chains=2, draws=100)["posterior"]
    assert data["calcium"].dims == data["rates"].dims == ("chain", "draw", "trial", "time", "feature")
    z = torch.as_tensor(data["z"].values).flatten(0, 1)
    known = posterior.deconvolve(z)
    gap = torch.as_tensor(data["rates"].values).flatten(0, 1) - known.mean
    assert (gap.mean(0).abs() < 5 * (known.variance.mean(0) / len(z)).sqrt()).all()
    few = plr.to_arviz(posterior, chains=1, draws=3, predictive=False)["posterior"]
    assert set(few.data_vars) == {"z"}


def test_other_observations_have_none() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=2))
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 5).run(torch.randn(1, 4, 2))
    assert posterior.traces(posterior.smooth(2)) == {}
