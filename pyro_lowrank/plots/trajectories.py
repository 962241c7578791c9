"""Latents and recordings over time."""

from __future__ import annotations

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
    axes: Axes, y: Array, *, bin_size: float | None = None, title: str = "", unit: str = "a.u.", color: str = "C0"
) -> Axes:
    """Draw features over time, one above the other, the first on top.

    Args:
        axes: to draw on.
        y: one trial of a recording, `time x features`.
        bin_size: seconds per time bin; None shows time in bins.
        title: of the axes.
        unit: of the recording.
        color: of the traces.
    """
    times = np.arange(len(y)) * (1.0 if bin_size is None else bin_size)
    spacing = 1.1 * float(np.nanmax(np.nanmax(y, 0) - np.nanmin(y, 0))) or 1.0
    for feature, trace in enumerate(y.T):
        axes.plot(times, trace - feature * spacing, color=color, linewidth=1.0)
    axes.set(title=title, xlabel="time (bins)" if bin_size is None else "time (s)", ylabel=f"features ({unit})")
    axes.margins(x=0)
    return axes
