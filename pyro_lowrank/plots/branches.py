"""Fixed points as the input to a network changes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.plots.phase import MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {name: style["facecolor" if name != "saddle" else "edgecolor"] for name, style in MARKERS.items()} | {
    "repeller": "0.6"
}
"""Colour of the line of each kind of fixed point."""


class Followed(Protocol):
    """What is drawn: fixed points as `pyro_lowrank.fixed_points.continuation` joins them."""

    @property
    def results(self) -> Any:
        """Fixed points at each input, each with `points` and `stability`."""

    @property
    def branches(self) -> Any:
        """Number of the branch that each fixed point is on, for each input."""

    @property
    def events(self) -> Any:
        """Where branches begin, end or change stability."""


def plot_branches(
    axes: Axes, path: Followed, inputs: ArrayLike, *, latent: int = 0, label: str = "input (a.u.)", title: str = ""
) -> Axes:
    """Draw one latent of every fixed point over the input, a line per branch, in the colour of its stability.

    Attractors are solid, all others dashed; crosses stand where branches begin or end.

    Args:
        axes: to draw on.
        path: the fixed points.
        inputs: one number for each input, such as its strength, `inputs`.
        latent: which latent, from 0.
        label: what the inputs are, with the unit.
        title: of the axes.

    Raises:
        ValueError: if there is not one number per input, or no such latent.
    """
    strengths = np.asarray(inputs, dtype=np.float64)
    if strengths.shape != (len(path.results),):
        raise ValueError(f"`inputs` must hold one number for each of {len(path.results)}, got {strengths.shape}.")
    rank = path.results[0].points.shape[1]
    if not 0 <= latent < rank:
        raise ValueError(f"`latent` must be from 0 to {rank - 1}, got {latent}.")
    seen: set[str] = set()
    for branch in range(1 + max(int(numbers.max(initial=-1)) for numbers in path.branches)):
        x, heights, kinds = _branch(path, strengths, branch, latent)
        # A line for each stretch of one stability, which joins on to the next.
        edges = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
        for begin, end in pairwise(edges):
            kind, piece = str(kinds[begin]), slice(begin, min(end + 1, len(kinds)))
            style = "solid" if kind == "attractor" else "dashed"
            told = None if kind in seen else kind
            marker = "o" if end - begin == 1 else ""
            axes.plot(
                x[piece],
                heights[piece],
                color=COLORS[kind],
                linestyle=style,
                linewidth=1.6,
                label=told,
                marker=marker,
                markersize=3,
            )
            seen.add(kind)
    for event in path.events:
        if event.kind != "changes":
            axes.plot(_place(event, strengths), event.point[latent], "x", color="0.4")
    axes.set(title=title, xlabel=label, ylabel=f"latent {latent + 1} of the fixed points (a.u.)")
    axes.margins(x=0)
    if seen:
        axes.legend(frameon=False, fontsize="small")
    return axes


def _branch(
    path: Followed, strengths: NDArray[np.float64], number: int, latent: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
    """At which inputs a branch was found, from its begin to its end, where, and its stability there."""
    rows = [
        (strengths[step], result.points[row, latent], str(result.stability[row]))
        for step, (result, numbers) in enumerate(zip(path.results, path.branches, strict=True))
        for row in np.flatnonzero(numbers == number)
    ]
    for event in (event for event in path.events if event.branch == number and event.kind != "changes"):
        end = (_place(event, strengths), event.point[latent])
        if event.kind == "appears":
            rows.insert(0, (*end, rows[0][2]))
        else:
            rows.append((*end, rows[-1][2]))
    x, heights, kinds = zip(*rows, strict=True)
    return np.array(x), np.array(heights), np.array(kinds)


def _place(event: Any, strengths: NDArray[np.float64]) -> float:
    here, there = strengths[event.step : event.step + 2]
    return float(here + event.fraction * (there - here))
