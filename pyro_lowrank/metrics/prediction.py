"""How well rates predict spikes: the measures of the Neural Latents Benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import label_codes, varies_along
from pyro_lowrank.metrics.estimate import Estimate, mean_of
from pyro_lowrank.metrics.recordings import Floats, as_trials, largest, mean_seen

_SMALLEST_RATE = 1e-9


def bits_per_spike(spikes: ArrayLike, rates: ArrayLike) -> Estimate:
    r"""Return how much better than mean rates some rates predict spikes, in bits per spike.

    .. math::

        \frac{L(\lambda; n) - L(\bar\lambda; n)}{\ln 2 \sum n}, \quad L(\lambda; n) = \sum n \ln \lambda - \lambda

    where the mean rate of each feature is that of the spikes themselves. Co-smoothing: of features that were held out;
    forward prediction: of the time bins after those that were seen. The standard error is the jackknife's over trials,
    with the mean rates of those that are left, NaN for one trial.

    Args:
        spikes: counts, `trials x time x features` or `time x features`; NaN is left out.
        rates: expected counts per bin, of the same shape.

    Raises:
        ValueError: if the shapes differ, a count or rate is negative, or a rate is missing where there is a count.

    Example::

        >>> spikes = np.random.default_rng(0).poisson([[0.1], [4.0]] * 500)
        >>> abs(bits_per_spike(spikes, np.full((1000, 1), spikes.mean()))) < 1e-12
        True
        >>> bits_per_spike(spikes, np.array([[0.1], [4.0]] * 500)) > 0.5
        True

    References:
        Pei, Ye et al. (2021), "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks.
    """
    n, rate = _counts_and_rates(spikes, rates)
    likelihood = np.nansum(_log_likelihood(n, rate), (1, 2))
    counts, bins = np.nansum(n, 1), (~np.isnan(n)).sum(1)
    counts, bins, likelihood = (_all_and_all_but_each(x) for x in (counts, bins, likelihood))
    mean = np.maximum(counts / np.maximum(bins, 1), _SMALLEST_RATE)
    null = (counts * np.log(mean) - bins * mean).sum(1)
    spikes_left = counts.sum(1)
    if not spikes_left[0] > 0:
        return Estimate(np.nan, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (likelihood - null) / spikes_left / np.log(2)
    if len(n) < 2 or not (spikes_left > 0).all():
        return Estimate(found[0], np.nan)
    return Estimate(found[0], float(np.sqrt((len(n) - 1) * found[1:].var())))


def spike_gains(spikes: ArrayLike, rates: ArrayLike, null: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Return each trial's gain over null rates in bits, and its spikes: what `bits_per_spike` is the ratio of.

    Args:
        spikes: counts, `trials x time x features` or `time x features`; NaN is left out.
        rates: expected counts per bin, of the same shape.
        null: expected counts per bin of each feature, `features`; the mean of the spikes themselves if None.

    Raises:
        ValueError: as of `bits_per_spike`.

    Example:
        >>> spike_gains([[[2.0]], [[0.0]]], [[[2.0]], [[1.0]]])
        (array([0.5573..., 0.        ]), array([2., 0.]))
    """
    n, rate = _counts_and_rates(spikes, rates)
    reference = np.broadcast_to(mean_seen(n, (0, 1)) if null is None else np.asarray(null), n.shape)
    gain = np.nansum(_log_likelihood(n, rate) - _log_likelihood(n, reference), (1, 2))
    return np.asarray(gain / np.log(2)), np.asarray(np.nansum(n, (1, 2)))


def variance_gains(y: ArrayLike, predicted: ArrayLike, null: ArrayLike | None = None) -> tuple[Floats, Floats]:
    r"""Return each trial's squares that a prediction explains, and its squares around null means, over features.

    Their ratio over trials is the coefficient of determination, :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`.

    Args:
        y: recording, `trials x time x features` or `time x features`; NaN is left out.
        predicted: of the same shape.
        null: of each feature, `features`; the mean of the recording itself if None.

    Raises:
        ValueError: if the shapes differ, or a prediction is missing where something was recorded.

    Example:
        >>> variance_gains([[[0.0], [2.0]]], [[[0.0], [2.0]]])
        (array([2.]), array([2.]))
    """
    recorded, expected = as_trials("y", y), as_trials("predicted", predicted)
    if recorded.shape != expected.shape:
        raise ValueError(f"`y` and `predicted` must have the same shape, got {np.shape(y)} and {np.shape(predicted)}.")
    _check_predicted("predicted", expected, "y", recorded)
    reference = mean_seen(recorded, (0, 1)) if null is None else np.asarray(null)
    total = np.nansum((recorded - reference) ** 2, (1, 2))
    return np.asarray(total - np.nansum((recorded - expected) ** 2, (1, 2))), np.asarray(total)


def _all_and_all_but_each(x: NDArray[Any]) -> Floats:
    """Sum over trials: of all, then without the first, and so on, `1 + trials x ...`."""
    return np.asarray(x.sum(0) - np.concatenate([np.zeros_like(x[:1]), x]), dtype=np.float64)


def _log_likelihood(n: Floats, rate: Floats) -> Floats:
    """Of Poisson counts, without the term that does not depend on the rate."""
    rate = np.maximum(rate, _SMALLEST_RATE)
    return n * np.log(rate) - rate + 0 * n


def psth_r2(spikes: ArrayLike, rates: ArrayLike, conditions: ArrayLike) -> Estimate:
    r"""Return the coefficient of determination of trial averages by condition, mean over features.

    .. math:: R^2 = 1 - \frac{\sum_{c,t} (\bar n_{ct} - \bar\lambda_{ct})^2}{\sum_{c,t} (\bar n_{ct} - \bar n)^2}

    for each feature, with averages over the trials of a condition, those that were recorded in a time bin. Features
    that do not vary are left out; the standard error is that over features. Smooth the spikes first, as one would for a
    figure.

    Args:
        spikes: counts, `trials x time x features`.
        rates: expected counts per bin, of the same shape.
        conditions: a label for each trial, `trials`.

    Raises:
        ValueError: if the shapes do not fit.

    Example::

        >>> rng = np.random.default_rng(0)
        >>> rates = np.repeat(rng.uniform(0.5, 5, size=(2, 30, 4)), 200, axis=0)
        >>> psth_r2(rng.poisson(rates), rates, np.repeat([0, 1], 200)) > 0.95
        True

    References:
        Pei, Ye et al. (2021), "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks.
    """
    n, rate = _counts_and_rates(spikes, rates)
    codes = label_codes("conditions", conditions, len(n))
    # Both averages are over the same trials of each time bin.
    rate = np.where(np.isnan(n), np.nan, rate)
    groups = [codes == code for code in np.unique(codes)]
    real, predicted = (np.concatenate([mean_seen(x[group], 0) for group in groups]) for x in (n, rate))
    # In units of the largest of each feature, whose squares can be told from 0 and infinity.
    unit = largest(np.concatenate([real, predicted]), 0)
    real, predicted = real / unit, predicted / unit
    varying = varies_along(real, 0)
    total = np.where(varying, np.nansum((real - mean_seen(real, 0)) ** 2, 0), np.nan)
    return mean_of(1 - np.nansum((real - predicted) ** 2, 0) / total)


def _counts_and_rates(spikes: ArrayLike, rates: ArrayLike) -> tuple[Floats, Floats]:
    n, rate = as_trials("spikes", spikes), as_trials("rates", rates)
    if n.shape != rate.shape:
        raise ValueError(
            f"`spikes` and `rates` must have the same shape, got {np.shape(spikes)} and {np.shape(rates)}."
        )
    for name, array in (("spikes", n), ("rates", rate)):
        if (array < 0).any():
            raise ValueError(f"`{name}` must not be negative, got {np.nanmin(array):g}.")
    _check_predicted("rates", rate, "spikes", n)
    return n, rate


def _check_predicted(name: str, predicted: Floats, recorded_name: str, recorded: Floats) -> None:
    lacking = int((np.isnan(predicted) & ~np.isnan(recorded)).sum())
    if lacking:
        what = "counts" if recorded_name == "spikes" else "numbers"
        raise ValueError(
            f"`{name}` has NaN where `{recorded_name}` has {what}, in {lacking} entries: predict these too, or make "
            f"them NaN in `{recorded_name}`."
        )
