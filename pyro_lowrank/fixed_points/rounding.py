"""What rounding may do to a result, in one place: every tolerance of the analyzer is one of these times a size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)


def rounding(operations: int) -> float:
    """Return a bound on the relative error of a sum of that many rounded terms, against the sum of their sizes.

    Example::

        >>> rounding(4) == 4 * 2.0**-52
        True
    """
    return operations * EPS


def sizes(values: Any) -> float:
    """Return the largest absolute entry, 0 if there is none."""
    return float(np.abs(values).max(initial=0))


def inverses(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of each matrix, NaN where it is singular to rounding, `... x rank x rank`."""
    with np.errstate(all="ignore"):
        try:
            return np.asarray(np.linalg.inv(matrices), dtype=np.float64)
        except np.linalg.LinAlgError:
            if matrices.ndim == 2:
                return np.full(matrices.shape, np.nan)
            return np.array([inverses(matrix) for matrix in matrices])
