"""Making and saving a figure, without a window and without pyplot's global state."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pyro_lowrank.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure and its array of axes, `rows x columns`.

    Args:
        rows: of axes.
        columns: of axes.
        width: in inches.
        height: in inches.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed, with how to get it.
    """
    figure = require("matplotlib.figure", "plot", "A figure").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write a figure to a file of the kind that its name ends in, or to an open one as PNG, at 150 dots per inch."""
    figure.savefig(os.fspath(path) if isinstance(path, str | os.PathLike) else path, dpi=150)


def share_limits(axes: Iterable[Any]) -> None:
    """Give axes that stand side by side the same limits, wide enough for all of them; y may run downwards.

    Args:
        axes: in any order or shape, flat or in three dimensions.
    """
    panels = np.asarray(axes, dtype=object).ravel().tolist()
    spatial = all(hasattr(panel, "get_zlim") for panel in panels)
    for name in ("xlim", "ylim", *(["zlim"] if spatial else [])):
        ends = np.array([getattr(panel, f"get_{name}")() for panel in panels])
        turned = ends[0, 0] > ends[0, 1]
        limits = (ends.max(), ends.min()) if turned else (ends.min(), ends.max())
        for panel in panels:
            getattr(panel, f"set_{name}")(*limits)
