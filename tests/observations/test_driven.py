"""Observations that remember the latents against one Gaussian over everything: evidence, gradients, moments."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.linear_future import smooth
from pyro_lowrank.observations.observed import Observed
from tests.builders import assert_close, gaussian_model, sites
from tests.oracles.driven import driven_model, joint_of

KINDS = ("second_order", "double_gamma", "coloured")
STEPS = 7


def recording(model: plr.StateSpaceModel, *, gaps: bool = True) -> Tensor:
    """Draw two trials, with single entries and whole bins missing, the beginning and the end of a feature too."""
    y = model.simulate(2, STEPS).y
    if gaps:
        y[0, 2, :2] = y[0, 3, 1] = y[0, :2, 2] = y[0, -1, 0] = y[1, 0] = y[1, 4:6] = torch.nan
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_given_a_path_the_density_is_that_of_the_definition(kind: str) -> None:
    """Frozen latents: of their noise next to nothing is left, so that the recording's law is that given the path."""
    model = driven_model(kind)
    with torch.no_grad():
        for name in ("noise_scale", "initial_noise_scale"):
            setattr(model.dynamics, name, 1e-9 * torch.eye(2, dtype=torch.float64))
    joint, y = joint_of(model, STEPS), recording(model)
    path = joint.z[0].expand(2, STEPS, 2)
    found: Any = model.bind().emission.recording(path, None)
    missing = y.isnan()
    density = found.leave_out(missing).log_prob(y.nan_to_num(nan=0.0))
    assert_close(density, torch.stack([joint.evidence(each) for each in y]), factor=1e4)
    assert_close(found.mean[0], joint.y[0], factor=1e3)
    entries = model.bind().emission.entries(Observed.of(y), None, path[None])
    assert_close(entries.sum((-2, -1))[0], density)


@pytest.mark.parametrize("kind", KINDS)
def test_first_bin_under_the_optimal_guide_has_the_exact_evidence(kind: str) -> None:
    """Its weights are p(y_1), whatever is drawn."""
    model = driven_model(kind)
    y = recording(model)[:, :1]
    y[1, 0, 1] = 0.3
    joint = joint_of(model, 1)
    exact = torch.stack([joint.evidence(each) for each in y])
    assert_close(plr.SMCFilter(model, plr.OptimalGuide(model), 3).run(y).log_evidence, exact, factor=10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guide", [plr.BootstrapGuide, plr.OptimalGuide])
def test_evidence_and_smoothed_moments_are_exact(kind: str, guide: Any) -> None:
    model = driven_model(kind)
    y = recording(model)
    joint = joint_of(model, STEPS)
    runs = [plr.SMCFilter(model, guide(model), 2000).run(y) for _ in range(6)]
    evidence = torch.stack([run.log_evidence for run in runs])
    exact = torch.stack([joint.evidence(each) for each in y])
    error = evidence.std(0) / len(runs) ** 0.5
    assert (error < 0.1).all()
    assert ((evidence.mean(0) - exact).abs() < 4 * error + 0.5 * evidence.var(0) + 1e-3).all()
    z = torch.cat([run.smooth(500) for run in runs])
    for trial, recorded in enumerate(y):
        mean, covariance = joint.given(recorded, joint.z)
        paths = z[:, trial].flatten(1)
        spread = covariance.diagonal().sqrt()
        assert ((paths.mean(0) - mean).abs() < 0.12 * spread).all()
        assert (((paths.T.cov() - covariance) / (spread[:, None] * spread)).abs() < 0.15).all()


def test_backward_paths_forget_the_genealogy() -> None:
    """With few particles the genealogy has one beginning; paths drawn backwards have many, in the right place."""
    model = driven_model("second_order")
    y = model.simulate(1, 25).y
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 500).run(y)
    joint = joint_of(model, 25)
    mean, covariance = joint.given(y[0], joint.z)
    spread = covariance.diagonal().sqrt()
    z = posterior.smooth(500)[:, 0]
    genealogy = posterior.smooth(500, method="genealogy")[:, 0, 0]
    assert len(z[:, 0].unique(dim=0)) > 2 * len(genealogy.unique(dim=0))
    assert ((z.flatten(1).mean(0) - mean).abs() / spread).mean() < 0.15
    assert (z.flatten(1).std(0) / spread - 1).abs().mean() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_smoothed_exactly(kind: str) -> None:
    """Averaged over paths, with the spread that these have: the moments of the states given the recording."""
    model = driven_model(kind)
    y = recording(model)
    joint, emission = joint_of(model, STEPS), model.bind().emission
    with torch.no_grad():
        z = torch.cat([plr.SMCFilter(model, plr.OptimalGuide(model), 3000).run(y).smooth(700) for _ in range(3)])
        noise_scale = model.observation.noise_of_drive()
        found = smooth(emission.memory, Observed.of(y), emission.along(z, None), noise_scale)
    for trial, recorded in enumerate(y):
        mean, covariance = joint.given(recorded, joint.s)
        spread = covariance.diagonal().clamp(min=0).sqrt()
        means = found.mean[:, trial].flatten(1)
        own = found.covariance[trial].diagonal(dim1=-2, dim2=-1).flatten()
        assert ((means.mean(0) - mean).abs() < 0.15 * spread + 1e-6).all()
        assert_close(0 * spread + (means.var(0) + own).sqrt(), spread, factor=1e9)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64])
def test_gradient_along_paths_is_that_of_the_exact_evidence(dtype: torch.dtype) -> None:
    model = driven_model("second_order", dtype=dtype)
    y = recording(model).to(dtype)
    exact_model = copy.deepcopy(model).double()
    torch.stack([joint_of(exact_model, STEPS).evidence(each) for each in y.double()]).sum().backward()
    elbo = plr.SMC_ELBO(1000, gradient=plr.FisherGradient(500))
    runs = []
    for _ in range(10):
        model.zero_grad()
        (-elbo(model, plr.OptimalGuide(model))(y)).backward()
        runs.append([parameter.grad.clone() for parameter in model.parameters()])
    for number, (name, exact) in enumerate(exact_model.named_parameters()):
        found, wanted = torch.stack([run[number] for run in runs]), exact.grad.to(dtype)
        allowed = 6 * found.std(0) / len(runs) ** 0.5 + 0.01 * wanted.abs().max()
        assert ((found.mean(0) - wanted).abs() <= allowed).all(), name


def test_pathwise_gradient_of_one_bin_is_exact() -> None:
    """Without resampling, and weights that do not depend on what is drawn."""
    model = driven_model("second_order")
    y = recording(model)[:, :1]
    y[1, 0, 1] = 0.3
    torch.stack([joint_of(model, 1).evidence(each) for each in y]).sum().backward()
    exact = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (-plr.SMC_ELBO(4, gradient=plr.PathwiseGradient())(model, plr.OptimalGuide(model))(y)).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    for one, other in zip(found, [each for each in exact if each.abs().sum() > 0], strict=True):
        assert_close(one, other, factor=1e3)


def test_without_memory_it_is_the_white_model() -> None:
    white = gaussian_model()
    coloured = plr.StateSpaceModel(
        white.dynamics, plr.ColouredNoiseObservation(rank=2, features=3, order=3, dtype=torch.float64)
    )
    with torch.no_grad():
        for name in ("weight", "bias"):
            setattr(coloured.observation.readout, name, getattr(white.observation.readout, name))
        coloured.observation.noise_scale = white.observation.noise_scale
    y = recording(white)
    for guide in (plr.BootstrapGuide, plr.OptimalGuide):
        found = []
        for model in (white, coloured):
            pyro.set_rng_seed(1)
            found.append(plr.SMCFilter(model, guide(model), 50, backend="plain").run(y))
        # Optimal proposals are drawn by other factors of the same covariance.
        bins = slice(None) if guide is plr.BootstrapGuide else slice(1)
        assert_close(found[1].log_evidence_increments[bins], found[0].log_evidence_increments[bins])
        if guide is plr.BootstrapGuide:
            assert_close(found[1].particles["z"], found[0].particles["z"])


def test_program_and_filter_protocol_have_one_density() -> None:
    model = driven_model("coloured")
    y = recording(model)
    z = sites(model, y)["z"]["value"]
    whole = sites(pyro.condition(model, data={"z": z}), y)["y"]["log_prob_sum"]
    state: dict[Any, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(STEPS):
        step = pyro.condition(model.step if t else model.init, data={"z": z[:, t]})
        total = total + sites(step, state, y[:, t])["y"]["log_prob_sum"]
    assert_close(total, whole)


def test_simulated_recordings_have_the_law_of_the_definition() -> None:
    model = driven_model("second_order")
    mean, rows = joint_of(model, STEPS).y
    drawn = model.simulate(20_000, STEPS).y.flatten(1)
    covariance = (rows.flatten(0, 1) @ rows.flatten(0, 1).mT).detach()
    spread = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean.flatten()).abs() < 5 * spread / 20_000**0.5).all()
    assert (((drawn.T.cov() - covariance) / (spread[:, None] * spread)).abs() < 0.05).all()


def test_online_it_smooths_the_last_bins() -> None:
    model = driven_model("second_order")
    y = recording(model)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 2000, lag=3)
    smc.init(y[:, 0])
    for t in range(1, STEPS):
        smc.step(y[:, t])
    joint = joint_of(model, STEPS)
    exact = torch.stack([joint.evidence(each) for each in y])
    assert (smc.log_evidence - exact).abs().max() < 0.3
    z = smc.posterior().smooth(1500)
    for trial, recorded in enumerate(y):
        mean, covariance = joint.given(recorded, joint.z)
        wanted = mean.reshape(STEPS, 2)[-4:].flatten()
        spread = covariance.diagonal().sqrt().reshape(STEPS, 2)[-4:].flatten()
        assert ((z[:, trial].flatten(1).mean(0) - wanted).abs() < 0.2 * spread).all()
