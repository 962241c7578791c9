"""How well rates predict spikes: the measures of the Neural Latents Benchmark."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.metrics.estimate import Estimate, mean_of, ratio_of
from pyro_lowrank.metrics.recordings import Floats, as_trials

_SMALLEST_RATE = 1e-9


def bits_per_spike(spikes: ArrayLike, rates: ArrayLike) -> Estimate:
    r"""Return how much better than mean rates some rates predict spikes, in bits per spike.

    .. math::

        \frac{L(\lambda; n) - L(\bar\lambda; n)}{\ln 2 \sum n}, \quad L(\lambda; n) = \sum n \ln \lambda - \lambda

    where the mean rate of each feature is that of the spikes themselves. Co-smoothing: of features that were held out;
    forward prediction: of the time bins after those that were seen. The standard error is the jackknife's over trials,
    NaN for one trial.

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
    return ratio_of(*spike_gains(spikes, rates))


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
    reference = np.broadcast_to(np.nanmean(n, (0, 1)) if null is None else np.asarray(null), n.shape)
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
        ValueError: if the shapes differ.

    Example:
        >>> variance_gains([[[0.0], [2.0]]], [[[0.0], [2.0]]])
        (array([2.]), array([2.]))
    """
    recorded, expected = as_trials("y", y), as_trials("predicted", predicted)
    if recorded.shape != expected.shape:
        raise ValueError(f"`y` and `predicted` must have the same shape, got {np.shape(y)} and {np.shape(predicted)}.")
    reference = np.nanmean(recorded, (0, 1)) if null is None else np.asarray(null)
    total = np.nansum((recorded - reference) ** 2, (1, 2))
    return np.asarray(total - np.nansum((recorded - expected) ** 2, (1, 2))), np.asarray(total)


def _log_likelihood(n: Floats, rate: Floats) -> Floats:
    """Of Poisson counts, without the term that does not depend on the rate."""
    rate = np.maximum(rate, _SMALLEST_RATE)
    return n * np.log(rate) - rate + 0 * n


def psth_r2(spikes: ArrayLike, rates: ArrayLike, conditions: ArrayLike) -> Estimate:
    r"""Return the coefficient of determination of trial averages by condition, mean over features.

    .. math:: R^2 = 1 - \frac{\sum_{c,t} (\bar n_{ct} - \bar\lambda_{ct})^2}{\sum_{c,t} (\bar n_{ct} - \bar n)^2}

    for each feature, with averages over the trials of a condition. Features that do not vary are left out; the standard
    error is that over features. Smooth the spikes first, as one would for a figure.

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
    labels = np.asarray(conditions)
    if labels.shape != n.shape[:1]:
        raise ValueError(f"`conditions` must hold one label for each of {len(n)} trials, got shape {labels.shape}.")
    groups = [labels == label for label in np.unique(labels)]
    real = np.concatenate([np.nanmean(n[group], 0) for group in groups])
    predicted = np.concatenate([rate[group].mean(0) for group in groups])
    total = np.nansum((real - np.nanmean(real, 0)) ** 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = 1 - np.nansum((real - predicted) ** 2, 0) / np.where(total > 0, total, np.nan)
    return mean_of(each)


def _counts_and_rates(spikes: ArrayLike, rates: ArrayLike) -> tuple[Floats, Floats]:
    n, rate = as_trials("spikes", spikes), as_trials("rates", rates)
    if n.shape != rate.shape:
        raise ValueError(
            f"`spikes` and `rates` must have the same shape, got {np.shape(spikes)} and {np.shape(rates)}."
        )
    for name, array in (("spikes", n), ("rates", rate)):
        if (array < 0).any():
            raise ValueError(f"`{name}` must not be negative, got {np.nanmin(array):g}.")
    if (np.isnan(rate) & ~np.isnan(n)).any():
        raise ValueError("`rates` has NaN where `spikes` has counts.")
    return n, rate
