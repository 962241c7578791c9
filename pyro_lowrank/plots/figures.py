"""Making and saving a figure, without a window and without pyplot's global state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

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
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Figures need matplotlib, which is not installed: pip install "pyro-lowrank[plot]".', name=error.name
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write a figure to a file of the kind that its name ends in, or to an open one as PNG, at 150 dots per inch."""
    figure.savefig(os.fspath(path) if isinstance(path, str | os.PathLike) else path, dpi=150)
