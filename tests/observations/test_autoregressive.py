"""Features that remember their own past, against dense Gaussians and an augmented Kalman filter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory, Stretches
from pyro_lowrank.observations.levinson import partials_of, partials_of_data, predictors_of
from pyro_lowrank.observations.memory import Past, observation, roll
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.training.standardise import Standardisation
from tests.builders import assert_close, shaken, sites
from tests.oracles.autoregression import augmented_increments, autocovariance, exact_increments, outlooks
from tests.oracles.linear import exact_log_evidence, linear_model


def remembering(
    dtype: torch.dtype = torch.float64, *, order: int = 3, features: int = 4, noise_factors: int = 1, **options: Any
) -> plr.StateSpaceModel:
    """Build a linear model in general position whose features remember."""
    options = {"noise": "autoregressive", "order": order, "noise_factors": noise_factors} | options
    model = linear_model(features=features, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in model.observation.autoregression.parameters():
            parameter.copy_(1.5 * torch.randn_like(parameter))
    return model


def gaps(y: Tensor) -> Tensor:
    """Leave out single entries, a feature's beginning and end, whole bins."""
    y = y.clone()
    y[0, 2, :2] = y[0, 3, 1] = y[0, :2, 3] = y[0, -1, 0] = y[1, 0] = y[1, 4:6] = torch.nan
    return y


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


def test_as_a_program_the_recording_has_the_density_of_the_filter() -> None:
    """Latents that the data do not see: then the evidence is the density of the recording."""
    model = remembering()
    with torch.no_grad():
        model.observation.readout.weight.zero_()
    for y in (model.simulate(2, 8).y, gaps(model.simulate(2, 8).y)):
        found = sites(model, y)["y"]
        assert_close(found["log_prob_sum"], plr.ExtendedKalmanFilter(model).run(y).log_evidence.sum())


def test_init_and_step_have_the_same_density_and_remember_what_they_drew() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 6).y)
    z = sites(model, y)["z"]["value"]
    whole = sites(pyro.condition(model, data={"z": z}), y)["y"]["log_prob_sum"]
    state: dict[Any, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(6):
        step = pyro.condition(model.step if t else model.init, data={"z": z[:, t]})
        total = total + sites(step, state, y[:, t])["y"]["log_prob_sum"]
    assert_close(total, whole)


def test_it_runs_in_the_filter_of_pyro() -> None:
    model = remembering()
    y = model.simulate(2, 6).y
    y[0, 2, 1] = y[1, 4, 2] = torch.nan
    filtered = pyro.infer.SMCFilter(model, plr.OptimalGuide(model), 500, max_plate_nesting=1)
    filtered.init(y[:, 0])
    for t in range(1, 6):
        filtered.step(y[:, t])
    exact_mean = plr.ExtendedKalmanFilter(model).run(y).filtered_mean[:, -1]
    mean = filtered.get_empirical()["z"].mean
    assert ((mean - exact_mean).abs() < 0.3).all()


def test_online_it_remembers_the_last_bins_and_goes_on_from_a_saved_state() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 8).y)
    exact = exact_increments(model, y).sum(0)
    guide = plr.OptimalGuide(model)
    smc = plr.SMCFilter(model, guide, 3000, lag=3)
    smc.init(y[:, 0])
    for t in range(1, 5):
        smc.step(y[:, t])
    again = plr.SMCFilter(model, guide, 3000, lag=3)
    again.load_state_dict(smc.state_dict())
    for t in range(5, 8):
        again.step(y[:, t])
        smc.step(y[:, t])
    for each in (smc, again):
        assert ((each.log_evidence - exact).abs() < 0.25).all()
    whole = plr.SMCFilter(model, guide, 3000).run(y)
    last = smc.posterior()
    one, other = (posterior.forecast(3, num_draws=4000).y for posterior in (last, whole))
    assert ((one.mean(0) - other.mean(0)).abs() < 0.2 * other.std(0)).all()
    assert torch.equal(last.recording[0].nan_to_num(), y[:, -4:].nan_to_num())


def test_online_from_the_first_bin_on_it_is_the_run_over_the_whole() -> None:
    model = remembering()
    y = model.simulate(2, 3).y
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20, lag=5)
    smc.init(y[:, 0])
    smc = copy.deepcopy(smc)
    smc.step(y[:, 1])
    smc.step(y[:, 2])
    posterior = smc.posterior()
    z = posterior.smooth(3)
    whole = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(y)
    assert_close(posterior.predict(z), whole.predict(z))
    assert posterior.forecast(2).y.shape == (100, 2, 2, 4)


@pytest.mark.parametrize("with_gaps", [False, True])
def test_forecasts_go_on_from_the_last_bins(with_gaps: bool) -> None:
    """Mean and variance of the next bin are those of the exact filter, as is the mean of the bin after it."""
    model = remembering()
    y = model.simulate(2, 8).y
    if with_gaps:
        y[0, -1, :2] = y[0, -3, 3] = torch.nan
    further = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
    forecast = plr.ExtendedKalmanFilter(model).run(y).forecast(2, num_draws=20_000)
    with torch.no_grad():
        mean, scale = (each[:, -1] for each in outlooks(model, further))
        predicted = plr.ExtendedKalmanFilter(model).run(torch.cat([y, y[:, :1] * torch.nan], 1))
        o = model.observation
        latents = predicted.predicted_mean[:, -1] @ o.readout.weight.mT
        spread = o.readout.weight @ predicted.predicted_covariance[:, -1] @ o.readout.weight.mT + o.noise_covariance
        expected = o.readout.bias + mean + scale * latents
        deviation = scale * spread.diagonal(dim1=-2, dim2=-1).sqrt()
    error = deviation / 20_000**0.5
    assert ((forecast.y[:, :, 0].mean(0) - expected).abs() < 5 * error).all()
    torch.testing.assert_close(forecast.y[:, :, 0].std(0), deviation, rtol=0.05, atol=0)
    assert ((forecast.y.mean(0) - forecast.mean.mean(0)).abs() < 5 * forecast.y.std(0) / 20_000**0.5).all()


def test_simulations_begin_at_the_stationary_law() -> None:
    model = remembering(noise_factors=0, order=2)
    with torch.no_grad():
        model.observation.readout.weight.zero_()
    y = model.simulate(40_000, 5).y
    o = model.observation
    with torch.no_grad():
        for i in range(4):
            expected = o.noise_variance[i] * autocovariance(o.autoregression.coefficients[i], 5)
            # The standard error of a covariance is at most 0.7 % of the variance.
            torch.testing.assert_close(y[:, :, i].mT.cov(), expected, rtol=0, atol=0.035 * float(expected[0, 0]))


def test_innovations_and_observations_are_inverse_maps(dtype: torch.dtype) -> None:
    model = remembering(dtype)
    y = model.simulate(2, 8).y
    memory = model.bind().memory
    assert memory is not None
    past = Past.of(memory, Observed.of(y))
    x = past.innovations.y
    assert_close(roll(memory, x), y, factor=50)
    assert_close(observation(memory.center, past.outlook, x), y, factor=50)


def test_expected_observations_are_those_given_the_own_past() -> None:
    model = remembering()
    y = gaps(model.simulate(2, 8).y)
    z = torch.randn(1, 2, 8, 2, dtype=torch.float64)
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    mean, scale = outlooks(model, y)
    o = model.observation
    with torch.no_grad():
        assert_close(posterior.predict(z), o.readout.bias + mean + scale * (z[0] @ o.readout.weight.mT))
    assert torch.equal(posterior.recording[0].isnan(), y.isnan())
    assert_close(posterior.recording[0].nan_to_num(), y.nan_to_num())


def test_entries_have_the_likelihood_of_the_recording_not_of_innovations() -> None:
    model = remembering(noise_factors=0)
    y = gaps(model.simulate(2, 8).y)
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    z = posterior.smooth(1)
    found = posterior.entry_log_likelihood(z)
    conditioned = sites(pyro.condition(model, data={"z": z[0]}), y)["y"]
    assert_close(found.nansum(), conditioned["log_prob_sum"])


def test_one_step_predictions_are_calibrated() -> None:
    model = remembering()
    y = model.simulate(20, 100).y
    pit = plr.SMCFilter(model, plr.OptimalGuide(model), 300).run(y).prequential_pit()
    assert abs(float(pit.mean()) - 0.5) < 0.02
    assert abs(float(pit.std()) - 12**-0.5) < 0.01


def test_replicates_follow_the_paths() -> None:
    model = remembering()
    y = model.simulate(2, 6).y
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(y)
    z = posterior.smooth(1).expand(20_000, -1, -1, -1)
    mean, draws = posterior.replicate(z)
    assert mean is not None
    assert ((draws.mean(0) - mean[0]).abs() < 5 * draws.std(0) / 20_000**0.5).all()


def test_what_the_data_settle_at() -> None:
    model = remembering()
    z = torch.randn(2, dtype=torch.float64)
    memory = model.bind().memory
    assert memory is not None
    with torch.no_grad():
        settled = model.observation.settled(z)
        long = roll(memory, model.observation.mean(z).expand(1, 3000, 4))
    torch.testing.assert_close(long[0, -1], settled, rtol=1e-4, atol=1e-4)


def test_files_hold_it(tmp_path: Path) -> None:
    model = remembering(torch.float32)
    plr.save(tmp_path / "model.safetensors", model, plr.OptimalGuide(model))
    again, _ = plr.load(tmp_path / "model.safetensors")
    assert torch.equal(again.observation.autoregression.coefficients, model.observation.autoregression.coefficients)
    y = model.simulate(2, 6).y
    one, other = (plr.ExtendedKalmanFilter(each).run(y).log_evidence for each in (model, again))
    assert torch.equal(one, other)


def test_other_units_are_the_same_model() -> None:
    model = remembering()
    y = model.simulate(2, 8).y
    before = plr.ExtendedKalmanFilter(model).run(y).log_evidence
    units = Standardisation(torch.tensor([1.0, -2.0, 0.0, 3.0]).double(), torch.tensor([1.0, 2.0, 0.5, 10.0]).double())
    units.fold_into(model.observation)
    after = plr.ExtendedKalmanFilter(model).run(y * units.scale + units.mean).log_evidence
    assert_close(after, before - 8 * units.scale.log().sum())


def test_beside_counts_that_remember_nothing() -> None:
    """Counts stay counts, and the part that remembers has the evidence that it has alone."""
    eeg = plr.GaussianObservation(rank=2, features=3, noise="autoregressive", order=2, dtype=torch.float64)
    counts = plr.PoissonObservation(rank=2, features=2, dtype=torch.float64)
    joint = plr.JointObservation({"spikes": counts, "eeg": shaken(eeg)})
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6, dtype=torch.float64), joint)
    y = model.simulate(2, 6).y
    assert torch.equal(y[..., :2], y[..., :2].round())
    memory = model.bind().memory
    assert memory is not None
    assert torch.equal(Past.of(memory, Observed.of(y)).innovations.y[..., :2], y[..., :2])
    alone = plr.StateSpaceModel(model.dynamics, eeg)
    z = sites(alone, y[..., 2:])["z"]["value"]
    data = {"z": z}
    together = sites(pyro.condition(model, data=data), y)["y"]["log_prob_sum"]
    of_counts = counts.distribution(z.movedim(1, 0)).log_prob(y[..., :2].movedim(1, 0)).sum()
    of_eeg = sites(pyro.condition(alone, data=data), y[..., 2:])["y"]["log_prob_sum"]
    assert_close(together, of_counts + of_eeg)


def test_with_outliers() -> None:
    observation = plr.StudentTObservation(
        rank=2, features=3, noise="autoregressive", order=2, freedom=5.0, dtype=torch.float64
    )
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6, dtype=torch.float64), shaken(observation))
    y = model.simulate(2, 6).y
    z = sites(model, y)["z"]["value"]
    found = sites(pyro.condition(model, data={"z": z}), y)["y"]["log_prob_sum"]
    with torch.no_grad():
        mean, scale = outlooks(model, y)
        location = observation.readout.bias + mean + scale * (z @ observation.readout.weight.mT)
        expected = torch.distributions.StudentT(observation.freedom, location, scale * observation.noise_scale)
        assert_close(found, expected.log_prob(y).sum())
    compiled, plain = [], []
    for backend, kept in (("compiled", compiled), ("plain", plain)):
        torch.manual_seed(1)
        kept.append(plr.SMCFilter(model, plr.LaplaceGuide(model), 20, backend=backend).run(y).log_evidence)
    assert_close(compiled[0], plain[0], factor=50)


def test_burg_finds_the_coefficients_past_gaps() -> None:
    memory = AutoregressiveMemory(torch.zeros(2).double(), torch.tensor([[0.9, -0.5], [0.3, 0.2]]).double())
    y = roll(memory, torch.randn(4, 10_000, 2, dtype=torch.float64))
    missing = torch.rand(4, 10_000, 1) < 0.05
    found = partials_of_data(y.masked_fill(missing, 0.0), missing.expand(y.shape), 2)
    torch.testing.assert_close(found, memory.partial, rtol=0, atol=0.03)


def test_a_start_at_the_data_finds_memory_and_readout() -> None:
    torch.manual_seed(5)
    truth = remembering(torch.float32, order=2, features=8, noise_scale=0.3)
    y = truth.simulate(10, 2000).y
    observation = plr.GaussianObservation(rank=2, features=8, noise="autoregressive", order=2, noise_factors=1)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20), observation)
    white = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20), plr.GaussianObservation(rank=2, features=8))
    plr.initialise_from_data(model, y)
    plr.initialise_from_data(white, y)
    found, below = (plr.ExtendedKalmanFilter(each).run(y).log_evidence.mean() / 2000 for each in (model, white))
    exact = plr.ExtendedKalmanFilter(truth).run(y).log_evidence.mean() / 2000
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
