"""Resampling schemes: counts, unbiasedness, independence of trials."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_lowrank.smc.resampling import (
    MultinomialResampling,
    NoResampling,
    Resampler,
    StratifiedResampling,
    SystematicResampling,
)

SCHEMES = [SystematicResampling(), StratifiedResampling(), MultinomialResampling()]
IDS = [type(scheme).__name__ for scheme in SCHEMES]


def counts(scheme: Resampler, log_weights: Tensor) -> Tensor:
    """Return how many descendants each particle has, `particles x trials`."""
    random = scheme.draw(1, *log_weights.shape[:1], log_weights.shape[1:], dtype=log_weights.dtype)[0]
    ancestors = scheme.ancestors(log_weights, random)
    assert ancestors is not None
    return torch.zeros_like(log_weights).scatter_add_(0, ancestors, torch.ones_like(log_weights))


def some_weights(num_particles: int, trials: int, dtype: torch.dtype) -> Tensor:
    return (2 * torch.randn(num_particles, trials, dtype=dtype)).log_softmax(0)


@pytest.mark.parametrize(("scheme", "spread"), [(SCHEMES[0], 1), (SCHEMES[1], 2)], ids=IDS[:2])
@pytest.mark.parametrize("num_particles", [1, 2, 7, 1000])
def test_counts_lie_next_to_their_expectation(
    scheme: Resampler, spread: int, num_particles: int, dtype: torch.dtype
) -> None:
    log_weights = some_weights(num_particles, 50, dtype)
    error = (counts(scheme, log_weights) - num_particles * log_weights.exp()).abs()
    assert error.max() < spread + 1e-3 * num_particles**0.5 * (dtype == torch.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_counts_are_unbiased(scheme: Resampler) -> None:
    one = some_weights(5, 1, torch.float64)
    trials = 40_000
    found = counts(scheme, one.expand(5, trials))
    assert (found.sum(0) == 5).all()
    standard_error = found.std(1) / trials**0.5 + 1e-9
    assert ((found.mean(1) - 5 * one[:, 0].exp()).abs() < 4 * standard_error).all()


def test_multinomial_counts_have_the_multinomial_covariance() -> None:
    one = some_weights(4, 1, torch.float64)
    weights = one[:, 0].exp()
    found = counts(MultinomialResampling(), one.expand(4, 100_000))
    expected = 4 * (torch.diag(weights) - weights[:, None] * weights)
    torch.testing.assert_close(torch.cov(found), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_dead_particles_have_no_descendants(scheme: Resampler, dtype: torch.dtype) -> None:
    log_weights = torch.full((6, 1000), -torch.inf, dtype=dtype)
    log_weights[2] = torch.tensor(0.3).log()
    log_weights[4] = torch.tensor(0.7).log()
    found = counts(scheme, log_weights)
    assert found[[0, 1, 3, 5]].sum() == 0
    assert found[[2, 4]].sum() == 6 * 1000


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_a_trial_of_dead_particles_leaves_the_others_alone(scheme: Resampler) -> None:
    log_weights = some_weights(8, 3, torch.float64)
    log_weights[:, 1] = torch.nan
    random = scheme.draw(1, 8, torch.Size((3,)), dtype=torch.float64)[0]
    together = scheme.ancestors(log_weights, random)
    assert together is not None
    assert together.min() >= 0
    assert together.max() < 8
    for trial in (0, 2):
        alone = scheme.ancestors(log_weights[:, trial], random[:, trial])
        assert torch.equal(together[:, trial], alone)


def test_no_resampling_keeps_every_particle() -> None:
    assert NoResampling().ancestors(some_weights(8, 3, torch.float32), torch.empty(0, 3)) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_ancestors_given_a_particle_drawn_by_its_weight_have_the_law_of_the_scheme(scheme: Resampler) -> None:
    """The law of all ancestors, given that a particle survives, averages to the scheme's own over that particle."""
    trials, num_particles = 200_000, 4
    one = torch.tensor([[0.05], [0.5], [0.15], [0.3]], dtype=torch.float64)
    log_weights = one.log().expand(-1, trials)
    draws = [scheme.draw(1, num_particles, log_weights.shape[1:], dtype=torch.float64)[0] for _ in range(2)]
    pinned = torch.multinomial(one[:, 0], trials, replacement=True)
    found = scheme.conditional(log_weights, draws[0], pinned)
    assert found is not None
    ancestors, place = found
    assert (ancestors.gather(0, place[None])[0] == pinned).all()
    own = scheme.ancestors(log_weights, draws[1])
    assert own is not None
    digits = 4 ** torch.arange(num_particles)[:, None]
    shares = [torch.bincount((each * digits).sum(0), minlength=256).double() / trials for each in (ancestors, own)]
    error = (shares[0] - shares[1]).abs() / ((shares[0] + shares[1]) / trials + 1e-12).sqrt()
    assert error.max() < 4.5
    # Given all ancestors, any of those that the particle owns is its place.
    for k in range(num_particles):
        assert abs((place == k).double().mean() - 0.25) < 0.005


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_a_pinned_particle_that_weighs_nothing_survives(scheme: Resampler, dtype: torch.dtype) -> None:
    log_weights = torch.full((5, 300), -torch.inf, dtype=dtype)
    log_weights[1] = 0.0
    random = scheme.draw(1, 5, torch.Size((300,)), dtype=dtype)[0]
    found = scheme.conditional(log_weights, random, torch.arange(300) % 5)
    assert found is not None
    ancestors, place = found
    assert (ancestors.gather(0, place[None])[0] == torch.arange(300) % 5).all()
