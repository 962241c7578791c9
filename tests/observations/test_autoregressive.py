"""Features that remember their own past, against dense Gaussians and an augmented Kalman filter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory, Stretches
from pyro_lowrank.observations.levinson import partials_of, partials_of_data, predictors_of
from pyro_lowrank.observations.memory import roll
from pyro_lowrank.observations.observed import Observed
from tests.builders import assert_close
from tests.observations.remembering import gaps, remembering
from tests.oracles.autoregression import augmented_increments, autocovariance, exact_increments, outlooks
from tests.oracles.linear import exact_log_evidence, linear_model


def test_coefficients_are_those_of_stationary_processes_whatever_the_parameters() -> None:
    partial = torch.tanh(torch.randn(50, 8, dtype=torch.float64))
    coefficients = predictors_of(partial)[..., -1, :]
    companion = torch.cat([coefficients.unsqueeze(1), torch.eye(8, dtype=torch.float64)[:-1].expand(50, -1, -1)], 1)
    assert torch.linalg.eigvals(companion).abs().max() < 1
    torch.testing.assert_close(partials_of(coefficients), partial, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_recursion_can_be_differentiated_twice(order: int) -> None:
    partial = torch.tanh(torch.randn(3, order, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(predictors_of, (partial,))
    assert torch.autograd.gradgradcheck(predictors_of, (partial,))


@pytest.mark.parametrize("order", [1, 3, 8])
def test_the_stationary_law_is_that_of_the_lyapunov_equation(order: int) -> None:
    memory = AutoregressiveMemory(torch.zeros(3), torch.tanh(torch.randn(3, order, dtype=torch.float64)))
    for i in range(3):
        assert_close(memory.beginning(())[1][i], autocovariance(memory.predictors[i, -1], order))


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("num_steps", [2, 7])
def test_evidence_and_moments_are_those_of_the_augmented_kalman_filter(
    order: int, num_steps: int, dtype: torch.dtype
) -> None:
    model = remembering(dtype, order=order)
    y = model.simulate(2, num_steps).y
    posterior = plr.ExtendedKalmanFilter(model).run(y)
    with torch.no_grad():
        increments, mean = augmented_increments(model.double(), y.double())
    assert_close(posterior.log_evidence_increments, increments, factor=50)
    assert_close(posterior.filtered_mean, mean, factor=50)


def test_the_gradient_of_the_evidence_is_that_of_the_augmented_kalman_filter() -> None:
    model = remembering()
    y = model.simulate(2, 6).y
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(-plr.EKFEvidence().differentiable_loss(model, None, y), parameters, allow_unused=True)
    expected = torch.autograd.grad(augmented_increments(model, y)[0].sum(), parameters, allow_unused=True)
    assert "observation.autoregression.partial_autocorrelations_unconstrained" in names
    for ours, exact in zip(found, expected, strict=True):
        if exact is not None:
            torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


def test_past_gaps_each_feature_is_predicted_from_what_there_is_of_it(dtype: torch.dtype) -> None:
    model = remembering(dtype)
    y = gaps(model.simulate(2, 8).y)
    found = plr.ExtendedKalmanFilter(model).run(y).log_evidence_increments
    with torch.no_grad():
        assert_close(found, exact_increments(model.double(), y.double()), factor=50)


def test_the_gradient_past_gaps() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 8).y)
    parameters = list(model.parameters())
    found = torch.autograd.grad(-plr.EKFEvidence().differentiable_loss(model, None, y), parameters, allow_unused=True)
    expected = torch.autograd.grad(exact_increments(model, y).sum(), parameters, allow_unused=True)
    for ours, exact in zip(found, expected, strict=True):
        if exact is not None:
            torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_any_pattern_of_gaps(order: int) -> None:
    model = remembering(order=order)
    memory = model.bind().memory
    assert memory is not None
    y = model.simulate(4, 14).y
    for share in (0.05, 0.15, 0.5):
        thinned = y.masked_fill(torch.rand(y.shape) < share, torch.nan)
        thinned[0, :, 1] = thinned[1, :3] = thinned[2, 9:] = thinned[3, 5:7] = torch.nan
        there = ~thinned.isnan()
        found = memory.outlooks(Observed.of(thinned))
        for ours, expected in zip(found, outlooks(model, thinned), strict=True):
            assert_close(ours.expand(y.shape)[there], expected[there])


def test_without_latents_gaps_are_integrated_out_exactly() -> None:
    model = remembering(noise_factors=0)
    with torch.no_grad():
        model.observation.readout.weight.zero_()
    y = gaps(model.simulate(2, 8).y)
    found = plr.ExtendedKalmanFilter(model).run(y).log_evidence
    o = model.observation
    with torch.no_grad():
        for trial in range(2):
            expected = torch.zeros((), dtype=torch.float64)
            for i in range(4):
                there = ~y[trial, :, i].isnan()
                covariance = o.noise_variance[i] * autocovariance(o.autoregression.coefficients[i], 8)
                normal = torch.distributions.MultivariateNormal(
                    o.readout.bias[i].expand(int(there.sum())), covariance[there][:, there]
                )
                expected = expected + normal.log_prob(y[trial, there, i])
            assert_close(found[trial], expected)


def test_gaps_at_the_end_take_the_short_way_and_change_nothing(dtype: torch.dtype) -> None:
    model = remembering(dtype)
    y = model.simulate(3, 9).y
    y[0, 5:], y[1, 7:, 2] = torch.nan, torch.nan
    assert Stretches.of(y.isnan(), 3) is None
    alone = plr.ExtendedKalmanFilter(model).run(y[:1, :5]).log_evidence
    assert_close(plr.ExtendedKalmanFilter(model).run(y).log_evidence[:1], alone, factor=20)


@pytest.mark.parametrize("guide", [plr.OptimalGuide, plr.BootstrapGuide, plr.LaplaceGuide])
@pytest.mark.parametrize("with_gaps", [False, True])
def test_the_compiled_loop_is_the_plain_one(guide: Any, with_gaps: bool, dtype: torch.dtype) -> None:
    model = remembering(dtype, noise_factors=0)
    y = model.simulate(2, 8).y
    y = gaps(y) if with_gaps else y
    found = []
    for backend in ("compiled", "plain"):
        torch.manual_seed(1)
        found.append(plr.SMCFilter(model, guide(model), 20, backend=backend).run(y))
    compiled, plain = found
    assert_close(compiled.log_evidence_increments, plain.log_evidence_increments, factor=50)
    assert_close(compiled.particles["z"], plain.particles["z"], factor=50)


@pytest.mark.parametrize("guide", [plr.OptimalGuide, plr.BootstrapGuide])
def test_gradients_along_paths_are_those_of_the_exact_evidence(guide: Any) -> None:
    torch.manual_seed(3)
    model = remembering(noise_factors=0, order=2)
    y = gaps(model.simulate(2, 8).y)
    parameters = {n: p for n, p in model.named_parameters() if n.startswith("observation")}
    elbo = plr.SMC_ELBO(400, gradient=plr.FisherGradient(num_paths=400))
    draws = []
    for _ in range(12):
        evidence = elbo.log_evidence(model, guide(model), y).sum()
        draws.append(torch.autograd.grad(evidence, list(parameters.values())))
    expected = torch.autograd.grad(exact_increments(model, y).sum(), list(parameters.values()))
    for found, exact in zip(zip(*draws, strict=True), expected, strict=True):
        stacked = torch.stack(found)
        error = stacked.std(0) / len(draws) ** 0.5
        assert ((stacked.mean(0) - exact).abs() < 6 * error + 0.02 * exact.abs().max()).all()


def test_zero_coefficients_are_the_white_model_to_the_last_digit() -> None:
    torch.manual_seed(0)
    model = linear_model(noise="autoregressive", order=4)
    torch.manual_seed(0)
    white = linear_model()
    state = {n: p for n, p in model.state_dict().items() if "autoregression" not in n}
    white.load_state_dict(state)
    with torch.no_grad():
        for parameter in model.observation.autoregression.parameters():
            parameter.zero_()
    y = 2 * torch.randn(3, 7, 4, dtype=torch.float64)
    y[0, 2, 1] = y[1, -1] = torch.nan
    found = []
    for each in (model, white):
        torch.manual_seed(1)
        evidence = plr.SMC_ELBO(20).log_evidence(each, plr.OptimalGuide(each), y)
        gradient = torch.autograd.grad(evidence.sum(), [each.dynamics.left_unconstrained])[0]
        found.append((evidence, gradient))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-12)


def test_burg_finds_the_coefficients_past_gaps() -> None:
    memory = AutoregressiveMemory(torch.zeros(2).double(), torch.tensor([[0.9, -0.5], [0.3, 0.2]]).double())
    y = roll(memory, torch.randn(40, 1_000, 2, dtype=torch.float64))
    missing = torch.rand(40, 1_000, 1) < 0.05
    found = partials_of_data(y.masked_fill(missing, 0.0), missing.expand(y.shape), 2)
    torch.testing.assert_close(found, memory.partial, rtol=0, atol=0.03)


def test_a_start_at_the_data_finds_memory_and_readout() -> None:
    torch.manual_seed(5)
    truth = remembering(torch.float32, order=2, features=8, noise_scale=0.3)
    y = truth.simulate(10, 800).y
    observation = plr.GaussianObservation(rank=2, features=8, noise="autoregressive", order=2, noise_factors=1)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20), observation)
    white = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20), plr.GaussianObservation(rank=2, features=8))
    plr.initialise_from_data(model, y)
    plr.initialise_from_data(white, y)
    found, below = (plr.ExtendedKalmanFilter(each).run(y).log_evidence.mean() / 800 for each in (model, white))
    exact = plr.ExtendedKalmanFilter(truth).run(y).log_evidence.mean() / 800
    assert found > below + 0.5 * (exact - below)


@pytest.mark.slow
def test_the_most_likely_coefficients_are_within_three_standard_errors() -> None:
    """Memory and noise from nothing, the rest known: latents that are learnt too may remember in their stead."""
    torch.manual_seed(0)
    truth = remembering(order=2, noise_factors=0, features=6)
    y = truth.simulate(80, 60).y
    model = copy.deepcopy(truth)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("autoregression" in name or name == "observation.noise_scale_unconstrained")
    with torch.no_grad():
        for parameter in model.observation.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    found = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(found, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = plr.EKFEvidence().differentiable_loss(model, None, y)
        value.backward()
        return value

    optimiser.step(loss)  # type: ignore[arg-type]
    expected = [dict(truth.named_parameters())[n] for n, p in model.named_parameters() if p.requires_grad]
    rows = []
    for trial in y.split(1):
        scores = torch.autograd.grad(plr.EKFEvidence().differentiable_loss(model, None, trial), found)
        rows.append(torch.cat([score.flatten() for score in scores]))
    information = torch.stack(rows).mT @ torch.stack(rows)
    error = torch.linalg.inv(information).diagonal().sqrt()
    off = (torch.cat([p.flatten() for p in found]) - torch.cat([p.flatten() for p in expected])) / error
    assert off.abs().max() < 4
    assert (off.abs() < 3).double().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "autoregressive", "order": 0}, "`order` must be at least 1, got order=0"),
        ({"noise": "autoregressive", "order": 9}, "`order` must be at most 8 time bins, got order=9"),
        ({"order": 2}, "noise='diagonal' and order=2"),
        ({"noise": "pink"}, "'scalar', 'diagonal', 'autoregressive', got 'pink'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plr.GaussianObservation(rank=2, features=3, **options)


def test_coefficients_that_are_not_stationary_are_refused() -> None:
    memory = plr.GaussianObservation(rank=2, features=2, noise="autoregressive", order=2).autoregression
    assert memory is not None
    memory.set_coefficients(torch.tensor([[1.5, -0.8], [0.5, 0.3]]))
    torch.testing.assert_close(memory.coefficients, torch.tensor([[1.5, -0.8], [0.5, 0.3]]))
    with pytest.raises(ValueError, match=r"those of feature 1, \[1.5, -0.4\], are not"):
        memory.set_coefficients(torch.tensor([[0.5, 0.3], [1.5, -0.4]]))
    with pytest.raises(ValueError, match="features x order"):
        memory.set_coefficients(torch.zeros(2, 3))


def test_a_memory_longer_than_the_trials_is_refused_in_a_fit() -> None:
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=2, noise="autoregressive", order=4)
    )
    with pytest.raises(ValueError, match="`order`=4 time bins, and the longest trial has 4"):
        plr.fit(model, plr.OptimalGuide(model), torch.randn(3, 4, 2), num_steps=1, progress=False)


def test_white_features_still_have_the_exact_evidence() -> None:
    model = linear_model()
    y = 2 * torch.randn(2, 6, 4, dtype=torch.float64)
    assert_close(plr.ExtendedKalmanFilter(model).run(y).log_evidence, exact_log_evidence(model, y))
