"""Recordings compared by frequency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.arrays import varies_along
from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.metrics.estimate import Estimate, mean_of
from pyro_lowrank.metrics.recordings import Floats, as_trials, check_complete, check_pair, largest, scaled


def power_spectrum_hellinger(real: ArrayLike, generated: ArrayLike, *, smoothing: float = 20.0) -> Estimate:
    r"""Return :math:`D_H`, the Hellinger distance between power spectra, mean over features, between 0 and 1.

    .. math::

        D_H = \frac{1}{D} \sum_d \sqrt{1 - \sum_f \sqrt{S_d(f)\, \tilde S_d(f)}}

    Each feature of each trial is standardised; S is its squared Fourier magnitude, smoothed over frequency bins with a
    Gaussian, averaged over trials, with unit sum. Of an odd number of time bins the last is left out. A feature that
    varies in neither recording counts as 0, in one of them as 1. The standard error is that over features.

    Args:
        real: `trials x time x features` or `time x features`.
        generated: likewise, with the same features and number of time bins.
        smoothing: standard deviation of the Gaussian, in frequency bins.

    Raises:
        ValueError: if features or time bins differ, or an entry is missing.

    Example::

        >>> t = np.arange(1000)[:, np.newaxis]
        >>> slow, fast = np.sin(0.1 * t), np.sin(1.0 * t)
        >>> float(round(power_spectrum_hellinger(slow, slow), 6)), power_spectrum_hellinger(slow, fast) > 0.9
        (0.0, True)

    References:
        Mikhaeil et al. (2022), NeurIPS; Brenner et al. (2022), ICML.
    """
    check_positive("smoothing", smoothing)
    first, second = as_trials("real", real), as_trials("generated", generated)
    check_pair(first, second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Both recordings must have as many time bins, got {first.shape[1]} and {second.shape[1]}: their spectra "
            "have other frequencies."
        )
    check_complete("real", first)
    check_complete("generated", second)
    p, q = _spectrum(first, smoothing), _spectrum(second, smoothing)
    # Two features without any power are equal, whatever their levels.
    overlap = np.where(p.any(0) | q.any(0), np.sqrt(p * q).sum(0), 1.0)
    return mean_of(np.sqrt(np.clip(1 - overlap, 0, None)))


def _spectrum(x: Floats, smoothing: float) -> Floats:
    """Smoothed power with unit sum, `frequencies x features`; zero for a feature that does not vary."""
    from scipy.ndimage import gaussian_filter1d

    standard = scaled(x[:, : x.shape[1] // 2 * 2], 1)
    power = gaussian_filter1d(np.abs(np.fft.rfft(standard, axis=1)) ** 2, smoothing, axis=1)
    total = power.sum(1, keepdims=True)
    mean = (power / np.where(total > 0, total, 1.0)).mean(0)
    return np.asarray(mean / np.where(mean.sum(0) > 0, mean.sum(0), 1.0))


def coherence(x: ArrayLike, *, bin_size: float = 1.0, segment: int = 256) -> tuple[Floats, Floats]:
    r"""Return frequencies and the magnitude-squared coherence between features, by Welch's method.

    .. math:: C_{ij}(f) = |S_{ij}(f)|^2 / (S_{ii}(f) S_{jj}(f))

    with cross-spectra S averaged over Hann-windowed segments that overlap by half, of all trials. It is 0 where a
    feature does not vary.

    Args:
        x: `trials x time x features` or `time x features`.
        bin_size: seconds per time bin.
        segment: time bins of a segment; at most those of a trial.

    Returns:
        Frequencies in Hz, `frequencies`, and coherences between 0 and 1, `frequencies x features x features`.

    Raises:
        ValueError: if an entry is missing, or there is one segment only, of which every coherence is 1.

    Example::

        >>> x = np.random.default_rng(0).normal(size=(4000, 2))
        >>> frequencies, found = coherence(x, bin_size=0.01)
        >>> found.shape, bool(found[:, 0, 1].mean() < 0.1)
        ((129, 2, 2), True)

    References:
        Welch (1967), IEEE Trans. Audio Electroacoust. 15:70.
    """
    from scipy.signal.windows import hann

    check_positive("bin_size", bin_size)
    array = as_trials("x", x)
    check_complete("x", array)
    segment = min(check_positive_int("segment", segment, minimum=2), array.shape[1])
    hop = max(segment // 2, 1)
    starts = range(0, array.shape[1] - segment + 1, hop)
    if len(array) * len(starts) < 2:
        raise ValueError(
            f"Coherence needs two segments or more, got {len(array)} trial of {array.shape[1]} time bins and "
            f"segment={segment}: pass a shorter one."
        )
    window = hann(segment, sym=False)[:, np.newaxis]
    pieces = np.concatenate([array[:, start : start + segment] for start in starts])
    # A piece that does not vary has no power, whatever rounding leaves of it.
    varying = varies_along(pieces, 1, keepdims=True)
    pieces = pieces / largest(pieces, (0, 1))
    centred = np.where(varying, pieces - pieces.mean(1, keepdims=True), 0.0)
    spectra = np.fft.rfft(centred * window, axis=1)
    cross = np.einsum("sfi,sfj->fij", spectra, spectra.conj())
    power = np.einsum("fii->fi", cross).real
    floor = np.finfo(np.float64).tiny
    found = np.abs(cross) ** 2 / np.maximum(power[:, :, np.newaxis] * power[:, np.newaxis, :], floor)
    return np.asarray(np.fft.rfftfreq(segment, bin_size), dtype=np.float64), np.asarray(found)
