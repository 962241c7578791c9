"""Latents and recordings over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.plots.recorded import Array, Recorded, shown, time_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Units as MNE has them, far larger than what is measured.
_WITH_PREFIX = ("V", "T", "A", "M")
_PREFIXES = {0: "", -3: "m", -6: "µ", -9: "n", -12: "p", -15: "f"}


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
    y: ArrayLike | Recorded,
    *,
    trial: int = 0,
    names: Sequence[str] = (),
    spacing: float | None = None,
    bin_size: float | None = None,
    unit: str | None = None,
    title: str = "",
    color: str = "C0",
    label: str | None = None,
) -> Axes:
    """Draw features over time, one above the other, the first on top.

    Args:
        axes: to draw on.
        y: one trial, `time x features`, NaN where missing; or a `Recording`, with its names and units.
        trial: which one of a recording.
        names: of the features; those of the recording, or their numbers, if empty.
        spacing: between two features, in the unit of the recording; the widest one's range if None.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        unit: of the recording.
        title: of the axes.
        color: of the traces.
        label: of all of them, for a legend.

    Raises:
        ValueError: if there is not one name per feature.
    """
    values, names, bin_size, unit = shown(y, trial, names=names, bin_size=bin_size, unit=unit)
    if names and len(names) != values.shape[-1]:
        raise ValueError(f"`names` must be one per feature, {values.shape[-1]}, got {len(names)}.")
    times = np.arange(len(values)) * (1.0 if bin_size is None else bin_size)
    spacing = spacing_of(values) if spacing is None else spacing
    offsets = -spacing * np.arange(values.shape[-1])
    lines = axes.plot(times, values + offsets, color=color, linewidth=1.0)
    lines[0].set_label(label)
    axes.set_yticks(offsets, names or [str(feature) for feature in range(values.shape[-1])])
    axes.set(title=title, xlabel=time_label(bin_size), ylabel=f"features, {_quantity(spacing, unit)} apart")
    axes.margins(x=0)
    return axes


def _quantity(value: float, unit: str) -> str:
    """Return a value in words: volts of electrodes and teslas of MEG with the prefix that keeps numbers short."""
    if unit not in _WITH_PREFIX or value <= 0:
        return f"{value:.2g} {unit}"
    exponent = min(max(3 * math.floor(math.log10(value) / 3), -15), 0)
    return f"{value / 10.0**exponent:.3g} {_PREFIXES[exponent]}{unit}"


def spacing_of(values: Array) -> float:
    """Return the range of the feature that varies most: so far apart, no two traces meet."""
    return float(np.nanmax(np.nanmax(values, 0) - np.nanmin(values, 0))) or 1.0


def plot_raster(
    axes: Axes,
    spikes: ArrayLike | Recorded,
    *,
    trial: int = 0,
    order: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    bin_size: float | None = None,
    title: str = "",
    color: str = "black",
) -> Axes:
    """Draw a tick for every time bin with spikes, one row per unit, the first on top; more spikes are darker.

    Args:
        axes: to draw on.
        spikes: counts of one trial, `time x units`, NaN where missing; or a `Recording`.
        trial: which one of a recording.
        order: units from the top, such as `by_rate` returns them; as they come if None.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        title: of the axes.
        color: of the ticks.

    Raises:
        ValueError: if the counts have another shape.
    """
    told = shown(spikes, trial, bin_size=bin_size)
    counts = told.values if order is None else told.values[:, np.asarray(order)]
    width = 1.0 if told.bin_size is None else told.bin_size
    draw_ticks(axes, counts, width=width, color=color)
    axes.set(xlim=(0, len(counts) * width), ylim=(counts.shape[1] - 0.5, -0.5), title=title)
    axes.set(xlabel=time_label(told.bin_size), ylabel="unit" if order is None else "unit, by rate")
    return axes


def by_rate(spikes: ArrayLike) -> NDArray[np.intp]:
    """Return the units of `time x units` by their number of spikes, the most active first."""
    return np.argsort(-np.nansum(np.asarray(spikes, dtype=np.float64), axis=0), kind="stable")


def draw_ticks(axes: Axes, counts: Array, *, width: float, color: str, faintest: float = 0.55) -> None:
    """Draw a tick for every time bin with spikes; a single spike is never fainter than `faintest`."""
    counts = np.nan_to_num(counts)
    most = max(counts.max(initial=0.0), 1.0)
    for number in np.unique(counts[counts > 0]):
        times, units = np.nonzero(counts == number)
        alpha = faintest + (1 - faintest) * (number / most)
        axes.vlines(
            (times + 0.5) * width, units - 0.42, units + 0.42, color=color, linewidth=0.9, alpha=min(1.0, alpha)
        )
