"""Inferred rates, with the spikes that were recorded on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.plots.recorded import Recorded, as_array, shown, time_label
from pyro_lowrank.plots.trajectories import draw_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rates_over_spikes(
    axes: Axes,
    spikes: ArrayLike | Recorded,
    rates: ArrayLike,
    *,
    trial: int = 0,
    order: Sequence[int] | None = None,
    bin_size: float | None = None,
    title: str = "",
) -> Axes:
    """Draw rates as colours, a row per unit, and a tick for every time bin with spikes.

    Args:
        axes: to draw on.
        spikes: counts of one trial, `time x units`, NaN where missing; or a `Recording`.
        rates: expected counts per time bin, `time x units`, such as `posterior.predict(posterior.smooth(100))[trial]`.
        trial: which one of a recording.
        order: units from the top; by mean rate, the highest on top, if None.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        title: of the axes.

    Raises:
        ValueError: if spikes and rates differ in shape.
    """
    counts = shown(spikes, trial, bin_size=bin_size)
    expected = as_array(rates)[: len(counts.values)]
    if expected.shape != counts.values.shape:
        raise ValueError(f"`spikes` and `rates` must have the same shape, got {counts.values.shape}, {expected.shape}.")
    rows = np.argsort(-np.nan_to_num(expected).mean(0), kind="stable") if order is None else np.asarray(order)
    width = 1.0 if counts.bin_size is None else counts.bin_size
    unit = "spikes per bin" if counts.bin_size is None else "Hz"
    image = axes.imshow(
        expected[:, rows].T / width,
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        vmin=0.0,
        vmax=float(np.nanquantile(expected, 0.995)) / width or 1.0,
        extent=(0.0, len(expected) * width, len(rows) - 0.5, -0.5),
    )
    draw_ticks(axes, counts.values[:, rows], width=width, color="black", faintest=0.75)
    axes.figure.colorbar(image, ax=axes, label=f"inferred rate ({unit})", pad=0.02)
    axes.set(title=title, xlabel=time_label(counts.bin_size), ylabel="unit, by rate" if order is None else "unit")
    axes.set(xlim=(0, len(expected) * width), ylim=(len(rows) - 0.5, -0.5))
    return axes
