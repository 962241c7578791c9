"""Metrics against hand-computed values and scipy's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from scipy import signal, stats

from pyro_lowrank import metrics
from pyro_lowrank.metrics import state_space


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers with a fixed seed."""
    return np.random.default_rng(20240624)


# State space


def test_divergence_of_two_points_is_that_of_two_gaussians() -> None:
    # One component each: the divergence is half the squared distance.
    found = metrics.state_space_kl(np.zeros((1, 3)), np.full((1, 3), 0.5), num_draws=200_000)
    assert abs(found - 0.375) < 4 * found.standard_error
    assert found.standard_error < 0.003
    wide = metrics.state_space_kl(np.zeros((1, 3)), np.full((1, 3), 0.5), scale=0.5, num_draws=200_000)
    assert abs(wide - 1.5) < 4 * wide.standard_error


def test_divergence_of_mixtures_equals_quadrature(rng: np.random.Generator) -> None:
    real, generated = rng.normal(size=(30, 1)), 0.5 + 2 * rng.normal(size=(40, 1))
    x = np.linspace(-15, 15, 20_001)
    p, q = (stats.norm.pdf(x[:, None], centres.ravel(), 1).mean(1) for centres in (real, generated))
    exact = np.trapezoid(p * np.log(p / q), x)
    found = metrics.state_space_kl(real, generated, num_draws=100_000)
    assert abs(found - exact) < 4 * found.standard_error
    assert found.standard_error < 0.02 * exact


def test_divergence_is_finite_where_densities_underflow(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 64))
    found = metrics.state_space_kl(x, x + 100.0, num_draws=50)
    assert found == pytest.approx(0.5 * 64 * 100.0**2, rel=0.05)
    # Far from the origin no digits are lost.
    assert metrics.state_space_kl(x + 1e6, x + 1e6 + 0.1) == pytest.approx(metrics.state_space_kl(x, x + 0.1), rel=1e-4)


def test_divergence_in_blocks_is_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(200, 2))
    whole = metrics.state_space_kl(x, y, num_draws=100)
    assert metrics.state_space_kl(x[:, None], y, num_draws=100) == whole
    monkeypatch.setattr(state_space, "_AT_A_TIME", 1000)
    assert metrics.state_space_kl(x, y, num_draws=100) == pytest.approx(whole, rel=1e-12)


# Spectra


def hellinger(p: Any, q: Any) -> Any:
    """Textbook form."""
    return np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2)


def test_distance_of_spectra_equals_its_definition(rng: np.random.Generator) -> None:
    from scipy.ndimage import gaussian_filter1d

    real, generated = np.cumsum(rng.normal(size=(601, 2)), 0), rng.normal(size=(601, 2))
    distances = []
    for feature in range(2):
        densities = []
        for x in (real, generated):
            power = np.abs(np.fft.rfft(stats.zscore(x[:600, feature]))) ** 2
            smooth = gaussian_filter1d(power, 5.0)
            densities.append(smooth / smooth.sum())
        distances.append(hellinger(*densities))
    found = metrics.power_spectrum_hellinger(real, generated, smoothing=5.0)
    assert found == pytest.approx(np.mean(distances), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(distances, ddof=1) / 2**0.5)
    assert metrics.power_spectrum_hellinger(3 * real + 1, real) == pytest.approx(0, abs=1e-7)


def test_coherence_equals_scipys(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5000, 3))
    x[:, 1] += np.convolve(x[:, 0], [0.5, 1.0, 0.5], mode="same")
    frequencies, found = metrics.coherence(x, bin_size=0.01, segment=200)
    expected_frequencies, expected = signal.coherence(x[:, 0], x[:, 1], fs=100, nperseg=200)
    np.testing.assert_allclose(frequencies, expected_frequencies)
    np.testing.assert_allclose(found[:, 0, 1], expected, atol=1e-9)
    np.testing.assert_allclose(found[:, [0, 1, 2], [0, 1, 2]], 1)
    np.testing.assert_allclose(found, found.transpose(0, 2, 1))


# Statistics


def test_rates_and_intervals_by_hand() -> None:
    spikes = np.array([[[1, 0], [0, 0], [1, 2], [0, 0], [0, 1]], [[0, 0], [1, 0], [1, 0], [1, 0], [1, 0]]])
    np.testing.assert_allclose(metrics.mean_rates(spikes, bin_size=0.1), [6, 3])
    found = metrics.isi_statistics(spikes, bin_size=0.1)
    # Feature 0: 2 in the first trial; 1, 1, 1 in the second. Feature 1 has one interval.
    np.testing.assert_allclose(found.mean, [0.125, np.nan])
    np.testing.assert_allclose(found.variation, [np.std([2, 1, 1, 1]) / 1.25, np.nan])
    np.testing.assert_array_equal(found.number, [4, 1])


def test_no_interval_goes_over_a_gap() -> None:
    spikes = np.array([1, 0, 1, np.nan, 1, 1, 0, 0, 1])[:, None]
    np.testing.assert_allclose(metrics.isi_statistics(spikes).mean, np.mean([2, 1, 3]))
    assert metrics.mean_rates(spikes)[0] == pytest.approx(5 / 8)


def test_intervals_of_a_poisson_process_vary_as_they_should(rng: np.random.Generator) -> None:
    found = metrics.isi_statistics(rng.uniform(size=(200_000, 1)) < 0.02)
    # Geometric intervals: mean 1/p, coefficient of variation sqrt(1 - p).
    assert found.mean[0] == pytest.approx(50, rel=0.05)
    assert found.variation[0] == pytest.approx(0.98**0.5, rel=0.03)


def test_correlations_equal_numpys(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 50, 5)) @ rng.normal(size=(5, 5)) + 1e4
    np.testing.assert_allclose(metrics.pairwise_correlations(x), np.corrcoef(x.reshape(-1, 5).T), atol=1e-9)
    holes = x.copy()
    holes[0, :7, 2] = np.nan
    found = metrics.pairwise_correlations(holes)
    rest = x.reshape(-1, 5)[7:]
    assert found[1, 2] == pytest.approx(np.corrcoef(rest[:, 1], rest[:, 2])[0, 1])
    assert found[0, 1] == pytest.approx(np.corrcoef(x.reshape(-1, 5).T)[0, 1])
    flat = x.copy()
    flat[..., 3] = 7.0
    assert np.isnan(metrics.pairwise_correlations(flat)[3]).all()


def test_autocorrelation_of_an_autoregression(rng: np.random.Generator) -> None:
    x = signal.lfilter([1], [1, -0.9], rng.normal(size=(20, 5000, 2)), axis=1)
    np.testing.assert_allclose(metrics.autocorrelation(x, max_lag=10).T, [0.9 ** np.arange(11)] * 2, atol=0.03)
    short = np.array([[1.0], [2.0], [4.0]])
    centred = short.ravel() - short.mean()
    expected = [1, (centred[0] * centred[1] + centred[1] * centred[2]) / 2 / (centred**2).mean()]
    np.testing.assert_allclose(metrics.autocorrelation(short, max_lag=1).ravel(), expected)


# Prediction


def test_bits_per_spike_equal_those_of_poisson_likelihoods(rng: np.random.Generator) -> None:
    rates = rng.gamma(2.0, size=(6, 40, 3))
    spikes = rng.poisson(rates).astype(float)
    null = np.broadcast_to(spikes.mean((0, 1)), spikes.shape)
    gain = stats.poisson.logpmf(spikes, rates).sum() - stats.poisson.logpmf(spikes, null).sum()
    found = metrics.bits_per_spike(spikes, rates)
    assert found == pytest.approx(gain / spikes.sum() / np.log(2))
    assert 0 < found.standard_error < found
    holes = spikes.copy()
    holes[0, :10] = np.nan
    assert metrics.bits_per_spike(holes[1:], rates[1:]) == pytest.approx(
        metrics.bits_per_spike(np.where(np.arange(6)[:, None, None] == 0, np.nan, spikes), rates)
    )
    assert metrics.bits_per_spike(spikes, np.zeros_like(rates)) < -10


def test_the_jackknife_has_the_spread_of_repetitions(rng: np.random.Generator) -> None:
    rates = rng.gamma(2.0, size=(25, 30, 2))
    found = [metrics.bits_per_spike(rng.poisson(rates), rates) for _ in range(300)]
    # Rates are fixed here, so that trials differ by their rates too: the jackknife may only be larger.
    assert 0.8 * np.std(found) < np.mean([one.standard_error for one in found]) < 2 * np.std(found)


def test_psth_by_hand() -> None:
    spikes = np.array([[[1.0], [3.0]], [[3.0], [5.0]], [[0.0], [2.0]]])
    rates = np.array([[[2.0], [4.0]], [[2.0], [4.0]], [[1.0], [1.0]]])
    # Averages of spikes: (2, 4) and (0, 2); of rates: (2, 4) and (1, 1).
    real = np.array([2.0, 4, 0, 2])
    expected = 1 - 2 / ((real - real.mean()) ** 2).sum()
    assert metrics.psth_r2(spikes, rates, ["a", "a", "b"]) == pytest.approx(expected)


def test_decoding_is_a_ridge_regression_on_trials_left_out(rng: np.random.Generator) -> None:
    x = rng.normal(size=(15, 40, 3)) * [1, 10, 0.1] + 5
    y = x @ rng.normal(size=(3, 2)) + rng.normal(size=(15, 40, 2)) + 100
    found = metrics.decoding_r2(x, y, folds=15, penalties=[1e-12])
    scores = []
    for trial in range(15):
        rest = np.delete(np.arange(15), trial)
        design = np.concatenate([x[rest].reshape(-1, 3), np.ones((14 * 40, 1))], 1)
        weights = np.linalg.lstsq(design, y[rest].reshape(-1, 2), rcond=None)[0]
        error = y[trial] - np.concatenate([x[trial], np.ones((40, 1))], 1) @ weights
        total = y[trial] - y[rest].mean((0, 1))
        scores.append((1 - (error**2).sum(0) / (total**2).sum(0)).mean())
    assert found == pytest.approx(np.mean(scores), rel=1e-6)
    assert found.standard_error == pytest.approx(np.std(scores, ddof=1) / 15**0.5)


def test_decoding_picks_a_penalty_that_helps_and_finds_nothing_in_noise(rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 6, 40))
    y = x[..., :1] + 0.5 * rng.normal(size=(8, 6, 1))
    assert metrics.decoding_r2(x, y) > metrics.decoding_r2(x, y, penalties=[1e-12]) + 0.1
    assert abs(metrics.decoding_r2(x, rng.normal(size=(8, 6, 1)))) < 0.3
    # Trials of one group are copies: apart, they would give the answer away.
    twice, groups = np.repeat(x, 2, axis=0), np.repeat(np.arange(8), 2)
    noise = np.repeat(rng.normal(size=(8, 6, 1)), 2, axis=0)
    assert metrics.decoding_r2(twice, noise, groups=groups) < 0.3
    y[0, 0] = np.nan
    assert np.isfinite(metrics.decoding_r2(x, y))


# All of them


def test_smoothing_and_scaling(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 50, 3)) * 4 + 7
    found = metrics.standardised(x)
    np.testing.assert_allclose(found, (x - x.mean((0, 1))) / x.std((0, 1)))
    smooth = metrics.hann_smoothed(x)
    window = signal.windows.hann(15)
    expected = np.convolve(x[1, :, 2], window / window.sum(), mode="valid")
    np.testing.assert_allclose(smooth[1, 7:-7, 2], expected)
    np.testing.assert_allclose(metrics.hann_smoothed(np.ones((20, 1))), 1)
    assert metrics.hann_smoothed(x[0]).shape == (50, 3)


def test_agreement_of_lists_and_of_matrices() -> None:
    found = metrics.agreement([1.0, 2.0, np.nan, 4.0], [1.5, 2.0, 3.0, np.nan])
    assert (found.number, found.rmse) == (2, pytest.approx((0.25 / 2) ** 0.5))
    a = np.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    assert metrics.agreement(a, a).number == 3
    assert metrics.agreement(a, 0.5 * a).relative == pytest.approx(0.5)


def test_an_estimate_is_a_number(rng: np.random.Generator) -> None:
    found = metrics.Estimate(1.5, 0.25)
    assert found + 1 == 2.5
    assert isinstance(found, float)
    assert copy.deepcopy(found).standard_error == 0.25
    assert f"{found:.1f}" == "1.5"


CALLS: dict[str, Any] = {
    "state_space_kl": lambda x: metrics.state_space_kl(x, x + 1),
    "power_spectrum_hellinger": lambda x: metrics.power_spectrum_hellinger(x, x[::-1]),
    "coherence": lambda x: metrics.coherence(x, segment=8)[1].sum(),
    "mean_rates": metrics.mean_rates,
    "isi_statistics": lambda x: metrics.isi_statistics(x).mean,
    "pairwise_correlations": metrics.pairwise_correlations,
    "autocorrelation": lambda x: metrics.autocorrelation(x, max_lag=3),
    "bits_per_spike": lambda x: metrics.bits_per_spike(x, x + 0.5),
    "psth_r2": lambda x: metrics.psth_r2(x, x + 0.5, np.arange(len(x)) % 2),
    "decoding_r2": lambda x: metrics.decoding_r2(x, x[..., :1]),
    "standardised": metrics.standardised,
    "hann_smoothed": metrics.hann_smoothed,
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_changed_and_precision_does_not_matter(name: str, rng: np.random.Generator) -> None:
    x = rng.poisson(2.0, size=(6, 30, 2)).astype(np.float32)
    before = x.copy()
    single = CALLS[name](x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(single, CALLS[name](x.astype(np.float64)), rtol=1e-6)


def test_bad_arguments_are_refused(rng: np.random.Generator) -> None:
    x = rng.poisson(2.0, size=(4, 30, 2)).astype(float)
    holes = x.copy()
    holes[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"trials x time x features, or time x features .* got shape \(3,\)"):
        metrics.mean_rates([1, 2, 3])
    with pytest.raises(ValueError, match="must have the same features, got 2 and 1"):
        metrics.state_space_kl(x, x[..., :1])
    with pytest.raises(ValueError, match="`generated` has 1 missing entries"):
        metrics.state_space_kl(x, holes)
    with pytest.raises(ValueError, match="as many time bins, got 30 and 29"):
        metrics.power_spectrum_hellinger(x, x[:, :29])
    with pytest.raises(ValueError, match="Coherence needs two segments or more"):
        metrics.coherence(x[0])
    with pytest.raises(ValueError, match="`max_lag` must be below the 30 time bins"):
        metrics.autocorrelation(x, max_lag=30)
    with pytest.raises(ValueError, match="`rates` must not be negative, got -1"):
        metrics.bits_per_spike(x, -np.ones_like(x))
    with pytest.raises(ValueError, match="`rates` has NaN where `spikes` has counts"):
        metrics.bits_per_spike(x, holes)
    with pytest.raises(ValueError, match="must have the same shape"):
        metrics.bits_per_spike(x, x[:2])
    with pytest.raises(ValueError, match="one label for each of 4 trials"):
        metrics.psth_r2(x, x, [1, 2])
    with pytest.raises(ValueError, match="three trials or groups or more, got 2"):
        metrics.decoding_r2(x[:2], x[:2])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.mean_rates([[np.inf]])
    with pytest.raises(ValueError, match="two entries or more that both have"):
        metrics.agreement([np.nan, 1.0], [1.0, np.nan])


def test_what_is_decoded_gives_the_score(rng: np.random.Generator) -> None:
    x = rng.normal(size=(12, 20, 3))
    y = x @ rng.normal(size=(3, 2)) + 0.5 * rng.normal(size=(12, 20, 2))
    y[2, 3] = np.nan
    decoded = metrics.decode(x, y, folds=4)
    assert decoded.shape == y.shape
    scores = []
    for fold in np.array_split(np.arange(12), 4):
        # Against the mean of the trials that were not left out, as the score has it.
        mean = np.nanmean(np.delete(y, fold, 0), (0, 1))
        error, spread = (np.nansum((y[fold] - of) ** 2, (0, 1)) for of in (decoded[fold], mean))
        scores.append((1 - error / spread).mean())
    assert float(metrics.decoding_r2(x, y, folds=4)) == pytest.approx(np.mean(scores), abs=1e-9)
    assert np.isfinite(decoded).all(), "what is missing in the targets is decoded all the same"
    # A trial is decoded from the others: its own targets change nothing.
    other = y.copy()
    other[0] += 100.0
    np.testing.assert_allclose(metrics.decode(x, other, folds=12)[0], metrics.decode(x, y, folds=12)[0])
