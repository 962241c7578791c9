"""Samples of parameters give the fixed points of each, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.fixed_points import find_fixed_points, sampled_fixed_points


def test_each_sample_is_a_network() -> None:
    rng = np.random.default_rng(0)
    decay, bias = rng.uniform(0.3, 0.9, size=6), rng.normal(size=(6, 8))
    left, right = rng.normal(size=(8, 2)), rng.normal(size=(6, 2, 8))
    posterior = sampled_fixed_points(decay, left, right, bias, "clipped_relu", method="enumerate")
    ones = [find_fixed_points(decay[s], left, right[s], bias[s], "clipped_relu", method="enumerate") for s in range(6)]
    assert posterior.counts.tolist() == [len(one) for one in ones]
    np.testing.assert_array_equal(posterior.points, np.concatenate([one.points for one in ones]))
    np.testing.assert_array_equal(posterior.stability, np.concatenate([one.stability for one in ones]))
    np.testing.assert_array_equal(np.bincount(posterior.sample, minlength=6), posterior.counts)
    assert posterior.complete.all()
    assert sum(posterior.distribution().values()) == pytest.approx(1)
    assert posterior.counts_of("attractor").sum() == (posterior.stability == "attractor").sum()
    assert {len(column) for column in posterior.to_dict().values()} == {posterior.counts.sum()}
    assert str(posterior).startswith("SampledFixedPoints: 6 samples, 6 lists complete")


def test_a_decay_per_sample_and_latent_and_inputs() -> None:
    current = np.array([[0.0, 0.0], [1.0, -1.0]])
    decay = np.array([[0.5, 0.2], [0.1, 0.9]])
    posterior = sampled_fixed_points(
        decay, np.eye(2), 0.1 * np.eye(2), np.zeros(2), "identity", current, method="enumerate"
    )
    expected = 0.1 * current / (1 - decay - 0.1)[0:2]
    # The second latent of the second sample does not settle by itself: 0.9 + 0.1 = 1.
    np.testing.assert_allclose(posterior.results[0].points[0], expected[0], atol=1e-12)
    assert posterior.counts.tolist() == [1, 0]


def test_a_constant_per_sample() -> None:
    constants = np.array([[1.0, 0.0], [2.0, 4.0], [0.0, -1.0]])
    posterior = sampled_fixed_points(
        0.5, np.eye(2), np.zeros((2, 2)), np.zeros(2), "tanh", constant=constants, method="certified"
    )
    np.testing.assert_allclose(posterior.points, 2 * constants, atol=1e-12)
    assert posterior.complete.all()


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the same in each that has one, got {'right': 3, 'bias': 2}"):
        sampled_fixed_points(0.5, np.ones((1, 1)), np.ones((3, 1, 1)), np.ones((2, 1)), method="enumerate")
    with pytest.raises(ValueError, match="got none; for one network use find_fixed_points"):
        sampled_fixed_points(0.5, np.ones((1, 1)), np.ones((1, 1)), np.ones(1), method="enumerate")
