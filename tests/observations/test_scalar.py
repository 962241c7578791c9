"""Likelihoods of one function: a built-in one written again, and ones of a user's own."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import pyro_lowrank as plr
from pyro_lowrank.observations.density import ScalarDensity
from pyro_lowrank.observations.family import ScalarDistribution, ScalarFamily
from tests.builders import assert_close, network, shaken, sites


class Rewritten(plr.ScalarObservation):
    """Poisson counts at rates softplus(eta)."""

    support = constraints.nonnegative_integer

    def log_density(y: Any, eta: Any) -> Any:
        rate = math.log1p(math.exp(eta))
        return y * math.log(rate) - rate - math.lgamma(y + 1)

    def information(y: Any, eta: Any) -> Any:
        rate, slope = math.log1p(math.exp(eta)), 1 / (1 + math.exp(-eta))
        return slope * slope / rate

    def aim(y: Any) -> Any:
        target = max(y, 0.5)
        return target + math.log(-math.expm1(-target))


class Inflated(plr.ScalarObservation):
    """Counts that are zero with probability `gate`, else Poisson."""

    support = constraints.nonnegative_integer
    gate = plr.FeatureParameter(0.3, constraints.unit_interval)

    def log_density(y: Any, eta: Any, gate: Any) -> Any:
        rate = math.log1p(math.exp(eta))
        if y == 0:
            return math.log(gate + (1 - gate) * math.exp(-rate))
        return math.log(1 - gate) + y * math.log(rate) - rate - math.lgamma(y + 1)


class LaplaceNoise(plr.ScalarObservation):
    width = plr.FeatureParameter(0.5, constraints.positive, shared=True)

    def log_density(y: Any, eta: Any, width: Any) -> Any:
        return -abs(y - eta) / width - math.log(2 * width)


class GammaRates(plr.ScalarObservation):
    """Numbers above zero of mean exp(eta)."""

    support = constraints.positive
    shape = plr.FeatureParameter(3.0, constraints.positive)

    def log_density(y: Any, eta: Any, shape: Any) -> Any:
        rate = shape * math.exp(-eta)
        return shape * math.log(rate) + (shape - 1) * math.log(y) - rate * y - math.lgamma(shape)


class Shares(plr.ScalarObservation):
    """Beta distributed shares of mean sigmoid(eta)."""

    support = constraints.unit_interval
    concentration = plr.FeatureParameter(30.0, constraints.positive)

    def log_density(y: Any, eta: Any, concentration: Any) -> Any:
        mean = 1 / (1 + math.exp(-eta))
        a, b = mean * concentration, (1 - mean) * concentration
        constant = math.lgamma(concentration) - math.lgamma(a) - math.lgamma(b)
        return constant + (a - 1) * math.log(y) + (b - 1) * math.log(1 - y)


def reference(observation: Any, z: Tensor) -> Any:
    """The same distribution by torch."""
    eta = observation.readout.bind(None)(z)
    return {
        Rewritten: lambda: dist.Poisson(torch.nn.functional.softplus(eta)),
        Inflated: lambda: dist.ZeroInflatedPoisson(torch.nn.functional.softplus(eta), gate=observation.gate),
        LaplaceNoise: lambda: dist.Laplace(eta, observation.width),
        GammaRates: lambda: dist.Gamma(observation.shape, observation.shape * torch.exp(-eta)),
        Shares: lambda: dist.Beta(
            eta.sigmoid() * observation.concentration, (-eta).sigmoid() * observation.concentration
        ),
    }[type(observation)]()


KINDS = [Rewritten, Inflated, LaplaceNoise, GammaRates, Shares]
every_kind = pytest.mark.parametrize("kind", KINDS)
# Moments and draws of these are sums over many numbers.
LONG = {GammaRates, Shares}


def made(kind: Any, dtype: torch.dtype = torch.float64) -> Any:
    return shaken(kind(rank=2, features=5, dtype=dtype), 0.2)


@every_kind
def test_densities_and_gradients_are_those_of_torch(kind: Any) -> None:
    observation, z = made(kind), torch.randn(7, 2, dtype=torch.float64)
    expected = reference(observation, z)
    y = expected.sample()
    found = observation.distribution(z).log_prob(y)
    assert_close(found, expected.log_prob(y).sum(-1))
    weights = list(observation.parameters())
    gradients = (torch.autograd.grad(each.sum(), weights, allow_unused=True) for each in (found, expected.log_prob(y)))
    for own, theirs in zip(*gradients, strict=True):
        assert_close(own, theirs, factor=20)


@every_kind
def test_score_and_information_are_the_derivatives_of_the_density(kind: Any) -> None:
    observation = made(kind)
    z = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    y = observation.distribution(z).sample()
    emission = observation.bind(None)
    eta = emission.readout(z)
    log_prob = ScalarDistribution(emission.family, eta, emission.parameters).log_prob(y)
    (score,) = torch.autograd.grad(log_prob.sum(), eta, create_graph=True)
    bend = torch.zeros_like(score)
    if score.requires_grad:
        (bend,) = torch.autograd.grad(score.sum(), eta, materialize_grads=True)
    found = emission.curvature(z, None, y)
    assert_close(found.score.detach(), score.detach(), factor=20)
    if kind.information is None:
        assert_close(found.information.detach(), (-bend).clamp(min=0).detach(), factor=20)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in LONG else k for k in KINDS])
def test_moments_and_draws_by_inverse_transform_are_those_of_torch(kind: Any) -> None:
    observation, z = made(kind), torch.randn(3, 2, dtype=torch.float64)
    found, expected = observation.distribution(z), reference(observation, z)
    # A density with an edge, or with mass next to 0 or 1, is summed up to a few parts in a thousand.
    rough = kind in (LaplaceNoise, Shares)
    torch.testing.assert_close(found.mean, expected.mean, rtol=2e-3 if rough else 1e-6, atol=1e-9)
    torch.testing.assert_close(found.variance, expected.variance, rtol=2e-3 if rough else 1e-6, atol=1e-9)
    draws = found.sample((4000,))
    assert found.support.check(draws).all()
    error = (draws.mean(0) - expected.mean).abs() / (expected.variance / 4000).sqrt()
    assert error.max() < 5
    assert ((draws.var(0) / expected.variance - 1).abs() < 0.3).all()


@every_kind
def test_its_fit_starts_at_the_data_and_moves_every_parameter(kind: Any) -> None:
    torch.manual_seed(1)
    truth = plr.StateSpaceModel(network(torch.float32), kind(rank=2, features=5))
    with torch.no_grad():
        truth.observation.readout.bias += 0.7
    y = truth.simulate(num_trials=10, num_steps=8).y
    model = plr.StateSpaceModel(network(torch.float32), kind(rank=2, features=5))
    plr.initialise_from_data(model, y)
    assert_close(model.observation.mean(torch.zeros(1, 2))[0], y.mean((0, 1)).double(), factor=1e4)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    elbo = plr.SMC_ELBO(8, backend="plain")
    result = plr.fit(model, plr.LaplaceGuide(model), y, num_steps=3, elbo=elbo, progress=False)
    assert len(result.evidence) == 3
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@every_kind
def test_it_is_saved_and_read_with_its_class(kind: Any, tmp_path: Any) -> None:
    model = plr.StateSpaceModel(network(torch.float32), made(kind, torch.float32))
    plr.save(tmp_path / "model.safetensors", model, plr.LaplaceGuide(model))
    with pytest.raises(ValueError, match=rf"unknown class '{kind.__name__}'.*load\(path, classes=\[\.\.\.\]\)"):
        plr.load(tmp_path / "model.safetensors")
    again, guide = plr.load(tmp_path / "model.safetensors", classes=KINDS)
    assert isinstance(guide, plr.LaplaceGuide)
    z = torch.randn(4, 2)
    assert torch.equal(again.observation.readout.bind(None)(z), model.observation.readout.bind(None)(z))
    for own, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_posteriors_are_pickled_copied_and_exported() -> None:
    model = plr.StateSpaceModel(network(torch.float32), made(Inflated, torch.float32))
    y = model.simulate(num_trials=2, num_steps=6).y
    posterior = plr.SMCFilter(model, plr.LaplaceGuide(model), 20).run(y)
    for again in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):  # noqa: S301 (own bytes)
        assert again.forecast(2).y.shape[-1] == 5
    exported: Any = plr.to_arviz(posterior, chains=2, draws=4)
    assert exported.posterior_predictive["y"].shape[-1] == 5
    assert exported.posterior["mean"].shape == exported.posterior_predictive["y"].shape


def test_missing_entries_are_left_out() -> None:
    model = plr.StateSpaceModel(network(torch.float64), made(Inflated))
    y = model.simulate(num_trials=2, num_steps=6).y.clone()
    y[0, 2, 1] = y[1, 3] = torch.nan
    found = sites(model, y, None)
    emission = model.bind().emission
    eta = emission.readout(found["z"]["value"])
    entries = ScalarDistribution(emission.family, eta, emission.parameters).log_prob(y.nan_to_num())
    assert_close(found["y"]["log_prob"], entries.masked_fill(y.isnan(), 0.0).sum((1, 2)), factor=5)


def test_gradients_of_a_branch_that_is_not_taken_stay_out() -> None:
    def log_density(y: Any, x: Any) -> Any:
        return math.log(x) if x > 1 else -x

    density = ScalarDensity.of(log_density, ())
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    density.log_prob(torch.zeros(3), x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-1.0, -1.0, 1 / 3]))


def test_second_derivatives_and_forward_ones_go_through() -> None:
    density = Inflated(rank=1, features=1).family().density
    y, gate = torch.tensor([0.0, 3.0], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = torch.tensor([0.4, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: density.log_prob(y, x, gate), x)
    _, tangent = torch.func.jvp(lambda x: density.log_prob(y, x, gate), (x.detach(),), (torch.ones_like(x),))
    (slope,) = torch.autograd.grad(density.log_prob(y, x, gate).sum(), x)
    assert_close(tangent, slope)


class Undeclared(plr.ScalarObservation):
    def log_density(y: Any, eta: Any, width: Any) -> Any:
        return -abs(y - eta) / width


class Unused(plr.ScalarObservation):
    width = plr.FeatureParameter(0.5)

    def log_density(y: Any, eta: Any) -> Any:
        return -abs(y - eta)


class NoNumber(plr.ScalarObservation):
    def log_density(y: Any, eta: Any) -> Any:
        return math.log(eta - 1)


class Strange(plr.ScalarObservation):
    support = constraints.simplex

    def log_density(y: Any, eta: Any) -> Any:
        return -abs(y - eta)


def test_what_is_no_density_is_refused_with_its_place() -> None:
    options: dict[str, Any] = {"rank": 2, "features": 3}
    with pytest.raises(ValueError, match="Unused declares width, but `log_density` takes none beside y and eta"):
        Unused(**options)
    with pytest.raises(ValueError, match=r"NoNumber.log_density` \(.*test_scalar.py, line \d+\) must return the log"):
        NoNumber(**options)
    with pytest.raises(ValueError, match=r"`Strange.support` must be one of Real\(\)"):
        Strange(**options)
    with pytest.raises(ValueError, match=r"Undeclared.log_density` .* takes width: declare it in the class"):
        plr.StateSpaceModel(network(torch.float32), Undeclared(**options)).bind()
    with pytest.raises(TypeError, match=r"Nothing must define `log_density\(y, eta, ...\)`"):
        type("Nothing", (plr.ScalarObservation,), {})(**options)
    with pytest.raises(ValueError, match=r"GammaRates takes numbers above zero: `y` holds 1 other values"):
        made(GammaRates).check_data(torch.tensor([[[1.0, 2.0, 3.0, 4.0, -1.0]]]))


def test_parameters_may_be_set_by_the_class_itself() -> None:
    class Own(plr.ScalarObservation):
        def __init__(self, features: int) -> None:
            super().__init__(rank=2, features=features)
            self.width = torch.full((features,), 0.5)

        def log_density(y: Any, eta: Any, width: Any) -> Any:
            return -abs(y - eta) / width - math.log(2 * width)

    observation, z = Own(4), torch.randn(3, 2)
    y = torch.randn(3, 4)
    expected = dist.Laplace(observation.readout.bind(None)(z), 0.5).log_prob(y).sum(-1)
    assert_close(observation.distribution(z).log_prob(y), expected.detach().double())


class Awkward(plr.ScalarObservation):
    """Parameters may be called as functions, and as steps of the computation."""

    exp = plr.FeatureParameter(0.5, constraints.positive)
    t0 = plr.FeatureParameter(0.1)
    like = plr.FeatureParameter(0.2, shared=True)

    def log_density(y: Any, eta: Any, exp: Any, t0: Any, like: Any) -> Any:
        return -math.exp(-exp) * (y - eta - t0 * like) ** 2


def test_parameters_may_have_any_name() -> None:
    observation = Awkward(rank=2, features=3, dtype=torch.float64)
    model = plr.StateSpaceModel(network(torch.float64), observation)
    y, z = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    error = y - observation.readout.bind(None)(z) - observation.t0 * observation.like
    expected = -(torch.exp(-observation.exp) * error**2).sum(-1)
    assert_close(observation.distribution(z).log_prob(y).detach(), expected.detach())
    found = []
    for backend in ("compiled", "plain"):
        torch.manual_seed(0)
        found.append(plr.SMC_ELBO(8, backend=backend).log_evidence(model, plr.LaplaceGuide(model), y).detach())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_counts_whose_mass_does_not_end_are_refused() -> None:
    family = ScalarFamily.of(
        lambda y, eta: -2 * math.log(y + 1), (), support=constraints.nonnegative_integer, origin=(lambda: family, ())
    )
    with pytest.raises(ValueError, match="add up to .*, not to 1: define `sample` and `expected`"):
        ScalarDistribution(family, torch.zeros(3), ()).sample()
