"""Models compared by what they say of held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_by_rank(
    axes: Axes, ranks: Sequence[int], values: Sequence[float], *, label: str = "", color: str = "C0", title: str = ""
) -> Axes:
    """Draw a number for each rank, with its standard error if it has one, and a ring around the highest.

    Args:
        axes: to draw on.
        ranks: of the models.
        values: one per rank, NaN where there is none; those of type `metrics.Estimate` have standard errors.
        label: what they are, with the unit.
        color: of the line.
        title: of the axes.

    Raises:
        ValueError: if there is not one value per rank.
    """
    if len(ranks) != len(values):
        raise ValueError(f"`values` must be one per rank, {len(ranks)}, got {len(values)}.")
    order = np.argsort(ranks)
    x, y = np.asarray(ranks)[order], np.asarray(values, dtype=np.float64)[order]
    errors = np.array([getattr(value, "standard_error", 0.0) for value in values])[order]
    axes.errorbar(x, y, np.nan_to_num(errors), color=color, marker="o", markersize=5, capsize=3, linewidth=1.4)
    if not np.isnan(y).all():
        best = int(np.nanargmax(y))
        axes.plot(x[best], y[best], "o", color=color, markersize=11, markerfacecolor="none", label="highest")
        axes.legend(frameon=False, loc="best")
    axes.set_xticks(x)
    axes.set(title=title, xlabel="rank", ylabel=label)
    axes.margins(x=0.1)
    return axes
