"""What a filter or smoother found, over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.plots.recorded import Array, as_array, time_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Banded(Protocol):
    """Smoothed latents with bands: what `posterior.latents()` returns, `trials x time x rank` each."""

    @property
    def mean(self) -> Any:
        """Means."""

    @property
    def lower(self) -> Any:
        """Lower ends."""

    @property
    def upper(self) -> Any:
        """Upper ends."""

    @property
    def lengths(self) -> Any:
        """Time bins of each trial."""


def plot_latents(
    axes: Any,
    draws: ArrayLike | Banded,
    *,
    trial: int = 0,
    levels: Sequence[float] = (0.5, 0.95),
    truth: ArrayLike | None = None,
    bin_size: float | None = None,
    title: str = "",
) -> Any:
    """Draw the posterior of the latents of one trial: medians, and bands that hold given shares of the draws.

    Args:
        axes: one to draw all latents on, or as many as there are latents, in an array or list.
        draws: of the latents, `draws x time x rank`, such as `posterior.smooth(200)[:, trial]`; or what
            `posterior.latents()` returns: then means, and its bands.
        trial: which one of `posterior.latents()`.
        levels: shares of the draws within the bands.
        truth: the latents that made the data, where they are known, `time x rank`.
        bin_size: seconds per time bin; None shows time in bins.
        title: of the first axes.

    Raises:
        ValueError: if the draws have another shape, there are not as many axes as latents, or a level is no share.
    """
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"`levels` must be shares, above 0 and below 1, got {tuple(levels)}.")
    middle, bands = _bands(draws, trial, levels)
    rank = middle.shape[-1]
    panels = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(panels) not in (1, rank):
        raise ValueError(f"`axes` must be one, or one per latent, {rank}, got {len(panels)}.")
    times = np.arange(len(middle)) * (1.0 if bin_size is None else bin_size)
    single = len(panels) == 1
    for latent in range(rank):
        panel, color = panels[0 if single else latent], f"C{latent}"
        for low, high in bands:
            panel.fill_between(times, low[:, latent], high[:, latent], color=color, alpha=0.25, linewidth=0)
        panel.plot(times, middle[:, latent], color=color, linewidth=1.2, label=f"latent {latent + 1}")
        if truth is not None:
            true = as_array(truth)[:, latent]
            panel.plot(times, true, color="black", linewidth=1.0, linestyle="--", label=None if latent else "truth")
        panel.set_ylabel("latents (a.u.)" if single and rank > 1 else f"latent {latent + 1} (a.u.)")
        panel.margins(x=0)
    if truth is not None or (single and rank > 1):
        # Above the axes: over time there is no empty corner.
        panels[0].legend(frameon=False, fontsize="small", ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    panels[0].set_title(title, loc="left")
    panels[-1].set_xlabel(time_label(bin_size))
    return axes


def _bands(draws: Any, trial: int, levels: Sequence[float]) -> tuple[Array, list[tuple[Array, Array]]]:
    """The middle, `time x rank`, and bands from the widest to the narrowest."""
    if all(hasattr(draws, name) for name in ("mean", "lower", "upper", "lengths")):
        kept = slice(0, int(draws.lengths[trial]))
        mean, lower, upper = (as_array(each[trial, kept]) for each in (draws.mean, draws.lower, draws.upper))
        return mean, [(lower, upper)]
    z = as_array(draws)
    if z.ndim != 3 or z.shape[0] < 2:
        raise ValueError(f"`draws` must be draws x time x rank, of one trial, got shape {z.shape}.")
    ends = [np.quantile(z, [0.5 - level / 2, 0.5 + level / 2], axis=0) for level in sorted(levels, reverse=True)]
    return np.median(z, 0), [(low, high) for low, high in ends]


def plot_ess(
    axes: Axes,
    ess: ArrayLike,
    *,
    num_particles: int,
    ess_threshold: float | None = None,
    bin_size: float | None = None,
    title: str = "",
) -> Axes:
    """Draw the effective sample size over time: of every trial, and the lowest and the median one.

    Args:
        axes: to draw on.
        ess: effective sample sizes, `time x trials`.
        num_particles: number of particles.
        ess_threshold: share of the particles below which a trial resamples; drawn as a line.
        bin_size: seconds per time bin; None shows time in bins.
        title: of the axes.

    Raises:
        ValueError: if the sizes have another shape.
    """
    sizes = as_array(ess)
    if sizes.ndim != 2:
        raise ValueError(f"`ess` must be time x trials, got shape {sizes.shape}.")
    times = np.arange(len(sizes)) * (1.0 if bin_size is None else bin_size)
    if sizes.shape[1] > 1:
        for number, trial in enumerate(sizes.T):
            axes.plot(times, trial, color="0.8", linewidth=0.6, label=None if number else "each trial")
        axes.plot(times, np.median(sizes, 1), color="C2", label="median trial")
    axes.plot(times, sizes.min(1), color="C3", linewidth=1.0, label="lowest trial" if sizes.shape[1] > 1 else None)
    if ess_threshold is not None:
        axes.axhline(ess_threshold * num_particles, color="black", linestyle=":", label="resamples below")
    axes.set_yscale("log")
    axes.set_ylim(0.9, 1.1 * num_particles)
    axes.set(xlabel=time_label(bin_size))
    axes.set_ylabel(f"effective particles (of {num_particles:,})")
    axes.set_title(title, loc="left")
    axes.margins(x=0)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small", ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return axes


def plot_calibration(axes: Axes, pit: ArrayLike, *, num_bins: int = 20, title: str = "") -> Axes:
    """Draw a histogram of probability integral transforms, and the band that a calibrated model stays in.

    A hill says that predictions are too wide, a valley that they are too narrow, a slope that they are biased.

    Args:
        axes: to draw on.
        pit: numbers between 0 and 1, of any shape, NaN where missing; see `SMCPosterior.prequential_pit`.
        num_bins: of the histogram.
        title: of the axes.

    Raises:
        ValueError: if a number is not between 0 and 1.
    """
    values = as_array(pit).ravel()
    values = values[~np.isnan(values)]
    if len(values) == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError("`pit` must hold numbers between 0 and 1.")
    counts = np.histogram(values, bins=num_bins, range=(0, 1))[0]
    edges = np.linspace(0, 1, num_bins + 1)
    axes.stairs(counts / len(values) * num_bins, edges, fill=True, color="C0", alpha=0.6)
    # Two standard deviations of a binomial count.
    spread = 2 * np.sqrt((num_bins - 1) / len(values))
    axes.axhspan(max(0.0, 1 - spread), 1 + spread, color="0.5", alpha=0.35, linewidth=0, label="calibrated, 95 %")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(title=title, xlabel="predicted probability of a lower value", ylabel="density", xlim=(0, 1))
    axes.set_ylim(0, 1.25 * max(1 + spread, float(counts.max()) / len(values) * num_bins))
    axes.legend(frameon=False, fontsize="small", loc="upper right")
    return axes
