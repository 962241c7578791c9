"""Starting at the data, standardising, the teacher, and the yardstick: each against its closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.cli.models import OBSERVATIONS
from pyro_lowrank.training.independent import without_dynamics
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.teacher import oscillator_student, oscillator_teacher
from tests.training.builders import assert_same_state, pair, recording, state

NAN = float("nan")


def factors(dtype: torch.dtype, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """A recording of 2 slow latents seen by 6 features, and the plane that they span."""
    torch.manual_seed(4)
    z = torch.randn(8, 400, 2, dtype=dtype)
    for t in range(1, 400):
        z[:, t] = 0.95 * z[:, t - 1] + 0.3 * z[:, t]
    loadings = torch.randn(6, 2, dtype=dtype)
    return 5.0 + z @ loadings.mT + noise * torch.randn(8, 400, 6, dtype=dtype), loadings


def linear(dtype: torch.dtype, **options: Any) -> plr.StateSpaceModel:
    """Build a model of 2 latents and 6 features."""
    dynamics = plr.LowRankRNN(rank=2, units=8, dtype=dtype, **options)
    return plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=6, dtype=dtype))


def test_frozen_left_vectors_leave_the_right_ones_as_they_were_drawn(dtype: torch.dtype) -> None:
    readout = plr.UnitReadout(units=6, source="currents", dtype=dtype)
    dynamics = plr.LowRankRNN(rank=2, units=6, activation="relu", dtype=dtype)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(readout=readout, dtype=dtype))
    with torch.no_grad():
        dynamics.left.mul_(0.1)
    dynamics.left.requires_grad_(False)
    right = dynamics.right.detach().clone()
    plr.initialise_from_data(model, 100 * torch.randn(4, 50, 6, dtype=dtype))
    torch.testing.assert_close(dynamics.right.detach(), right)


def test_as_many_latents_as_features_start_with_some_noise(dtype: torch.dtype) -> None:
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=3, units=8, dtype=dtype), plr.GaussianObservation(rank=3, features=3, dtype=dtype)
    )
    y = torch.randn(4, 500, 3, dtype=dtype) * torch.tensor([1.0, 5.0, 0.2], dtype=dtype)
    plr.initialise_from_data(model, y)
    deviation = y.flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(model.observation.noise_variance.sqrt(), 0.1 * deviation, rtol=1e-3, atol=0)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
def test_a_start_at_the_data_finds_plane_and_noise(noise: str, dtype: torch.dtype) -> None:
    y, loadings = factors(dtype)
    model = linear(dtype, noise=noise)
    with torch.no_grad():
        before = -plr.SMC_ELBO(32).loss(model, plr.OptimalGuide(model), y)
    plr.initialise_from_data(model, y)
    readout, observation = model.observation.readout, model.observation
    # The same plane: projecting one on the other loses nothing.
    basis = torch.linalg.qr(loadings).Q
    lost = readout.weight - basis @ (basis.mT @ readout.weight)
    assert lost.abs().max() < 0.02 * readout.weight.abs().max()
    torch.testing.assert_close(readout.bias, y.mean((0, 1)))
    assert observation.noise_variance.mean().sqrt().item() == pytest.approx(0.1 * (4 / 6) ** 0.5, rel=0.05)
    z = (y - readout.bias) @ torch.linalg.pinv(readout.weight).mT
    torch.testing.assert_close(z.flatten(0, 1).var(0), torch.ones(2, dtype=dtype), rtol=1e-2, atol=0.0)
    error = (z[:, 1:] - model.dynamics(z[:, :-1])).flatten(0, 1)
    covariance = error.mT @ error / len(error)
    if noise != "full":
        covariance = torch.diag_embed(covariance.diagonal())
    if noise == "scalar":
        covariance = covariance.diagonal().mean() * torch.eye(2, dtype=dtype)
    torch.testing.assert_close(model.dynamics.noise_covariance, covariance, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        after = -plr.SMC_ELBO(32).loss(model, plr.OptimalGuide(model), y)
    assert after > before + 1000


def test_a_start_at_the_data_reads_currents_through_the_left_vectors() -> None:
    y, loadings = factors(torch.float32)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=6), plr.GaussianObservation(readout=plr.UnitReadout(units=6, scale=2.0))
    )
    plr.initialise_from_data(model, y)
    seen = 2.0 * model.dynamics.left
    basis = torch.linalg.qr(loadings).Q
    assert (seen - basis @ (basis.mT @ seen)).abs().max() < 0.02 * seen.abs().max()


def test_a_start_at_the_data_copes_with_gaps_and_inputs() -> None:
    y, _ = factors(torch.float32)
    y[0, 100:] = NAN
    y[1:, ::7, 2] = NAN
    dynamics = plr.LowRankRNN(rank=2, units=8, inputs=1)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=6, inputs=1))
    plr.initialise_from_data(model, y, torch.randn(8, 400, 1))
    assert all(value.isfinite().all() for value in state(model).values())
    assert (model.observation.readout.input_weight == 0).all()
    torch.testing.assert_close(model.observation.readout.bias, y.nanmean((0, 1)))


def test_a_start_at_the_data_leaves_frozen_parameters_and_weights_alone() -> None:
    model = linear(torch.float32)
    frozen = {n: p for n, p in model.named_parameters() if "bias" in n or n.startswith("dynamics.noise")}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    before = state(model)
    plr.initialise_from_data(model, factors(torch.float32)[0])
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed == {"observation.readout.weight_unconstrained", "observation.noise_scale_unconstrained"}


@pytest.mark.parametrize("link", ["exp", "softplus"])
def test_counts_start_at_their_mean_rates(link: str) -> None:
    y = torch.poisson(torch.tensor([0.02, 1.0, 30.0]).expand(10, 500, 3))
    y[..., 0] = 0
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.PoissonObservation(rank=1, features=3, link=link))
    plr.initialise_from_data(model, y)
    expected = y.mean((0, 1)).clamp(min=1e-4)
    torch.testing.assert_close(model.observation.mean(torch.zeros(1)), expected, rtol=1e-3, atol=1e-6)


def test_counts_start_at_the_plane_of_their_covariances(dtype: torch.dtype) -> None:
    z, loadings = torch.randn(40, 500, 2, dtype=dtype), torch.randn(30, 2, dtype=dtype)
    for t in range(1, 500):
        z[:, t] = 0.95 * z[:, t - 1] + (1 - 0.95**2) ** 0.5 * z[:, t]
    loadings = 0.4 * loadings / loadings.norm(dim=-1, keepdim=True)
    # One feature varies a lot, by itself and from bin to bin: a component of the covariance, but not of the latents'.
    log_rate = torch.cat([z @ loadings.mT - 1.0, 2.0 * torch.randn(40, 500, 1, dtype=dtype)], -1)
    y = torch.cat([torch.poisson(log_rate.exp()), torch.zeros(40, 500, 1, dtype=dtype)], -1)
    y[0, 100:] = NAN
    y[1:, ::7, 2] = NAN
    observation = plr.PoissonObservation(rank=2, features=32, link="exp", dtype=dtype)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8, decay=0.8, dtype=dtype), observation)
    plr.initialise_from_data(model, y)
    weight = observation.readout.weight.detach()
    basis = torch.linalg.qr(loadings).Q
    assert (weight[:30] - basis @ (basis.mT @ weight[:30])).norm() < 0.15 * weight[:30].norm()
    assert weight[:30].norm().item() == pytest.approx(loadings.norm().item(), rel=0.1)
    assert weight[30:].abs().max() < 0.1
    torch.testing.assert_close(model.dynamics.noise_covariance, (1 - 0.8**2) * torch.eye(2, dtype=dtype))


def test_starts_that_cannot_be_made() -> None:
    model, _ = pair()
    flat = torch.randn(2, 10, 1).expand(2, 10, 3) + torch.zeros(2, 10, 3)
    with pytest.raises(ValueError, match="has 1 principal components, too few to start 2 latents"):
        plr.initialise_from_data(model, flat)
    rates = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=3),
        plr.GaussianObservation(readout=plr.UnitReadout(units=3, source="rates")),
    )
    before = state(rates)
    with pytest.raises(TypeError, match="Only a readout of latents, or of currents"):
        plr.initialise_from_data(rates, recording())
    assert_same_state(rates, before)
    with pytest.raises(ValueError, match="must have 3 features"):
        plr.initialise_from_data(model, torch.zeros(2, 10, 4))


def test_a_folded_model_is_the_same_model_of_the_recording_itself(dtype: torch.dtype) -> None:
    observation = plr.GaussianObservation(rank=2, features=3, inputs=1, noise_scale=0.4, dtype=dtype)
    model = plr.StateSpaceModel(pair(dtype, inputs=1)[0].dynamics, observation)
    y = 4.0 + torch.tensor([0.1, 3.0, 50.0], dtype=dtype) * recording(dtype)
    y[1, 5:] = NAN
    y[0, 3, 2] = NAN
    u = torch.randn(5, 12, 1, dtype=dtype)
    standardisation = Standardisation.of(y)
    losses = []
    for data in (standardisation.apply(y), y):
        torch.manual_seed(6)
        with torch.no_grad():
            losses.append(plr.SMC_ELBO(16).loss(model, plr.OptimalGuide(model), data, u))
        if data is not y:
            standardisation.fold_into(model.observation)
    bins = 4 * 12 + 5
    # -log p(y) = -log p(y') + sum of log s
    expected = losses[0] + bins * standardisation.log_scale(y)
    assert losses[1] == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-9)


def test_standardised_features_have_mean_0_and_variance_1() -> None:
    y = 40.0 + torch.tensor([0.01, 3.0, 500.0]) * torch.randn(3, 50, 3, dtype=torch.float64)
    y[0, 10:] = NAN
    y = torch.cat([y, torch.full((3, 50, 1), 7.0), torch.full((3, 50, 1), NAN)], -1)
    standardised = Standardisation.of(y).apply(y)
    torch.testing.assert_close(standardised.nanmean((0, 1))[:3], torch.zeros(3, dtype=y.dtype), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(standardised.square().nanmean((0, 1))[:3], torch.ones(3, dtype=y.dtype))
    assert (standardised[..., 3] == 0).all(), "a feature that never changes is not blown up"
    assert torch.equal(standardised.isnan(), y.isnan())
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=2), plr.PoissonObservation(rank=1, features=5))
    with pytest.raises(TypeError, match="Only a GaussianObservation with an affine readout and diagonal noise"):
        Standardisation.of(y).fold_into(model.observation)


def test_the_teacher_goes_round_in_circles_with_the_papers_noise() -> None:
    teacher = oscillator_teacher()
    z = teacher.simulate(num_trials=400, num_steps=75).z
    radius = z[:, 30:].norm(dim=-1)
    assert 1.8 < radius.median() < 2.1
    angle = torch.atan2(z[..., 1], z[..., 0])
    turn = torch.remainder(angle[:, 31:] - angle[:, 30:-1] + torch.pi, 2 * torch.pi) - torch.pi
    assert (2 * torch.pi / turn.mean()).item() == pytest.approx(30.0, rel=0.1)
    torch.testing.assert_close(teacher.dynamics.noise_covariance, 0.04 * torch.eye(2))
    torch.testing.assert_close(teacher.observation.noise_variance, torch.full((20,), 0.01))
    assert {n: tuple(v.shape) for n, v in state(teacher).items()} == {
        n: tuple(v.shape) for n, v in state(oscillator_student()).items()
    }


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "negative-binomial", "bernoulli"])
def test_the_yardstick_is_the_log_density_of_independent_features(likelihood: str) -> None:
    rate = torch.tensor([0.2, 0.6])
    draws = {
        "gaussian": lambda shape: torch.randn(shape) * torch.tensor([1.0, 5.0]),
        "poisson": lambda shape: torch.poisson(rate.expand(shape)),
        "negative-binomial": lambda shape: torch.poisson(3 * torch.randn(shape).square() * rate),
        "bernoulli": lambda shape: torch.bernoulli(rate.expand(shape)),
    }[likelihood]
    train, held_out = draws((4, 500, 2)), draws((3, 20, 2))
    held_out[0, 5:] = NAN
    held_out[1, 3, 0] = NAN
    flat = train.flatten(0, 1).numpy()
    mean, variance = flat.mean(0), flat.var(0)
    size = mean**2 / (variance - mean) if likelihood == "negative-binomial" else None
    log_prob = {
        "gaussian": lambda y: stats.norm.logpdf(y, mean, variance**0.5),
        "poisson": lambda y: stats.poisson.logpmf(y, mean),
        "negative-binomial": lambda y: stats.nbinom.logpmf(y, size, size / (size + mean)),
        "bernoulli": lambda y: stats.bernoulli.logpmf(y, mean),
    }[likelihood]
    expected = torch.tensor(log_prob(held_out.nan_to_num().numpy()))[~held_out.isnan()].sum() / (5 + 20 + 20)
    found = without_dynamics(OBSERVATIONS[likelihood](rank=1, features=2), train, held_out)
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_the_yardstick_of_parts_and_sessions_is_the_sum_of_theirs() -> None:
    parts = {"counts": plr.PoissonObservation(rank=1, features=2), "field": plr.GaussianObservation(rank=1, features=3)}
    counts, field = torch.poisson(torch.ones(6, 50, 2)), torch.randn(6, 50, 3)
    joint = plr.JointObservation(parts)
    y = joint.join({"counts": counts, "field": field})
    alone = [without_dynamics(part, x[:4], x[4:]) for part, x in zip(parts.values(), (counts, field), strict=True)]
    assert without_dynamics(joint, y[:4], y[4:]) == pytest.approx(sum(alone), rel=1e-5)
    sessions = plr.MultiSession(parts)
    pooled = sessions.pool({"counts": counts, "field": field}).y
    # As many bins of each session: the mean of both.
    train, held_out = pooled[[0, 1, 2, 3, 6, 7, 8, 9]], pooled[[4, 5, 10, 11]]
    assert without_dynamics(sessions, train, held_out) == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_a_fit_tells_what_its_held_out_data_are_worth_without_dynamics() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=2))
    y = torch.randn(6, 30, 2)
    guide = plr.OptimalGuide(model)
    options: Any = {"num_steps": 1, "progress": False, "elbo": plr.SMC_ELBO(4, backend="plain")}
    result = plr.fit(model, guide, y[:4], held_out=y[4:], **options)
    assert result.without_dynamics == pytest.approx(without_dynamics(model.observation, y[:4], y[4:]))
    assert plr.fit(model, guide, y[:4], **options).without_dynamics is None


def test_heavy_tailed_noise_starts_at_the_variance_of_the_residual(dtype: torch.dtype) -> None:
    y, _ = factors(dtype)
    found = {}
    for kind in (plr.GaussianObservation, plr.StudentTObservation):
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8, dtype=dtype), kind(rank=2, features=6, dtype=dtype))
        plr.initialise_from_data(model, y)
        found[kind.__name__] = model.observation.noise_variance.detach()
    torch.testing.assert_close(found["StudentTObservation"], found["GaussianObservation"], rtol=1e-4, atol=0)
