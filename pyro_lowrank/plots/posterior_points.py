"""Fixed points of many posterior draws: where they may be, how many there are, and both as an input changes."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import check_share
from pyro_lowrank.plots.branches import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_DOTS = 4000


def plot_sampled_points(axes: Axes, found: Any, *, level: float = 0.9, title: str | None = None) -> Axes:
    """Draw the fixed points of all draws, with a region for each in which it lies with a probability.

    They are drawn by what is recorded at them, in the two leading directions of that, where it is known, otherwise by
    their latents; of a single latent beside how often each draw has them. The regions are those of the most frequent
    number of each kind, normal around the mean.

    Args:
        axes: to draw on.
        found: what `pyro_lowrank.posterior_fixed_points` returns.
        level: probability of the regions.
        title: of the axes; the probabilities of each number of attractors if None.

    Raises:
        ValueError: if no draw has a fixed point, or `level` is no share.
    """
    check_share("level", level)
    places = found.points if found.readouts is None else np.concatenate(found.readouts)
    if not len(places):
        raise ValueError("No draw has an isolated fixed point: there is nothing to draw.")
    centre, directions = _leading(places, 1 if found.points.shape[1] == 1 else 2)
    dots = (places - centre) @ directions.T
    flat = dots.shape[1] == 1
    # Of a single direction the height tells which draw it is of.
    heights = found.sample if flat else dots[:, 1]
    step = -(-len(dots) // _MOST_DOTS)
    for kind in dict.fromkeys(found.stability.tolist()):
        own = np.flatnonzero(found.stability == kind)[::step]
        color = COLORS.get(kind, "0.5")
        axes.scatter(dots[own, 0], heights[own], s=6, alpha=0.35, color=color, linewidths=0, label=kind)
    for point in found.matched():
        place = (point.mean - centre) @ directions.T
        spread = directions @ point.covariance @ directions.T
        _region(axes, place, spread, level, COLORS.get(point.stability, "0.5"))
    shares = "\n".join(f"P({_attractors(n)}) = {share:.2f}" for n, share in found.distribution("attractor").items())
    axes.set(title=shares if title is None else title, xlabel="leading direction of the fixed points (a.u.)")
    axes.set_ylabel("draw" if flat else "second direction (a.u.)")
    _tell_kinds(axes)
    return axes


def _attractors(number: int) -> str:
    return f"{number} attractor{'' if number == 1 else 's'}"


def _tell_kinds(axes: Axes) -> None:
    """Add a legend whose dots can be seen, unlike those of single draws."""
    legend = axes.legend(frameon=False, fontsize="small", markerscale=2.0)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def _leading(places: NDArray[np.float64], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle of points `points x dim` and their leading directions, `directions x dim`."""
    centre = places.mean(0)
    _, _, directions = np.linalg.svd(places - centre, full_matrices=False)
    if len(directions) < number:
        directions = np.eye(places.shape[1])
    # The sign of a direction is nobody's choice: the largest entry is positive.
    chosen = directions[:number]
    signs = np.sign(chosen[np.arange(len(chosen)), np.abs(chosen).argmax(1)])
    return centre, chosen * signs[:, np.newaxis]


def _region(axes: Axes, place: NDArray[np.float64], spread: NDArray[np.float64], level: float, color: Any) -> None:
    """Draw the region of a normal law: an ellipse, or an interval of a single direction."""
    if len(place) == 1:
        half = NormalDist().inv_cdf(0.5 + level / 2) * float(np.sqrt(spread[0, 0]))
        axes.axvspan(place[0] - half, place[0] + half, color=color, alpha=0.15, linewidth=0)
        return
    angle = np.linspace(0, 2 * np.pi, 100)
    # The square of the distance from the mean is exponential in two dims.
    radius = np.sqrt(-2 * np.log(1 - level))
    values, vectors = np.linalg.eigh(spread)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)])
    ring = place[:, np.newaxis] + vectors @ (np.sqrt(np.maximum(values, 0))[:, np.newaxis] * circle)
    axes.plot(*ring, color=color, linewidth=1.2)


def plot_sampled_branches(
    axes: Axes,
    path: Any,
    inputs: ArrayLike,
    *,
    level: float = 0.9,
    label: str = "input (a.u.)",
    title: str = "",
) -> Axes:
    """Draw the fixed points of all draws over an input, with bands, and the probability of each number of attractors.

    Dots are the points of single draws, in the leading direction of what is recorded at them. Lines and bands are the
    median and the interval of each point of the most frequent number of each kind. Orange bands tell where attractors
    appear, and where they vanish.

    Args:
        axes: to draw on.
        path: what `pyro_lowrank.fixed_points_along_input` returns.
        inputs: one number for each input, such as its strength, `inputs`.
        level: probability of the bands.
        label: what the inputs are, with the unit.
        title: of the axes.

    Raises:
        ValueError: if there is not one number per input, or no draw has a fixed point.
    """
    check_share("level", level)
    strengths = np.asarray(inputs, dtype=np.float64)
    if strengths.shape != (len(path.results),):
        raise ValueError(f"`inputs` must hold one number for each of {len(path.results)}, got {strengths.shape}.")
    whole = [result.points if result.readouts is None else np.concatenate(result.readouts) for result in path.results]
    if not sum(map(len, whole)):
        raise ValueError("No draw has an isolated fixed point: there is nothing to draw.")
    centre, directions = _leading(np.concatenate(whole), 1)
    seen: set[str] = set()
    tail = (1 - level) / 2
    for strength, result, places in zip(strengths, path.results, whole, strict=True):
        heights = ((places - centre) @ directions.T)[:, 0]
        for kind in dict.fromkeys(result.stability.tolist()):
            own = heights[result.stability == kind]
            color, told = COLORS.get(kind, "0.5"), None if kind in seen else kind
            axes.scatter(
                np.full(len(own), strength), own, s=5, alpha=0.25, color=color, linewidths=0, label=told, zorder=1
            )
            seen.add(kind)
        for point in result.matched() if len(places) else ():
            drawn = ((point.places - centre) @ directions.T)[:, 0]
            low, middle, high = np.quantile(drawn, [tail, 0.5, 1 - tail])
            color = COLORS.get(point.stability, "0.5")
            axes.plot([strength, strength], [low, high], color=color, linewidth=3, alpha=0.5, zorder=2)
            axes.plot(strength, middle, "_", color=color, markersize=9, zorder=3)
    counts = np.stack([result.counts_of("attractor") for result in path.results])
    # Where attractors appear as the input grows, and where they vanish.
    for step, _ in (np.nonzero(counts[1:] > counts[:-1]), np.nonzero(counts[1:] < counts[:-1])):
        if len(step):
            low, high = np.quantile(0.5 * (strengths[step] + strengths[step + 1]), [tail, 1 - tail])
            axes.axvspan(low, high, color="tab:orange", alpha=0.15, linewidth=0, zorder=0)
    axes.set(title=title, xlabel=label, ylabel="leading direction of the fixed points (a.u.)")
    _tell_kinds(axes)
    return axes


def plot_number_of_attractors(
    axes: Axes, path: Any, inputs: ArrayLike, *, label: str = "input (a.u.)", title: str = ""
) -> Axes:
    """Draw the probability of each number of attractors over an input.

    Args:
        axes: to draw on.
        path: what `pyro_lowrank.fixed_points_along_input` returns.
        inputs: one number for each input, `inputs`.
        label: what the inputs are, with the unit.
        title: of the axes.

    Raises:
        ValueError: if there is not one number per input.
    """
    strengths = np.asarray(inputs, dtype=np.float64)
    if strengths.shape != (len(path.results),):
        raise ValueError(f"`inputs` must hold one number for each of {len(path.results)}, got {strengths.shape}.")
    for number, shares in path.probabilities("attractor").items():
        axes.plot(strengths, shares, ".-", label=_attractors(number))
    axes.set(title=title, xlabel=label, ylabel="probability", ylim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize="small")
    return axes
