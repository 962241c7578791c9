"""Recordings as arrays of three dims, and how they are smoothed and scaled before they are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import extremes, varies
from pyro_lowrank.errors import check_positive_int

Floats = NDArray[np.float64]


def as_trials(name: str, x: ArrayLike) -> Floats:
    """Return a recording as `trials x time x features` of float64; one trial may come without that dim.

    Raises:
        ValueError: if the shape is another, the recording is empty, or an entry is infinite.
    """
    array = np.asarray(x, dtype=np.float64)
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.ndim != 3 or array.size == 0:
        raise ValueError(
            f"`{name}` must be trials x time x features, or time x features for one trial, none of them empty; got "
            f"shape {np.shape(x)}."
        )
    if np.isinf(array).any():
        raise ValueError(f"`{name}` must be finite, or NaN where missing; got {int(np.isinf(array).sum())} infinities.")
    return array


def check_pair(real: Floats, generated: Floats) -> None:
    """Raise unless two recordings have the same features."""
    if real.shape[-1] != generated.shape[-1]:
        raise ValueError(
            f"Both recordings must have the same features, got {real.shape[-1]} and {generated.shape[-1]}."
        )


def check_complete(name: str, x: Floats) -> None:
    """Raise if an entry is missing, for measures that have no use for gaps."""
    if np.isnan(x).any():
        raise ValueError(
            f"`{name}` has {int(np.isnan(x).sum())} missing entries, which this measure cannot leave out: pass the "
            "stretches without gaps."
        )


def standardised(x: ArrayLike) -> Floats:
    """Return each feature with mean 0 and standard deviation 1 over trials and time, in the shape of `x`.

    A feature that does not vary is 0.

    Args:
        x: `... x time x features`.

    Example:
        >>> standardised([[0.0, 0.1], [2.0, 0.1]])
        array([[-1.,  0.],
               [ 1.,  0.]])
    """
    return scaled(as_trials("x", x), (0, 1)).reshape(np.shape(x))


def largest(x: Floats, axes: int | tuple[int, ...]) -> Floats:
    """Return the largest size of numbers along some axes, NaN left out; 1 where all are 0 or none is there.

    Example:
        >>> largest(np.array([[0.0, 1.0], [0.0, -2.0]]), 0)
        array([1., 2.])
    """
    size = np.where(np.isnan(x), 0.0, np.abs(x)).max(axes)
    return np.asarray(np.where(size > 0, size, 1.0))


def scaled(x: Floats, axes: int | tuple[int, ...]) -> Floats:
    """Return numbers with mean 0 and standard deviation 1 along some axes, 0 where they do not vary; NaN stays.

    Example:
        >>> scaled(np.array([[0.0, 0.1], [2.0, 0.1]]), 0)
        array([[-1.,  0.],
               [ 1.,  0.]])
    """
    low, high = extremes(x, axes)
    varying = varies(low, high)
    # Of the range, whose square neither overflows nor underflows.
    unit = (x - np.where(varying, low, x)) / np.where(varying, high - low, 1.0)
    centred = unit - mean_seen(unit, axes, keepdims=True)
    return np.asarray(centred / np.where(varying, np.sqrt(mean_seen(centred**2, axes, keepdims=True)), 1.0))


def mean_seen(x: Floats, axes: int | tuple[int, ...], *, keepdims: bool = False) -> Floats:
    """Return the mean along some axes of what is not missing; NaN where all is.

    Example:
        >>> mean_seen(np.array([[1.0, np.nan], [3.0, np.nan]]), 0)
        array([ 2., nan])
    """
    here = ~np.isnan(x)
    number = here.sum(axes, keepdims=keepdims)
    return np.asarray(np.where(here, x, 0.0).sum(axes, keepdims=keepdims) / np.where(number, number, np.nan))


def hann_smoothed(x: ArrayLike, window: int = 15) -> Floats:
    """Return each feature smoothed along time with a Hann window of unit sum, in the shape of `x`.

    Beyond its ends a trial goes on as its mirror image.

    Args:
        x: `... x time x features`.
        window: number of time bins, the two ends of weight zero included.

    Example:
        >>> hann_smoothed([[0.0], [1.0], [0.0]], window=5).ravel()
        array([0.25, 0.5 , 0.25])
    """
    from scipy.ndimage import convolve1d

    check_positive_int("window", window, minimum=3)
    flat = as_trials("x", x)
    check_complete("x", flat)
    weights = np.hanning(window)
    return np.asarray(convolve1d(flat, weights / weights.sum(), axis=1)).reshape(np.shape(x))
