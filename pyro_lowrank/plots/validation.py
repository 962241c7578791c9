"""Models compared by what they say of held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_by_rank(
    axes: Axes,
    ranks: Sequence[int],
    values: Sequence[float],
    *,
    label: str = "",
    color: str = "C0",
    title: str = "",
    references: Mapping[str, float] = MappingProxyType({}),
) -> Axes:
    """Draw a number for each rank, with its standard error if it has one, and a ring around the highest.

    Args:
        axes: to draw on.
        ranks: of the models.
        values: one per rank, NaN where there is none; those of type `metrics.Estimate` have standard errors.
        label: what they are, with the unit.
        color: of the line.
        title: of the axes.
        references: of what has no rank, by name; the highest is drawn as a line.

    Raises:
        ValueError: if there is not one value per rank.
    """
    if len(ranks) != len(values):
        raise ValueError(f"`values` must be one per rank, {len(ranks)}, got {len(values)}.")
    order = np.argsort(ranks)
    x, y = np.asarray(ranks)[order], np.asarray(values, dtype=np.float64)[order]
    errors = np.array([getattr(value, "standard_error", 0.0) for value in values])[order]
    axes.errorbar(x, y, np.nan_to_num(errors), color=color, marker="o", markersize=5, capsize=3, linewidth=1.4)
    if not np.isnan(y).all():
        best = int(np.nanargmax(y))
        axes.plot(x[best], y[best], "o", color=color, markersize=11, markerfacecolor="none", label="highest")
    there = {name: value for name, value in references.items() if value == value}
    if there:
        highest = max(there, key=lambda name: there[name])
        axes.axhline(there[highest], color="C3", linestyle="--", linewidth=1.2, label=f"{highest}, no latents")
    if there or not np.isnan(y).all():
        axes.legend(frameon=False, loc="best")
    axes.set_xticks(x)
    axes.set(title=title, xlabel="rank", ylabel=label)
    axes.margins(x=0.1)
    return axes


def plot_by_setting(
    axes: Axes, points: Sequence[Mapping[str, Any]], values: Sequence[float], by: str, *, label: str = ""
) -> Axes:
    """Draw a number for each point of a grid against one of its settings, a line for each choice of the others.

    Args:
        axes: to draw on.
        points: settings by name.
        values: one per point, NaN where there is none; `metrics.Estimate`s have standard errors.
        by: the setting; numbers stand where they are, all else evenly.
        label: what the values are, with the unit.
    """
    choices = list(dict.fromkeys(point[by] for point in points))
    is_number = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    place = {choice: float(choice) if is_number else index for index, choice in enumerate(choices)}
    lines: dict[str, list[int]] = {}
    for index, point in enumerate(points):
        others = ", ".join(f"{name} {value}" for name, value in point.items() if name != by)
        lines.setdefault(others, []).append(index)
    for others, members in lines.items():
        members.sort(key=lambda index: place[points[index][by]])
        errors = [getattr(values[index], "standard_error", 0.0) for index in members]
        x = np.array([place[points[index][by]] for index in members])
        y = np.array([float(values[index]) for index in members])
        axes.errorbar(x, y, np.nan_to_num(errors), marker="o", markersize=5, capsize=3, linewidth=1.4, label=others)
    axes.set_xticks(sorted(place.values()), [str(choice) for choice in sorted(choices, key=lambda c: place[c])])
    axes.set(xlabel=by, ylabel=label)
    if len(lines) > 1:
        axes.legend(frameon=False, loc="best")
    axes.margins(x=0.1)
    return axes
