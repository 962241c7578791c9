"""The Laplace guide is the optimal one where that exists, unbiased everywhere, and near it where counts tell much."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.curvature import Curvature
from pyro_lowrank.observations.observed import Observed
from tests.builders import assert_close, gaussian_model, network, shaken
from tests.observations.test_families import FAMILIES, model_of
from tests.oracles.quadrature import log_evidence_on_a_grid


def evidence(
    model: Any, guide: Any, y: Tensor, u: Tensor | None = None, *, particles: int = 20_000, backend: str = "auto"
) -> Tensor:
    """Log evidence by the particle filter, mean of ten runs."""
    smc, runs = plr.SMCFilter(model, guide, particles, backend=backend), 10
    y, u = y.repeat(runs, 1, 1), None if u is None else u.repeat(runs, 1, 1)
    found = (smc.run(y) if u is None else smc.run(y, u)).log_evidence
    return found.unflatten(0, (runs, -1)).logsumexp(0) - math.log(runs)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_it_is_the_optimal_guide_for_gaussian_data(iterations: int, noise: str, dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, inputs=1, noise=noise, initial_noise=noise)
    u = torch.randn(3, 6, 1, dtype=dtype)
    y = model.simulate(num_trials=3, num_steps=6, u=u).y.clone()
    y[0, 2] = y[1, 3, 0] = torch.nan
    bound = model.bind()
    laplace = plr.LaplaceGuide(model, num_iterations=iterations, freedom=None).bind(bound)
    optimal = plr.OptimalGuide(model).bind(bound)
    v = bound.transition.drift.effective_inputs(u)
    mean = torch.randn(10, 3, 2, dtype=dtype)
    codes = [proposal.encode(Observed.of(y), v, first=True) for proposal in (laplace, optimal)]
    for time, q in ((0, bound.transition.initial_noise), (2, bound.transition.noise), (3, bound.transition.noise)):
        found, expected = (
            proposal.distribution(q, mean, {name: value[:, time] for name, value in code.items()})
            for proposal, code in zip((laplace, optimal), codes, strict=True)
        )
        assert_close(found.mean, expected.mean, factor=20)
        assert_close(found.covariance_matrix, expected.covariance_matrix.expand_as(found.covariance_matrix), factor=20)


def test_its_weights_are_those_of_the_optimal_guide_for_gaussian_data() -> None:
    model = gaussian_model(noise_scale=0.2)
    laplace = plr.LaplaceGuide(model, freedom=None)
    y = model.simulate(num_trials=4, num_steps=10).y
    # They do not depend on the draws: with one particle per trial the evidence is the same, whatever the draw.
    found = evidence(model, laplace, y[:, :1], particles=1)
    assert_close(found, evidence(model, plr.OptimalGuide(model), y[:, :1], particles=1), factor=1e3)
    many = [evidence(model, guide, y, particles=2000) for guide in (laplace, plr.OptimalGuide(model))]
    torch.testing.assert_close(many[0], many[1], rtol=0, atol=0.15)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guide", [plr.LaplaceGuide, plr.BootstrapGuide])
def test_evidence_equals_quadrature(family: str, guide: Any) -> None:
    model = model_of(family, rank=1)
    y = model.simulate(num_trials=3, num_steps=3).y.clone()
    y[1, 1, 0] = y[2, 2] = torch.nan
    exact = log_evidence_on_a_grid(model, y)
    # Near the optimal proposal a fifth of the particles is as exact.
    found = evidence(model, guide(model), y, particles=4_000 if guide is plr.LaplaceGuide else 20_000)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-2)


def test_evidence_under_inputs_equals_quadrature() -> None:
    observation = shaken(plr.PoissonObservation(rank=1, features=3, inputs=1, dtype=torch.float64))
    model = plr.StateSpaceModel(network(rank=1, inputs=1), observation)
    u = torch.randn(2, 3, 1, dtype=torch.float64)
    y = model.simulate(num_trials=2, num_steps=3, u=u).y
    found = evidence(model, plr.LaplaceGuide(model), y, u)
    torch.testing.assert_close(found, log_evidence_on_a_grid(model, y, u), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("family", ["poisson softplus", "negative binomial exp", "bernoulli"])
def test_the_evidence_is_unbiased(family: str) -> None:
    model = model_of(family, rank=1)
    y = model.simulate(num_trials=1, num_steps=3).y
    exact = log_evidence_on_a_grid(model, y)
    replicates = 20_000
    smc = plr.SMCFilter(model, plr.LaplaceGuide(model), 4)
    ratio = (smc.run(y.expand(replicates, -1, -1)).log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 3.5 * ratio.std() / replicates**0.5


def teacher() -> plr.StateSpaceModel:
    """Sixty units that oscillate, one count per bin on average: spikes tell much of the latents."""
    angle = torch.tensor(0.3)
    rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    dynamics = plr.LowRankRNN(
        rank=2, units=2, activation="identity", decay=0.5, noise_scale=0.5, noise="diagonal", initial_scale=1.0
    )
    observation = plr.PoissonObservation(rank=2, features=60, link="exp")
    with torch.no_grad():
        dynamics.left.copy_(torch.eye(2))
        dynamics.right.copy_(0.95 * rotation - 0.5 * torch.eye(2))
        dynamics.bias.zero_()
        observation.readout.weight.copy_(0.7 * torch.randn(60, 2))
        observation.readout.bias.fill_(-0.5)
    return plr.StateSpaceModel(dynamics, observation)


def test_effective_sample_size_is_three_times_that_of_the_transition() -> None:
    model = teacher()
    y = model.simulate(num_trials=10, num_steps=40).y
    sizes = [
        plr.SMCFilter(model, guide, 200).run(y).ess.mean() / 200
        for guide in (plr.LaplaceGuide(model), plr.BootstrapGuide(model))
    ]
    assert sizes[0] > 3 * sizes[1]


def test_real_teacher_varies_less_than_under_the_transition(shared_data: Any) -> None:
    import numpy as np

    with np.load(shared_data / "teacher_osc_rnn_poisson.npz") as d:
        left, right, bias, decay = d["U"], d["V"], -d["b_rec"], float(d["decay"])
    readout = plr.UnitReadout(units=len(left), source="currents", scale=4.0, bias=-3.0)
    dynamics = plr.LowRankRNN(
        rank=2, units=len(left), activation="relu", noise="diagonal", noise_scale=0.2, initial_scale=2.0, decay=decay
    )
    with torch.no_grad():
        for name, value in (("left", left), ("right", right), ("bias", bias)):
            getattr(dynamics, name).copy_(torch.as_tensor(value))
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(readout=readout))
    y = model.simulate(num_trials=10, num_steps=60).y
    variance = []
    for guide in (plr.LaplaceGuide(model), plr.BootstrapGuide(model)):
        smc = plr.SMCFilter(model, guide, 100)
        variance.append(torch.stack([smc.run(y).log_evidence for _ in range(6)]).var(0).mean())
    # Its spikes are few, so that the transition alone does well after the first bins.
    assert variance[0] < 0.6 * variance[1]


@pytest.mark.parametrize("family", ["poisson softplus", "negative binomial softplus", "bernoulli", "student"])
def test_gradients_are_exact(family: str) -> None:
    model = model_of(family)
    y = model.simulate(num_trials=2, num_steps=3).y
    elbo = plr.SMC_ELBO(3, resampler=plr.NoResampling(), gradient=plr.PathwiseGradient())(
        model, plr.LaplaceGuide(model)
    )
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def loss(*parameters: Tensor) -> Tensor:
        torch.manual_seed(2)
        replaced = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(elbo, replaced, (y,))

    start = tuple(dict(model.named_parameters())[name].detach().clone().requires_grad_() for name in names)
    # Along random directions of all parameters: entry by entry takes ten times as long.
    torch.autograd.gradcheck(loss, start, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("backend", ["compiled", "plain"])
def test_particles_far_above_the_data_have_weights(backend: str, dtype: torch.dtype) -> None:
    # Rates of exp(30) and more where the data are zero: float32 cannot add a precision of one to the information there.
    model = plr.StateSpaceModel(
        network(dtype, rank=4), plr.PoissonObservation(rank=4, features=15, link="exp", dtype=dtype)
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(15, 4, generator=generator, dtype=torch.float64).to(dtype)
    model.observation.readout.weight, model.dynamics.initial_mean = weight, 7 * weight[:2].sum(0)
    assert model.bind().emission.mean(model.dynamics.initial_mean).log().max() > 30
    y = torch.zeros(50, 1, 15, dtype=dtype)
    found = plr.SMCFilter(model, plr.LaplaceGuide(model), 500, backend=backend).run(y).log_evidence
    assert found.isfinite().all()


def test_online_is_offline() -> None:
    model = model_of("poisson softplus", rank=2)
    y = model.simulate(num_trials=3, num_steps=7).y.clone()
    y[0, 3, 1] = torch.nan
    smc = plr.SMCFilter(model, plr.LaplaceGuide(model), 20_000)
    smc.init(y[:, 0])
    for t in range(1, 7):
        smc.step(y[:, t])
    torch.testing.assert_close(smc.log_evidence, smc.run(y).log_evidence, rtol=0, atol=0.05)


def test_padding_changes_no_result() -> None:
    model = model_of("poisson softplus")
    y = model.simulate(num_trials=2, num_steps=5).y
    padded = torch.cat([y, torch.full((2, 3, 3), torch.nan, dtype=y.dtype)], 1)
    found = plr.SMCFilter(model, plr.LaplaceGuide(model), 500).run(padded).log_evidence_increments[5:]
    assert_close(found, torch.zeros_like(found))


def test_it_runs_under_pyros_effects() -> None:
    model = model_of("poisson softplus", torch.float32)
    y = model.simulate(num_trials=3, num_steps=5).y
    guide = plr.LaplaceGuide(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3}), loss=plr.SMC_ELBO(num_particles=20))
    assert svi.step(y) < float("inf")
    theirs = pyro.infer.SMCFilter(model, guide, 50, max_plate_nesting=1)
    theirs.init(y_t=y[:, 0])
    theirs.step(y_t=y[:, 1])


class Laplacian(plr.Observation):
    """A user's own observation model, with the curvature that the guide asks for."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        return dist.Laplace(z, 0.5).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        score = (y - z).sign() / 0.5
        return Curvature(score, torch.full_like(score, 4.0), torch.eye(z.shape[-1], dtype=z.dtype))


def test_a_users_own_observation_model_is_served() -> None:
    model = plr.StateSpaceModel(network(rank=1), Laplacian(features=1))
    y = model.simulate(num_trials=3, num_steps=3).y
    found = evidence(model, plr.LaplaceGuide(model), y)
    torch.testing.assert_close(found, log_evidence_on_a_grid(model, y), rtol=1e-3, atol=1e-2)


class Plain(plr.Observation):
    """A user's own observation model without a curvature."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        return dist.Laplace(z, 0.5).to_event(1)


def test_what_it_cannot_serve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs an observation model with a method `curvature\(z, v, y\)`, got Plain"):
        plr.LaplaceGuide(plr.StateSpaceModel(network(rank=1), Plain(features=1)))
    rates = plr.PoissonObservation(readout=plr.UnitReadout(units=6, source="rates"))
    with pytest.raises(ValueError, match="readout that is affine in the latents"):
        plr.LaplaceGuide(plr.StateSpaceModel(network(torch.float32), rates))
    with pytest.raises(ValueError, match="num_iterations"):
        plr.LaplaceGuide(gaussian_model(), num_iterations=0)
