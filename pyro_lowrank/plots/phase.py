"""Fixed points in the flow around them: on a line, in the plane and in space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.plots.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

MARKERS = {
    "attractor": {"marker": "o", "facecolor": "black", "edgecolor": "black"},
    "saddle": {"marker": "D", "facecolor": "white", "edgecolor": "tab:red"},
    "repeller": {"marker": "o", "facecolor": "white", "edgecolor": "black"},
    "marginal": {"marker": "s", "facecolor": "tab:orange", "edgecolor": "black"},
    "boundary": {"marker": "^", "facecolor": "tab:purple", "edgecolor": "black"},
}
"""How each kind of fixed point is drawn."""


class Analysed(Protocol):
    """What is drawn: fixed points as `pyro_lowrank.fixed_points.find_fixed_points` returns them."""

    @property
    def points(self) -> Array:
        """`points x rank`."""

    @property
    def stability(self) -> NDArray[np.str_]:
        """A label each."""

    @property
    def sets(self) -> Any:
        """Lines and planes of fixed points, each with `vertices` and `stability`."""

    def step(self, z: Array) -> Array:
        """Where the network is one step after z."""


def new_space(*, width: float = 6, height: float = 5) -> tuple[Figure, Any]:
    """Return a figure and its axes in three dimensions.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed, with how to get it.
    """
    figure, axes = new_figure(1, 1, width=width, height=height)
    axes[0, 0].remove()
    return figure, figure.add_subplot(projection="3d")


def plot_phase_line(axes: Axes, result: Analysed, *, limits: Array | None = None, title: str = "") -> Axes:
    """Draw the step F(z) - z of a network of rank 1 over z; fixed points are where it is zero.

    Args:
        axes: to draw on.
        result: the fixed points.
        limits: lowest and highest z, `2 x 1`; around the fixed points if None.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 1.
    """
    low, high = _limits(result, 1, limits)
    z = np.linspace(low, high, 2001)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.plot(z[:, 0], (result.step(z) - z)[:, 0], color="C0")
    for piece in result.sets:
        axes.plot(piece.vertices[:, 0], np.zeros(len(piece.vertices)), color="tab:green", linewidth=3)
    _scatter(axes, np.concatenate([result.points, np.zeros_like(result.points)], 1), result.stability)
    axes.set(title=title, xlabel="latent (a.u.)", ylabel="change per time bin (a.u.)", xlim=(low[0], high[0]))
    return axes


def plot_phase_plane(
    axes: Axes,
    result: Analysed,
    *,
    limits: Array | None = None,
    nullclines: bool = True,
    title: str = "",
) -> Axes:
    """Draw the flow of a network of rank 2, its nullclines and its fixed points by stability.

    A streamline follows F(z) - z, the change per time bin; on a nullcline one latent does not change.

    Args:
        axes: to draw on.
        result: the fixed points.
        limits: lowest and highest corner, `2 x 2`; around the fixed points if None.
        nullclines: whether these are drawn.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 2.
    """
    low, high = _limits(result, 2, limits)
    x, y = (np.linspace(low[i], high[i], 200) for i in (0, 1))
    z = np.stack(np.meshgrid(x, y), -1)
    change = result.step(z) - z
    axes.streamplot(x, y, change[..., 0], change[..., 1], density=1.3, linewidth=0.7, arrowsize=0.8, color="0.6")
    if nullclines:
        for i, color in enumerate(("tab:blue", "tab:orange")):
            axes.contour(x, y, change[..., i], levels=[0.0], colors=[color], linewidths=1.4)
            axes.plot([], [], color=color, linewidth=1.4, label=f"nullcline of latent {i + 1}")
    _draw_sets(axes, result)
    _scatter(axes, result.points, result.stability)
    axes.set(title=title, xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def plot_phase_space(
    axes: Any,
    result: Analysed,
    *,
    limits: Array | None = None,
    num_lines: int = 40,
    num_steps: int = 200,
    seed: int = 0,
    title: str = "",
) -> Any:
    """Draw the fixed points of a network of rank 3 by stability, and lines that follow the flow from random starts.

    Args:
        axes: to draw on, in three dimensions: `new_space()[1]`.
        result: the fixed points.
        limits: lowest and highest corner of the starts, `2 x 3`; around the fixed points if None.
        num_lines: number of flow lines.
        num_steps: time bins that each follows.
        seed: of the starts.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 3.
    """
    low, high = _limits(result, 3, limits)
    z = np.random.default_rng(seed).uniform(low, high, size=(num_lines, 3))
    lines = [z]
    for _ in range(num_steps):
        lines.append(result.step(lines[-1]))
    room = high - low
    for line in np.stack(lines, 1):
        # Lines that run away would make all others small.
        outside = (line < low - 0.2 * room) | (line > high + 0.2 * room)
        gone = np.flatnonzero(outside.any(1))
        line = line[: gone[0]] if len(gone) else line
        axes.plot(line[:, 0], line[:, 1], line[:, 2], color="0.6", linewidth=0.6)
    _draw_sets(axes, result)
    _scatter(axes, result.points, result.stability)
    axes.set(title=title, xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)", zlabel="latent 3 (a.u.)")
    if len(result.points) or len(result.sets):
        axes.legend(fontsize="small", loc="upper left", frameon=False)
    return axes


def _draw_sets(axes: Any, result: Analysed) -> None:
    """Draw lines and the borders of planes of fixed points, through where they attract and dashed where they do not."""
    styles = {"attractor": ("-", "lines of attractors"), "others": ("--", "other lines of fixed points")}
    drawn = set()
    for piece in result.sets:
        style, label = styles["attractor" if piece.stability == "attractor" else "others"]
        label = "_nolegend_" if style in drawn else label
        axes.plot(*_around(piece.vertices).T, style, color="tab:green", linewidth=3, label=label)
        drawn.add(style)


def _scatter(axes: Any, points: Array, stability: NDArray[np.str_]) -> None:
    for label, style in MARKERS.items():
        chosen = points[stability == label]
        if len(chosen):
            axes.scatter(*chosen.T, **style, s=40, linewidth=1.2, zorder=5, label=f"{label} ({len(chosen)})")


def _around(corners: Array) -> Array:
    """Corners of a flat convex piece in turn, closed."""
    if len(corners) < 3:
        return corners
    centred = corners - corners.mean(0)
    plane = centred @ np.linalg.svd(centred)[2][:2].T
    turn = corners[np.argsort(np.arctan2(plane[:, 1], plane[:, 0]))]
    return np.concatenate([turn, turn[:1]])


def _long_run(result: Analysed, points: Array) -> Array:
    """Where states from beside some points are after a long time, so that cycles around them are drawn as well."""
    reach = 1 + np.abs(points).max()
    z = np.repeat(points[:8], 4, 0)
    z = z + 0.01 * reach * np.random.default_rng(0).normal(size=z.shape)
    late = []
    for step in range(2000):
        z = result.step(z)
        z = z[(np.abs(z) < 100 * reach).all(1)]
        if step >= 1900:
            late.append(z)
    return np.concatenate(late)


def _limits(result: Analysed, rank: int, limits: Array | None) -> tuple[Array, Array]:
    """Lowest and highest corner of what is drawn."""
    if result.points.shape[1] != rank:
        raise ValueError(f"This figure is for networks of rank {rank}, got rank {result.points.shape[1]}.")
    if limits is not None:
        corners = np.asarray(limits, dtype=np.float64)
        if corners.shape != (2, rank) or not (corners[0] < corners[1]).all():
            raise ValueError(f"`limits` must be a lowest and a highest corner, 2 x {rank}, got {corners.tolist()}.")
        return corners[0], corners[1]
    shown = [result.points, *(piece.vertices for piece in result.sets if piece.is_bounded)]
    shown = [points for points in shown if len(points)] or [np.zeros((1, rank))]
    shown.append(_long_run(result, np.concatenate(shown)))
    every = np.concatenate(shown)
    low, high = every.min(0), every.max(0)
    # Room on each side; at least as much as the widest dimension asks for.
    widest = float((high - low).max())
    is_one = widest <= 1e-6 * (1 + float(np.abs(every).max()))
    room = 0.25 * np.maximum(high - low, 0.4 * widest) + (1.0 if is_one else 0.0)
    return low - room, high + room
