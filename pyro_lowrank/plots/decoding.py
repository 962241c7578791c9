"""What was decoded, over what was there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.plots.recorded import as_array, time_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_decoded(
    axes: Axes,
    true: ArrayLike,
    decoded: ArrayLike,
    *,
    bin_size: float | None = None,
    label: str = "behaviour (a.u.)",
    title: str = "",
) -> Axes:
    """Draw a behavioural variable of one or several trials, one after the other, and what was decoded of it.

    Args:
        axes: to draw on.
        true: `time` or `trials x time`, NaN where missing.
        decoded: of the same shape.
        bin_size: seconds per time bin; None shows time in bins.
        label: what it is, with its unit.
        title: of the axes.

    Raises:
        ValueError: if the shapes differ.
    """
    pair = [np.atleast_2d(as_array(value)) for value in (true, decoded)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"`true` and `decoded` must have the same shape, got {pair[0].shape} and {pair[1].shape}.")
    width = 1.0 if bin_size is None else bin_size
    length = pair[0].shape[1]
    for values, color, name in zip(pair, ("black", "C1"), ("true", "decoded"), strict=True):
        # A gap after each trial, so that none seems to run into the next.
        row = np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
        times = (np.arange(length + 1) + length * np.arange(len(values))[:, np.newaxis]).ravel() * width
        axes.plot(times, row, color=color, linewidth=1.2, label=name)
    for trial in range(1, len(pair[0])):
        axes.axvline(trial * length * width, color="0.8", linewidth=0.6, zorder=0)
    following = ", trials one after the other" if len(pair[0]) > 1 else ""
    axes.set(xlabel=time_label(bin_size) + following, ylabel=label)
    axes.set_title(title, loc="left")
    axes.margins(x=0)
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return axes
