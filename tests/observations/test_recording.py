from __future__ import annotations

import pyro.distributions as dist
import torch
from torch.distributions import biject_to

from pyro_lowrank.observations.recording import RecordingDistribution
from tests.builders import assert_close, poisson


def test_log_density_is_the_sum_over_time_bins(dtype: torch.dtype) -> None:
    loc = torch.randn(6, 5, 4, 3, dtype=dtype)
    recording = RecordingDistribution(dist.Normal(loc, 0.5).to_event(1))
    assert (recording.batch_shape, recording.event_shape) == ((5, 4), (6, 3))
    y = torch.randn(4, 6, 3, dtype=dtype)
    expected = sum(dist.Normal(loc[t], 0.5).log_prob(y[:, t]).sum(-1) for t in range(6))
    assert isinstance(expected, torch.Tensor)
    assert_close(recording.log_prob(y), expected, factor=5)
    # Dims of draws come before those of the batch.
    draws = torch.randn(2, 5, 4, 6, 3, dtype=dtype)
    assert_close(recording.log_prob(draws), torch.stack([recording.log_prob(draw) for draw in draws]))


def test_draws_and_moments_have_time_where_recordings_have_it() -> None:
    scale = torch.rand(6, 1, 1) + 0.1
    recording = RecordingDistribution(dist.Normal(torch.arange(6.0)[:, None, None].expand(6, 4, 3), scale).to_event(1))
    assert recording.sample((20_000,)).shape == (20_000, 4, 6, 3)
    assert recording.has_rsample
    draws = recording.rsample((20_000,))
    assert torch.equal(recording.mean, torch.arange(6.0)[:, None].expand(4, 6, 3))
    assert_close(recording.variance, scale[:, 0].square().expand(4, 6, 3))
    assert ((draws.mean(0) - recording.mean).abs() < 5 * (recording.variance / 20_000).sqrt()).all()


def test_expanding_adds_independent_recordings() -> None:
    recording = RecordingDistribution(dist.Normal(torch.randn(6, 4, 3), 1.0).to_event(1))
    assert recording.expand((4,)) is recording
    larger = recording.expand((5, 4))
    y = larger.sample()
    assert y.shape == (5, 4, 6, 3)
    assert not torch.equal(y[0], y[1])
    assert_close(larger.log_prob(y), recording.log_prob(y))


def test_support_is_that_of_the_time_bins() -> None:
    counts = RecordingDistribution(poisson(torch.zeros(6, 4, 3)).to_event(1))
    assert not counts.has_rsample
    assert counts.support.check(counts.sample()).all()
    assert not counts.support.check(torch.full((4, 6, 3), 0.5)).any()
    normal = RecordingDistribution(dist.Normal(torch.zeros(6, 4, 3), 1.0).to_event(1))
    y = normal.sample()
    assert torch.equal(biject_to(normal.support)(y), y)
