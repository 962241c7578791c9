"""Smoothing against the exact moments of linear-Gaussian models: means, variances and lag-1 covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import kalman_filter, linear_model, linear_system
from tests.smc.test_effects import Delegate, GlobalAndLocal, GlobalAndLocalGuide

METHODS = ["backward", "mcmc"]


@dataclass(frozen=True)
class Smoothed:
    """Exact means `trials x time x rank`, covariances, and those of z_t with z_{t+1}, of one time bin less."""

    mean: Tensor
    covariance: Tensor
    lagged: Tensor


@torch.no_grad()
def rts_smoother(model: plr.StateSpaceModel, y: Tensor, u: Tensor | None = None) -> Smoothed:
    """Rauch, Tung and Striebel's smoother, textbook formulas."""
    s, filtered = linear_system(model, y.shape[1], u), kalman_filter(model, y, u)
    offsets = s.transition_offset.expand(y.shape[0], -1, -1)
    means, covariances, lagged = [filtered.mean[:, -1]], [filtered.covariance[:, -1]], []
    for t in reversed(range(y.shape[1] - 1)):
        mean, covariance = filtered.mean[:, t], filtered.covariance[:, t]
        predicted = s.transition @ covariance @ s.transition.mT + s.noise
        gain = covariance @ s.transition.mT @ torch.linalg.inv(predicted)
        surprise = means[-1] - mean @ s.transition.mT - offsets[:, t + 1]
        lagged.append(gain @ covariances[-1])
        means.append(mean + (gain @ surprise.unsqueeze(-1)).squeeze(-1))
        covariances.append(covariance + gain @ (covariances[-1] - predicted) @ gain.mT)
    return Smoothed(*(torch.stack(x[::-1], 1) for x in (means, covariances, lagged)))


def errors(z: Tensor, exact: Smoothed) -> tuple[float, float, float]:
    """Return the error of the mean in posterior SDs, the ratios of variances and of lag-1 covariances.

    Each is pooled over trials, bins and latents, the error as a root mean square: single entries would measure the
    Monte Carlo noise of 1,000 particles. Covariances are pooled by regression on the exact ones.
    """
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    mean = z.mean(0)
    deviation = z - mean
    lagged = torch.einsum("dbti,dbtj->btij", deviation[:, :, :-1], deviation[:, :, 1:]) / (len(z) - 1)
    error = ((mean - exact.mean).square() / variance).mean().sqrt()
    ratio = (z.var(0) / variance).mean()
    return error.item(), ratio.item(), ((lagged * exact.lagged).sum() / exact.lagged.square().sum()).item()


def case(dtype: torch.dtype = torch.float64, inputs: int = 0) -> tuple[Any, Tensor, Tensor | None]:
    model = linear_model(dtype=dtype, inputs=inputs, noise_scale=1.0)
    u = torch.randn(4, 25, inputs, dtype=dtype) if inputs else None
    y = model.simulate(4, 25, u).y
    y[1, 5:8] = torch.nan
    return model, y, u


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("inputs", "dtype"), [(0, torch.float32), (1, torch.float64)])
def test_paths_match_the_exact_smoother(method: str, inputs: int, dtype: torch.dtype) -> None:
    model, y, u = case(dtype, inputs)
    # Six independent filters of 1,000 particles: the error of the mean of one alone is about 0.05 by chance.
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 1000)
    z = smc.run(y.repeat(6, 1, 1), None if u is None else u.repeat(6, 1, 1)).smooth(300, method=method)
    assert z.shape == (300, 24, 25, 2)
    assert z.dtype == dtype
    error, variance, lagged = errors(z.unflatten(1, (6, 4)).flatten(0, 1), rts_smoother(model, y, u))
    assert error < 0.05
    assert 0.97 < variance < 1.03
    assert 0.97 < lagged < 1.03


def test_pairing_particles_with_paths_fails_this_test() -> None:
    """Drawing each time bin by itself has the right marginals and no lag-1 covariance."""
    model, y, _ = case()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 1000).run(y)
    weights = posterior.smoothed().log_weights.exp()
    index = torch.stack([torch.multinomial(w.mT, 2000, replacement=True).mT for w in weights], -1)
    z = posterior.particles["z"].gather(0, index.unsqueeze(-1).expand(-1, -1, -1, 2))
    _, variance, lagged = errors(z, rts_smoother(model, y))
    assert 0.97 < variance < 1.03
    assert abs(lagged) < 0.2


def test_marginal_moments_match_the_exact_smoother() -> None:
    model, y, _ = case()
    exact = rts_smoother(model, y)
    filtered = plr.SMCFilter(model, plr.OptimalGuide(model), 1000).run(y)
    smoothed = filtered.smoothed()
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    assert ((smoothed.mean() - exact.mean).square() / variance).mean().sqrt() < 0.08
    assert 0.97 < (smoothed.variance() / variance).mean() < 1.03
    # The filtering moments are others: this could fail.
    assert ((filtered.mean() - exact.mean).square() / variance).mean().sqrt() > 0.2


def test_the_genealogy_is_the_filters_own() -> None:
    model, y, _ = case()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 20, ess_threshold=1.0).run(y)
    z = posterior.smooth(200, method="genealogy")
    particles = posterior.particles["z"]
    assert (z[:, 0, 0, None] == particles[None, :, 0, 0]).all(-1).any(-1).all()
    assert len(z[:, 0, 0].unique(dim=0)) < len(posterior.smooth(200)[:, 0, 0].unique(dim=0))


@pytest.mark.parametrize("method", METHODS)
def test_user_written_models_are_smoothed(method: str) -> None:
    model, y, u = case(inputs=1)
    own = plr.SMCFilter(Delegate(model), Delegate(plr.OptimalGuide(model)), 200)
    assert u is not None
    z = own.run(y.repeat(6, 1, 1), u.repeat(6, 1, 1)).smooth(200, method=method)
    error, variance, lagged = errors(z.unflatten(1, (6, 4)).flatten(0, 1), rts_smoother(model, y, u))
    assert error < 0.1
    assert 0.95 < variance < 1.05
    assert 0.95 < lagged < 1.05


def test_replayed_and_built_in_transitions_weigh_the_same() -> None:
    model, y, u = case(inputs=1)
    assert u is not None
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 30, backend="plain").run(y, u)
    delegated = plr.SMCFilter(Delegate(model), Delegate(plr.OptimalGuide(model)), 30).run(y, u)
    before, after = ({"z": posterior.particles["z"][:7, :, t]} for t in (3, 4))
    assert posterior.transitions is not None
    assert delegated.transitions is not None
    inputs = {"input": u[:, 3].expand(7, -1, -1)}
    built_in = posterior.transitions.matched(3, before, after)
    later = after | {"input": u[:, 4].expand(7, -1, -1)}
    replayed = delegated.transitions.matched(3, before | inputs, later)
    difference = replayed - built_in - model.observation.distribution(after["z"], u[:, 4]).log_prob(y[:, 4])
    torch.testing.assert_close(difference, difference[:1, :1].expand_as(difference))


class Forgetful:
    """Keeps its latent only after it was changed, so that its density cannot be replayed."""

    def init(self, state: Any, y: Tensor) -> None:
        state["z"] = pyro.sample("z", dist.Normal(0.0, 1.0)) * 1.0
        pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(0), obs=y[0])

    def step(self, state: Any, y: Tensor) -> None:
        state["z"] = pyro.sample("z", dist.Normal(state["z"], 1.0)) * 1.0
        pyro.sample("y", dist.Normal(state["z"], 1.0), obs=y[0])


class ForgetfulGuide:
    def init(self, state: Any, y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def step(self, state: Any, y: Tensor) -> None:
        pyro.sample("z", dist.Normal(state["z"], 1.0))


def test_a_density_that_cannot_be_replayed_is_named() -> None:
    posterior = plr.SMCFilter(Forgetful(), ForgetfulGuide(), 20, max_plate_nesting=0).run(torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"does not keep the latent site 'z' as it was drawn"):
        posterior.smooth(10)
    assert posterior.smooth(10, method="genealogy").shape == (10, 5)


def test_a_latent_that_the_state_does_not_keep_is_named() -> None:
    posterior = plr.SMCFilter(GlobalAndLocal(), GlobalAndLocalGuide(), 20).run(torch.randn(2, 3))
    with pytest.raises(ValueError, match="latent site 'offset'"):
        posterior.smooth(10, name="level")


def test_smoothing_is_reproducible_and_unmoved_by_training() -> None:
    model, y, _ = case()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(y)
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        draws.append(posterior.smooth(20))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
    assert torch.equal(*draws)


def test_bad_arguments_are_refused() -> None:
    model, y, _ = case()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 20).run(y)
    with pytest.raises(ValueError, match="`method` must be one of 'backward', 'mcmc', 'genealogy', got 'ffbs'"):
        posterior.smooth(10, method="ffbs")
    with pytest.raises(ValueError, match="`num_draws` must be at least 1"):
        posterior.smooth(0)
    with pytest.raises(KeyError, match="No state 'x'"):
        posterior.smooth(10, name="x")
