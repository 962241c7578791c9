"""A channel that never changes, at whatever level, is taken for what it is; entries that are missing count nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_lowrank import metrics
from pyro_lowrank.arrays import varies, varies_along
from pyro_lowrank.training.standardise import Standardisation

# Levels whose mean over many bins is off by rounding, in one way of summing or another.
LEVELS = (0.1, 0.3, 1e-9, 1e9 / 3, -7.7e-5)


def with_dead_channel(level: float, trials: int = 4, time: int = 1001) -> NDArray[np.float64]:
    """Two channels of noise and one that stays at a level."""
    x = np.random.default_rng(0).normal(size=(trials, time, 3))
    x[..., 2] = level
    return x


@pytest.mark.parametrize("level", LEVELS)
def test_scales_are_1_and_numbers_0(level: float) -> None:
    x = with_dead_channel(level)
    assert not metrics.standardised(x)[..., 2].any()
    np.testing.assert_allclose(metrics.standardised(x)[..., :2].std((0, 1)), 1)
    for dtype in (torch.float64, torch.float32):
        y = torch.as_tensor(x, dtype=dtype)
        found = Standardisation.of(y)
        assert found.scale[2] == 1
        assert found.mean[2] == y[0, 0, 2]
        assert not found.apply(y)[..., 2].any()
        assert found.log_scale(y[..., 2:]) == pytest.approx(found.scale[:2].log().sum().item(), rel=1e-4)


def test_the_level_of_the_entry() -> None:
    found = Standardisation.of(torch.full((1, 1000, 1), 0.1, dtype=torch.float64))
    assert (found.mean.item(), found.scale.item()) == (0.1, 1.0)
    assert not metrics.standardised(np.full((1000, 1), 0.1)).any()


def test_a_small_signal_on_a_large_offset_varies() -> None:
    signal = np.random.default_rng(0).normal(size=(1, 20_000, 1))
    for offset, size in ((1e9, 1.0), (3e4, 1e-6), (0.0, 1e-300), (1e-5, 1e-12)):
        x = offset + size * signal
        assert varies_along(x, (0, 1)).all()
        found = Standardisation.of(torch.as_tensor(x))
        exact = size * ((x - offset) / size).std()
        assert found.scale.item() == pytest.approx(exact, rel=1e-6)
        assert abs(found.apply(torch.as_tensor(x)).mean().item()) < 1e-6
    nothing = torch.full((1,), torch.inf)
    assert not varies(nothing, -nothing).any(), "a feature without any entry"
    rounded = 0.1 + np.array([[0.0, 1e-17, -1e-17]]).T
    assert not varies_along(rounded * 3 - 0.2, 0).any(), "what arithmetic leaves is no change"


@pytest.mark.parametrize(("one", "other"), [(0.1, 0.3), (0.0, 0.7), (1e9 / 3, 1e-9)])
def test_spectra_of_dead_channels_are_equal_at_any_level(one: float, other: float) -> None:
    assert metrics.power_spectrum_hellinger(with_dead_channel(one), with_dead_channel(other)) == pytest.approx(
        0.0, abs=1e-7
    )
    alive = with_dead_channel(one)
    alive[..., 2] = alive[..., 1]
    assert metrics.power_spectrum_hellinger(with_dead_channel(one), alive) == pytest.approx(1 / 3)


@pytest.mark.parametrize("level", LEVELS)
def test_statistics_of_a_dead_channel(level: float) -> None:
    x = with_dead_channel(level)
    coherence = metrics.coherence(x)[1]
    assert not coherence[:, 2].any()
    assert not coherence[:, :, 2].any()
    assert np.isnan(metrics.pairwise_correlations(x)[2]).all()
    assert np.isnan(metrics.autocorrelation(x, max_lag=3)[:, 2]).all()
    assert np.isnan(metrics.agreement(x[0, :, 0], x[0, :, 2]).correlation)
    # What does not vary tells nothing and is not to be explained.
    trials = x[:, :100]
    expected = metrics.decoding_r2(trials[..., :1], trials[..., 1:2])
    assert metrics.decoding_r2(trials[..., [0, 2]], trials[..., 1:2]) == pytest.approx(expected, abs=1e-12)
    assert metrics.decoding_r2(trials[..., :1], trials[..., 1:]) == pytest.approx(expected, abs=1e-12)
    level = abs(level)
    spikes = np.abs(with_dead_channel(level))
    found = metrics.psth_r2(spikes, spikes + 0.5, [0, 0, 1, 1])
    assert found == pytest.approx(metrics.psth_r2(spikes[..., :2], spikes[..., :2] + 0.5, [0, 0, 1, 1]))


def test_correlations_of_features_of_other_units() -> None:
    x = np.random.default_rng(0).normal(size=(500, 3)) @ np.array([[1.0, 0.5, 0.2], [0, 1, 0.3], [0, 0, 1]])
    # Volts beside counts: what is small beside another feature still varies.
    np.testing.assert_allclose(
        metrics.pairwise_correlations(x * [1e-9, 1e6, 1.0]), metrics.pairwise_correlations(x), rtol=1e-9
    )
    # Constant in the bins of a pair alone.
    x[:250, 0] = 0.1
    x[250:, 1] = np.nan
    found = metrics.pairwise_correlations(x)
    assert np.isnan(found[0, 1])
    assert np.isfinite(found[0, 2])


# --- missing entries -------------------------------------------------------------------------------------------------


def test_perfect_rates_are_perfect_when_trials_end_early() -> None:
    rng = np.random.default_rng(0)
    rates = np.cumsum(rng.uniform(0.5, 2.0, size=(6, 40, 3)), 1)
    spikes = rates.copy()
    spikes[1, 20:] = spikes[4, 30:] = np.nan
    assert metrics.psth_r2(spikes, rates, [0, 0, 0, 1, 1, 1]) == pytest.approx(1.0, abs=1e-12)
    spikes[:3, 35:] = np.nan  # a bin that no trial of a condition has
    assert metrics.psth_r2(spikes, rates, [0, 0, 0, 1, 1, 1]) == pytest.approx(1.0, abs=1e-12)


def test_a_prediction_that_is_missing_explains_nothing() -> None:
    y = np.random.default_rng(0).normal(size=(3, 10, 2))
    predicted = np.zeros_like(y)
    predicted[0, 2:] = np.nan
    with pytest.raises(ValueError, match="`predicted` has NaN where `y` has numbers, in 16 entries: predict these too"):
        metrics.prediction.variance_gains(y, predicted)
    y[0, 2:] = np.nan
    gains, squares = metrics.prediction.variance_gains(y, predicted, null=np.zeros(2))
    np.testing.assert_allclose(gains, 0, atol=1e-12)
    assert squares[0] == pytest.approx((y[0, :2] ** 2).sum())


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_label_that_is_missing_is_named(missing: float | None) -> None:
    x = np.random.default_rng(0).poisson(2.0, size=(4, 10, 2))
    for labels in ([1, 2, missing, 1], ["a", "b", missing, "a"]):
        with pytest.raises(ValueError, match="`conditions` must have a label for every trial, .* the first is trial 2"):
            metrics.psth_r2(x, x, labels)
        with pytest.raises(ValueError, match="`groups` must have a label for every trial, and 1 of 4 have none"):
            metrics.decoding_r2(x, x, groups=labels)


def test_the_standard_error_of_bits_per_spike_has_the_spread_of_repetitions() -> None:
    # Few trials whose rates go up and down together: the null rates differ as much from sample to sample as the rest.
    rng = np.random.default_rng(3)
    found = []
    for _ in range(400):
        gain = rng.gamma(2.0, 0.5, size=(15, 1, 1))
        rates = gain * np.exp(0.7 * np.sin(np.arange(30) / 3))[None, :, None] * np.ones((1, 1, 2))
        found.append(metrics.bits_per_spike(rng.poisson(rates), rates))
    assert np.mean([one.standard_error for one in found]) == pytest.approx(np.std(found), rel=0.1)


def test_bits_per_spike_is_what_its_gains_are_the_ratio_of() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, size=(6, 40, 3))
    spikes = rng.poisson(rates).astype(float)
    spikes[..., 2] = 0.0
    spikes[2, 5:] = np.nan
    gains, number = metrics.prediction.spike_gains(spikes, rates)
    found = metrics.bits_per_spike(spikes, rates)
    assert found == pytest.approx(gains.sum() / number.sum(), rel=1e-12)
    without = []
    for trial in range(6):
        g, n = metrics.prediction.spike_gains(np.delete(spikes, trial, 0), np.delete(rates, trial, 0))
        without.append(g.sum() / n.sum())
    assert found.standard_error == pytest.approx(np.sqrt(5 * np.var(without)), rel=1e-9)
    assert np.isnan(metrics.bits_per_spike(spikes[:1], rates[:1]).standard_error)
    assert np.isnan(metrics.bits_per_spike(np.zeros((3, 4, 1)), np.ones((3, 4, 1))))


SCALES = (1e-300, 1e-160, 1e-100, 1e100, 1e155, 1e300)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["coherence", "decoded from", "decoded", "psth", "agreement"])
def test_units_do_not_matter(name: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    x, z, conditions = rng.normal(size=(6, 64, 3)).cumsum(1), rng.normal(size=(6, 64, 3)).cumsum(1), [0, 0, 1, 1, 2, 2]
    measures: dict[str, Callable[[NDArray[np.float64]], Any]] = {
        "coherence": lambda y: metrics.coherence(y, segment=32)[1],
        "decoded from": lambda y: metrics.decoding_r2(y, z, folds=3),
        "decoded": lambda y: metrics.decoding_r2(z, y, folds=3),
        "psth": lambda y: metrics.psth_r2(np.abs(y), np.abs(0.9 * y), conditions),
        "agreement": lambda y: [metrics.agreement(y, z * scale).correlation, metrics.agreement(y, 0.9 * y).relative],
    }
    expected = measures[name](x) if name != "agreement" else [metrics.agreement(x, z).correlation, 0.1]
    np.testing.assert_allclose(measures[name](x * scale), expected, rtol=1e-9)


def test_what_is_nowhere_recorded_has_no_number_and_no_warning() -> None:
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(6, 40, 3)))
    y = x.copy()
    y[..., 2] = np.nan
    assert np.isnan(metrics.mean_rates(y)).tolist() == [False, False, True]
    y = x.copy()
    y[:2] = np.nan
    # Of three folds one has nothing to score, and the others are scored.
    assert metrics.decoding_r2(x, y, folds=3) > 0.99
    assert np.isnan(metrics.decoding_r2(x, np.ones((6, 40, 1)), folds=3))
    with pytest.raises(ValueError, match="Both must be finite"):
        metrics.agreement([1.0, np.inf, 3.0], [1.0, 2.0, 3.0])
