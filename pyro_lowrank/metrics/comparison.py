"""How well one statistic of many features or pairs agrees between real and generated data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.metrics.recordings import largest, scaled


@dataclass(frozen=True)
class Agreement:
    """Of two lists of numbers, entry by entry.

    Attributes:
        correlation: Pearson's; NaN where one of the two does not vary.
        rmse: root of the mean squared difference, in the units of the numbers.
        relative: mean absolute difference over the mean absolute real number.
        number: of entries that both have.
    """

    correlation: float
    rmse: float
    relative: float
    number: int

    def __str__(self) -> str:
        return f"r {self.correlation:.3f}, RMSE {self.rmse:.3g}, off by {100 * self.relative:.1f} % (n={self.number})"


def agreement(real: ArrayLike, generated: ArrayLike) -> Agreement:
    """Compare two arrays of the same shape, entries that are NaN in either left out.

    Of two symmetric matrices, such as those of `pairwise_correlations`, the entries above the diagonal are compared.

    Args:
        real: any shape.
        generated: the same shape.

    Raises:
        ValueError: if the shapes differ, an entry is infinite, or fewer than two entries are left.

    Example:
        >>> print(agreement([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]))
        r 0.982, RMSE 0.577, off by 16.7 % (n=3)
    """
    a, b = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Both must have the same shape, got {a.shape} and {b.shape}.")
    if np.isinf(a).any() or np.isinf(b).any():
        raise ValueError("Both must be finite, or NaN where an entry is to be left out, and there are infinities.")
    if a.ndim == 2 and a.shape[0] == a.shape[1] and all(np.allclose(m, m.T, equal_nan=True) for m in (a, b)):
        above = np.triu_indices(len(a), 1)
        a, b = a[above], b[above]
    there = ~(np.isnan(a) | np.isnan(b))
    a, b = a[there], b[there]
    if len(a) < 2:
        raise ValueError(f"There must be two entries or more that both have, got {len(a)}.")
    # In units of the largest, whose squares can be told from 0 and infinity.
    unit = float(largest(np.stack([a, b]), (0, 1)))
    a, b = a / unit, b / unit
    both = scaled(np.stack([a, b]), 1)
    correlation = float((both[0] * both[1]).mean()) if both.any(1).all() else float("nan")
    size = np.abs(a).mean()
    relative = float(np.abs(a - b).mean() / size) if size > 0 else float("nan")
    return Agreement(correlation, unit * float(np.sqrt(((a - b) ** 2).mean())), relative, len(a))
