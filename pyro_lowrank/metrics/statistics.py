"""Statistics of one recording, to be compared between real and generated ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.arrays import varies_along
from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.metrics.recordings import Floats, as_trials, mean_seen, scaled


def mean_rates(spikes: ArrayLike, *, bin_size: float = 1.0) -> Floats:
    """Return the mean rate of each feature in Hz, `features`.

    Args:
        spikes: counts, `trials x time x features` or `time x features`.
        bin_size: seconds per time bin.

    Example:
        >>> mean_rates([[1, 0], [1, 2]], bin_size=0.5)
        array([2., 2.])
    """
    return np.asarray(mean_seen(as_trials("spikes", spikes), (0, 1)) / check_positive("bin_size", bin_size))


@dataclass(frozen=True)
class IntervalStatistics:
    """Of the intervals between spikes of each feature.

    Attributes:
        mean: in seconds, `features`; NaN where there are fewer than two intervals.
        variation: coefficient of variation, standard deviation over mean, `features`.
        number: of intervals, `features`.
    """

    mean: Floats
    variation: Floats
    number: Floats


def isi_statistics(spikes: ArrayLike, *, bin_size: float = 1.0) -> IntervalStatistics:
    """Return the mean and the coefficient of variation of the intervals between time bins that hold spikes.

    No interval goes from one trial to the next or over a missing time bin.

    Args:
        spikes: counts, `trials x time x features` or `time x features`.
        bin_size: seconds per time bin.

    Example:
        >>> found = isi_statistics([[1], [0], [1], [0], [0], [0], [1]], bin_size=0.1)
        >>> found.mean.round(6), found.variation.round(6)
        (array([0.3]), array([0.333333]))
    """
    array = as_trials("spikes", spikes)
    check_positive("bin_size", bin_size)
    rows = []
    for feature in range(array.shape[2]):
        intervals = np.concatenate([_intervals(trial[:, feature]) for trial in array])
        enough = len(intervals) > 1
        mean = intervals.mean() if enough else np.nan
        rows.append((mean * bin_size, intervals.std() / mean if enough else np.nan, float(len(intervals))))
    return IntervalStatistics(*np.array(rows).T)


def _intervals(counts: Floats) -> Floats:
    """Bins from one spike to the next."""
    times = np.flatnonzero(counts > 0)
    gaps = np.concatenate([[0], np.cumsum(np.isnan(counts))])
    found = np.diff(times).astype(np.float64)
    return found[gaps[times[1:]] == gaps[times[:-1]]] if len(times) > 1 else found[:0]


def pairwise_correlations(x: ArrayLike) -> Floats:
    """Return Pearson's correlation between features over all time bins of all trials, `features x features`.

    Bins where one of a pair is missing are left out for that pair. NaN where a feature does not vary.

    Args:
        x: `trials x time x features` or `time x features`.

    Example:
        >>> pairwise_correlations([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]]).round(6)
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    flat = as_trials("x", x).reshape(-1, np.shape(x)[-1])
    varying = varies_along(flat, 0)
    # Centred first: products of large numbers would lose the digits that matter.
    flat = scaled(flat, 0)
    here = (~np.isnan(flat)).astype(np.float64)
    filled = np.nan_to_num(flat)
    number = here.T @ here
    with np.errstate(invalid="ignore", divide="ignore"):
        first = filled.T @ here / number  # Mean of i over the bins where j is there too.
        covariance = filled.T @ filled / number - first * first.T
        variance = (filled**2).T @ here / number - first**2
        # Rounding leaves a little where a feature does not vary, in all of its bins or in those of a pair.
        size = np.abs(filled).max(0)[:, np.newaxis] ** 2
        variance = np.where(varying[:, np.newaxis] & (variance > 1e-14 * size), variance, np.nan)
        return np.asarray(covariance / np.sqrt(variance * variance.T))


def autocorrelation(x: ArrayLike, *, max_lag: int) -> Floats:
    r"""Return the autocorrelation of each feature, `lags x features`, from lag 0 (where it is 1) to `max_lag`.

    .. math:: r(l) = \frac{\langle (x_t - \bar x)(x_{t+l} - \bar x) \rangle}{\langle (x_t - \bar x)^2 \rangle}

    with means over all pairs of time bins of all trials that are both there, and one mean of each feature. NaN where a
    feature does not vary.

    Args:
        x: `trials x time x features` or `time x features`.
        max_lag: largest lag, in time bins.

    Raises:
        ValueError: if the lag is longer than a trial.

    Example:
        >>> autocorrelation([[1.0], [-1.0], [1.0], [-1.0]], max_lag=1).ravel()
        array([ 1., -1.])
    """
    array = as_trials("x", x)
    if check_positive_int("max_lag", max_lag, minimum=0) >= array.shape[1]:
        raise ValueError(f"`max_lag` must be below the {array.shape[1]} time bins of a trial, got {max_lag}.")
    standard, length = scaled(array, (0, 1)), array.shape[1]
    products = [mean_seen(standard[:, : length - lag] * standard[:, lag:], (0, 1)) for lag in range(max_lag + 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(products) / products[0]
