"""Generated data beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.arrays import varies
from pyro_lowrank.plots.figures import share_limits
from pyro_lowrank.plots.recorded import Array, Recorded, as_array, shown
from pyro_lowrank.plots.trajectories import by_rate, plot_raster, plot_traces, spacing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = ("recording", "generated")


def plot_traces_beside(
    axes: Sequence[Axes],
    real: ArrayLike | Recorded,
    generated: ArrayLike,
    *,
    trial: int = 0,
    names: Sequence[str] = (),
    bin_size: float | None = None,
    unit: str | None = None,
    titles: tuple[str, str] = TITLES,
) -> Sequence[Axes]:
    """Draw a trial of a recording and a generated one beside each other, at the same scale.

    Args:
        axes: two, to draw on.
        real: one trial, `time x features`, NaN where missing; or a `Recording`.
        generated: one trial likewise, with the same features.
        trial: which one of a recording.
        names: of the features; those of the recording, or their numbers, if empty.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        unit: of the recording.
        titles: of the axes.

    Raises:
        ValueError: if the features differ.
    """
    told = shown(real, trial, names=names, bin_size=bin_size, unit=unit)
    pair = _pair(told.values, generated)
    # The recording sets the scale: a network that explodes shall look like one.
    spacing = spacing_of(pair[0])
    labels: dict[str, Any] = {"names": told.names, "bin_size": told.bin_size, "unit": told.unit, "spacing": spacing}
    for panel, y, title, color in zip(axes, pair, titles, ("black", "C0"), strict=True):
        plot_traces(panel, y, title=title, color=color, **labels)
    share_limits(axes)
    axes[1].set_ylabel("")
    return axes


def plot_rasters_beside(
    axes: Sequence[Axes],
    real: ArrayLike | Recorded,
    generated: ArrayLike,
    *,
    trial: int = 0,
    bin_size: float | None = None,
    titles: tuple[str, str] = TITLES,
) -> Sequence[Axes]:
    """Draw the spikes of a recorded trial and of a generated one beside each other, units by their recorded rate.

    Args:
        axes: two, to draw on.
        real: counts of one trial, `time x features`, NaN where missing; or a `Recording`.
        generated: counts of one trial likewise, with the same features.
        trial: which one of a recording.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        titles: of the axes.

    Raises:
        ValueError: if the features differ.
    """
    told = shown(real, trial, bin_size=bin_size)
    pair = _pair(told.values, generated)
    order = by_rate(pair[0])
    for panel, y, title, color in zip(axes, pair, titles, ("black", "C0"), strict=True):
        plot_raster(panel, y, order=order, bin_size=told.bin_size, title=title, color=color)
    share_limits(axes)
    axes[1].set_ylabel("")
    return axes


def plot_spectra(
    axes: Axes,
    recordings: Mapping[str, ArrayLike],
    *,
    bin_size: float = 1.0,
    segment: int = 256,
    unit: str = "a.u.",
    title: str = "",
) -> Axes:
    """Draw power spectral densities: the median over features, and the band of the middle half of them.

    Args:
        axes: to draw on.
        recordings: by name, `trials x time x features` or `time x features`, without missing entries.
        bin_size: seconds per time bin.
        segment: time bins of a segment of Welch's method, at most those of a trial.
        unit: of the recordings.
        title: of the axes.

    Raises:
        ValueError: if an entry is missing.
    """
    from scipy.signal import welch

    for number, (name, recording) in enumerate(recordings.items()):
        y = as_array(recording)
        y = y if y.ndim == 3 else y[np.newaxis]
        if np.isnan(y).any():
            raise ValueError(f"The spectrum of {name!r} cannot leave out missing entries: pass stretches without gaps.")
        frequencies, power = welch(y, fs=1 / bin_size, nperseg=min(segment, y.shape[1]), axis=1)
        # Frequency zero is the mean that Welch's method takes out, and has no place on a logarithmic axis.
        middle = np.quantile(power.mean(0)[1:], [0.25, 0.5, 0.75], axis=1)
        color = "black" if number == 0 else f"C{number - 1}"
        axes.fill_between(frequencies[1:], middle[0], middle[2], color=color, alpha=0.2, linewidth=0)
        axes.plot(frequencies[1:], middle[1], color=color, linewidth=1.2, label=name)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="frequency (Hz)", ylabel=f"power ({unit}² / Hz), features")
    axes.margins(x=0)
    axes.legend(frameon=False, fontsize="small")
    return axes


def plot_agreement(
    axes: Axes,
    real: ArrayLike,
    generated: ArrayLike,
    *,
    what: str = "",
    log: bool = False,
    color: str = "C0",
) -> Axes:
    """Draw one statistic of generated data over that of real ones, with the line on which both are the same.

    For mean rates, intervals and their variation one dot is a feature. Of two symmetric matrices, such as pairwise
    correlations, the entries above the diagonal are drawn: one dot is a pair.

    Args:
        axes: to draw on.
        real: of any shape; what is NaN in either is left out.
        generated: of the same shape.
        what: the statistic, with its unit.
        log: whether both axes are logarithmic; what is not above zero is left out then.
        color: of the dots.

    Raises:
        ValueError: if the shapes differ, or nothing is left.
    """
    a, b = as_array(real), as_array(generated)
    if a.shape != b.shape:
        raise ValueError(f"Both must have the same shape, got {a.shape} and {b.shape}.")
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.allclose(a, a.T, equal_nan=True):
        above = np.triu_indices(len(a), 1)
        a, b = a[above], b[above]
    there = np.isfinite(a) & np.isfinite(b) & (not log or (a > 0) & (b > 0))
    a, b = a[there], b[there]
    if not len(a):
        raise ValueError("There is no entry that both have.")
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if log:
        room = (high / low) ** 0.05
        ends = [low / room, high * room]
        axes.set(xscale="log", yscale="log")
        _label_few(axes)
    else:
        room = 0.05 * (high - low or 1.0)
        ends = [low - room, high + room]
    axes.plot(ends, ends, color="0.5", linewidth=0.8, zorder=0)
    # Many dots shall not merge into one blot.
    alpha = float(np.clip(60 / len(a), 0.15, 0.8))
    axes.plot(a, b, "o", color=color, markersize=4, markeredgewidth=0, alpha=alpha)
    both_vary = len(a) > 1 and all(varies(values.min(), values.max()) for values in (a, b))
    told = f"r = {np.corrcoef(a, b)[0, 1]:.2f}, " if both_vary else ""
    axes.text(0.04, 0.96, f"{told}n = {len(a)}", transform=axes.transAxes, va="top", fontsize="small")
    axes.set(xlim=ends, ylim=ends, aspect="equal", title=what, xlabel="recording", ylabel="generated")
    return axes


def _label_few(axes: Any) -> None:
    """Label 1, 2 and 5 of each power of ten in plain numbers; the default writes over itself below two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _pair(real: ArrayLike, generated: ArrayLike) -> tuple[Array, Array]:
    pair = as_array(real), as_array(generated)
    if any(y.ndim != 2 for y in pair) or pair[0].shape[1] != pair[1].shape[1]:
        raise ValueError(
            f"Both must be one trial, time x features, with the same features; got {pair[0].shape} and {pair[1].shape}."
        )
    return pair
