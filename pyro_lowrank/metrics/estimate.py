"""A number that comes from a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Estimate(float):
    """A number with its standard error; it is a float in every other respect.

    Args:
        value: the number.
        standard_error: its standard error; NaN if unknown.

    Example:
        >>> rate = Estimate(2.0, 0.25)
        >>> rate + 1, rate.standard_error, str(rate)
        (3.0, 0.25, '2 ± 0.25')
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = np.nan) -> Estimate:
        """Return the number."""
        new = super().__new__(cls, value)
        new.standard_error = float(standard_error)
        return new

    def __str__(self) -> str:
        return f"{float(self):.4g} ± {self.standard_error:.2g}"

    def __repr__(self) -> str:
        return f"Estimate({float(self)!r}, {self.standard_error!r})"


def mean_of(values: NDArray[np.floating]) -> Estimate:
    """Return the mean of independent values, without those that are NaN, and its standard error.

    Example:
        >>> mean_of(np.array([1.0, 3.0, np.nan]))
        Estimate(2.0, 1.0)
    """
    found = values[~np.isnan(values)]
    if len(found) == 0:
        return Estimate(np.nan, np.nan)
    error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.nan
    return Estimate(float(found.mean()), error)


def ratio_of(numerators: NDArray[np.floating], denominators: NDArray[np.floating]) -> Estimate:
    r"""Return :math:`\sum_i a_i / \sum_i b_i` over independent trials, with the jackknife's standard error.

    Example:
        >>> ratio_of(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
        Estimate(0.5, 0.0)
    """
    total, weight, number = numerators.sum(), denominators.sum(), len(numerators)
    if weight == 0:
        return Estimate(np.nan, np.nan)
    rest = weight - denominators
    if number < 2 or not rest.all():
        return Estimate(total / weight, np.nan)
    without = (total - numerators) / rest
    return Estimate(total / weight, float(np.sqrt((number - 1) * without.var())))
