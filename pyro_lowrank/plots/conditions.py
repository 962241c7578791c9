"""Trials by condition: latents in the plane or in space, and mean activity over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import as_labels, missing_labels
from pyro_lowrank.plots.recorded import Array, Recorded, as_array, is_recording, time_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More lines than this hide each other; trials are taken evenly from each condition.
_MOST_TRIALS = 60
# Of so many conditions the legend would be longer than the picture.
_MOST_NAMED = 12


def plot_latents_by_condition(
    axes: Any,
    z: ArrayLike,
    conditions: Sequence[Any] | NDArray[np.generic] | None = None,
    *,
    dims: Sequence[int] | None = None,
    title: str = "",
) -> Any:
    """Draw latents of trials, thin, and the mean of each condition, thick; a dot is where it begins.

    Args:
        axes: to draw on, flat or in three dimensions (`plr.plots.new_space()[1]`).
        z: latents, `trials x time x rank`, such as `posterior.latents().mean`; NaN where a trial has ended.
        conditions: one label per trial, None or NaN where there is none; one condition if None.
        dims: which latents, two on flat axes and three in space; the first ones if None.
        title: of the axes.

    Raises:
        ValueError: if the latents have another shape or are too few, or there is not one label per trial.
    """
    values, space = as_array(z), hasattr(axes, "get_zlim")
    number = 3 if space else 2
    chosen = list(range(number)) if dims is None else list(dims)
    if values.ndim != 3 or len(chosen) != number or not all(0 <= dim < values.shape[2] for dim in chosen):
        raise ValueError(
            f"{'Three' if space else 'Two'} latents of `z`, trials x time x rank, are drawn on these axes; got shape "
            f"{values.shape} and dims {chosen}."
        )
    groups = groups_of(conditions, len(values))
    each = max(1, _MOST_TRIALS // len(groups))
    for index, (label, rows) in enumerate(groups):
        color, group = _color(index, len(groups)), values[rows][..., chosen]
        for trial in group[np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).astype(int))]:
            axes.plot(*trial.T, color=color, linewidth=0.6, alpha=0.35 if len(group) > 1 else 0.9)
        mean = mean_over_trials(group)
        if len(group) > 1:
            axes.plot(*mean.T, color=color, linewidth=2.0, label=label)
        axes.plot(*mean[:1].T, "o", color=color, markersize=5, markeredgecolor="black", markeredgewidth=0.6)
    labels = [f"latent {dim + 1} (a.u.)" for dim in chosen]
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1], **({"zlabel": labels[2]} if space else {}))
    if 1 < len(groups) <= _MOST_NAMED and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small", loc="best")
    return axes


def plot_psth(
    axes: Axes,
    y: ArrayLike | Recorded,
    conditions: Sequence[Any] | NDArray[np.generic] | None = None,
    *,
    feature: int = 0,
    smoothing: float = 0.0,
    bin_size: float | None = None,
    unit: str | None = None,
    title: str = "",
) -> Axes:
    """Draw the mean of one feature over the trials of each condition, per time bin, with its standard error.

    Args:
        axes: to draw on.
        y: `trials x time x features`, NaN where missing; or a `Recording`, with its conditions.
        conditions: one label per trial, None or NaN where there is none; those of the recording, or one, if None.
        feature: which feature, from 0.
        smoothing: standard deviation in time bins of a Gaussian kernel.
        bin_size: seconds per time bin; that of the recording, or bins, if None.
        unit: of what is drawn; counts of a recording become Hz.
        title: of the axes; the name of the feature if the recording has one.

    Raises:
        ValueError: if there is no such feature, or not one label per trial.
    """
    recording: Any = y if is_recording(y) else None
    values = as_array(y if recording is None else recording.data)
    if values.ndim != 3 or not 0 <= feature < values.shape[2]:
        raise ValueError(f"`y` must be trials x time x features with a feature {feature}, got shape {values.shape}.")
    if recording is not None:
        bin_size = recording.bin_size if bin_size is None else bin_size
        conditions = recording.conditions if conditions is None else conditions
        title = title or recording.feature_names[feature]
        units = set(recording.feature_units)
        if unit is None and units == {"counts"} and bin_size is not None:
            values, unit = values / bin_size, "Hz"
        elif unit is None and len(units) == 1:
            unit = units.pop()
    groups = groups_of(conditions, len(values))
    times = np.arange(values.shape[1]) + 0.5
    times = times * (1.0 if bin_size is None else bin_size)
    for index, (label, rows) in enumerate(groups):
        trials = values[rows, :, feature]
        number = (~np.isnan(trials)).sum(0)
        mean = mean_over_trials(trials)
        error = _spread(trials, mean) / np.sqrt(np.maximum(number, 1))
        mean, error = (_smoothed(one, smoothing) for one in (mean, error))
        color = _color(index, len(groups))
        axes.fill_between(times, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
        axes.plot(times, mean, color=color, linewidth=1.4, label=label)
    axes.set(title=title, xlabel=time_label(bin_size), ylabel="mean" if unit is None else f"mean ({unit})")
    axes.margins(x=0)
    if 1 < len(groups) <= _MOST_NAMED:
        axes.legend(frameon=False, fontsize="small", loc="best")
    return axes


def groups_of(conditions: Any, trials: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Labels, sorted, and the trials of each; trials without a label are left out where others have one."""
    if conditions is None:
        return [("all trials", np.arange(trials))]
    labels = as_labels(conditions)
    if labels.shape != (trials,):
        raise ValueError(f"`conditions` must hold one label for each of {trials} trials, got shape {labels.shape}.")
    without = set(missing_labels(labels))
    found: dict[Any, list[int]] = {}
    for trial, label in enumerate(labels.tolist()):
        if trial not in without:
            found.setdefault(label, []).append(trial)
    if not found:
        return [("all trials", np.arange(trials))]
    ordered = sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    return [(str(label), np.array(rows)) for label, rows in ordered]


def _color(index: int, number: int) -> Any:
    """A colour of ten that differ, or of a circle where there are more conditions."""
    if number <= 10:
        return f"C{index}"
    import matplotlib

    return matplotlib.colormaps["turbo"](0.05 + 0.9 * index / (number - 1))


def mean_over_trials(trials: Array) -> Array:
    """Mean over trials, NaN where none has a number."""
    number = (~np.isnan(trials)).sum(0)
    return np.where(number > 0, np.nansum(trials, 0) / np.maximum(number, 1), np.nan)


def _spread(trials: Array, mean: Array) -> Array:
    """Standard deviation over trials, 0 where fewer than two have a number."""
    number = (~np.isnan(trials)).sum(0)
    return np.where(number > 1, np.sqrt(np.nansum((trials - mean) ** 2, 0) / np.maximum(number - 1, 1)), 0.0)


def _smoothed(values: Array, width: float) -> Array:
    """Weighted means with a Gaussian kernel, over the time bins that have a number."""
    if width <= 0:
        return values
    reach = int(np.ceil(4 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    here = ~np.isnan(values)
    total = np.convolve(np.nan_to_num(values), kernel)[reach : reach + len(values)]
    weight = np.convolve(here.astype(np.float64), kernel)[reach : reach + len(values)]
    return np.where(here, total / np.maximum(weight, 1e-300), np.nan)
