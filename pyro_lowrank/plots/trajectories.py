"""Latents and recordings over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating[Any]]


def plot_phase_portrait(axes: Axes, z: Array, *, title: str = "", color: str = "C0") -> Axes:
    """Draw trajectories in the plane of the first two latents, a dot where each begins.

    Args:
        axes: to draw on.
        z: latents, `trials x time x rank`, with a rank of at least 2.
        title: of the axes.
        color: of the trajectories.

    Raises:
        ValueError: if there are fewer than two latents.
    """
    if z.ndim != 3 or z.shape[-1] < 2:
        raise ValueError(f"`z` must be trials x time x rank with a rank of at least 2, got shape {z.shape}.")
    for trial in z:
        axes.plot(trial[:, 0], trial[:, 1], color=color, linewidth=0.8, alpha=0.6)
    axes.plot(z[:, 0, 0], z[:, 0, 1], ".", color="0.25", markersize=5, label="first time bin")
    axes.set(title=title, xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)", aspect="equal")
    return axes


def plot_traces(
    axes: Axes,
    y: Array,
    *,
    names: Sequence[str] = (),
    spacing: float | None = None,
    bin_size: float | None = None,
    unit: str = "a.u.",
    title: str = "",
    color: str = "C0",
) -> Axes:
    """Draw features over time, one above the other, the first on top.

    Args:
        axes: to draw on.
        y: one trial of a recording, `time x features`, NaN where missing.
        names: of the features; their numbers if empty.
        spacing: between two features, in the unit of the recording; the widest one's range if None.
        bin_size: seconds per time bin; None shows time in bins.
        unit: of the recording.
        title: of the axes.
        color: of the traces.

    Raises:
        ValueError: if there is not one name per feature.
    """
    if names and len(names) != y.shape[-1]:
        raise ValueError(f"`names` must be one per feature, {y.shape[-1]}, got {len(names)}.")
    times = np.arange(len(y)) * (1.0 if bin_size is None else bin_size)
    if spacing is None:
        spacing = float(np.nanmax(np.nanmax(y, 0) - np.nanmin(y, 0))) or 1.0
    offsets = -spacing * np.arange(y.shape[-1])
    axes.plot(times, y + offsets, color=color, linewidth=1.0)
    axes.set_yticks(offsets, names or [str(feature) for feature in range(y.shape[-1])])
    axes.set(
        title=title,
        xlabel="time (bins)" if bin_size is None else "time (s)",
        ylabel=f"features, {spacing:.2g} {unit} apart",
    )
    axes.margins(x=0)
    return axes


def plot_raster(
    axes: Axes, spikes: Array, *, bin_size: float | None = None, title: str = "", color: str = "black"
) -> Axes:
    """Draw a tick for every time bin with spikes, one row per unit, the first on top; more spikes are darker.

    Args:
        axes: to draw on.
        spikes: counts of one trial, `time x units`, NaN where missing.
        bin_size: seconds per time bin; None shows time in bins.
        title: of the axes.
        color: of the ticks.

    Raises:
        ValueError: if the counts have another shape.
    """
    counts = np.nan_to_num(np.asarray(spikes, dtype=np.float64))
    if counts.ndim != 2:
        raise ValueError(f"`spikes` must be time x units, of one trial, got shape {counts.shape}.")
    width = 1.0 if bin_size is None else bin_size
    most = max(counts.max(initial=0.0), 1.0)
    for number in np.unique(counts[counts > 0]):
        times, units = np.nonzero(counts == number)
        axes.vlines(
            (times + 0.5) * width, units - 0.42, units + 0.42, color=color, linewidth=0.9, alpha=(number / most) ** 0.5
        )
    axes.set(xlim=(0, len(counts) * width), ylim=(counts.shape[1] - 0.5, -0.5), title=title)
    axes.set(xlabel="time (bins)" if bin_size is None else "time (s)", ylabel="unit")
    return axes
