"""Fixed points in the flow around them: on a line, in the plane and in space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.recorded import as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Of trajectories of the data, and the most of them: more would hide the flow.
_OF_DATA, _MOST_TRIALS = "tab:cyan", 40
# Fixed points this many times as far from the middle of the data as these reach do not widen the picture.
_NEAR = 3.0

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
    space = figure.add_subplot(projection="3d")
    # At the default zoom the name of the third axis is cut off.
    space.set_box_aspect(None, zoom=0.85)
    return figure, space


def plot_flow(
    axes: Any,
    result: Analysed,
    *,
    trajectories: ArrayLike | None = None,
    limits: Array | None = None,
    title: str = "",
) -> Any:
    """Draw the flow of a network of rank 1, 2 or 3, its fixed points, and trajectories of the data in it.

    Args:
        axes: to draw on; for rank 3 in three dimensions, `plr.plots.new_space()[1]`.
        result: the fixed points, as `dynamics.fixed_points()` returns them.
        trajectories: latents, `trials x time x rank`, such as `posterior.latents().mean`.
        limits: lowest and highest corner, `2 x rank`; around trajectories and fixed points if None.
        title: of the axes.

    Raises:
        ValueError: if the rank is above 3, or the trajectories or axes are of another one.
    """
    rank = result.points.shape[1]
    if rank > 3:
        raise ValueError(f"Flows of rank 1, 2 and 3 can be drawn, got rank {rank}.")
    if (rank == 3) != hasattr(axes, "get_zlim"):
        needed = "axes in space, `new_space()[1]`" if rank == 3 else "flat axes"
        raise ValueError(f"A flow of rank {rank} needs {needed}.")
    draw: Any = (plot_phase_line, plot_phase_plane, plot_phase_space)[rank - 1]
    return draw(axes, result, trajectories=trajectories, limits=limits, title=title)


def plot_phase_line(
    axes: Axes,
    result: Analysed,
    *,
    trajectories: ArrayLike | None = None,
    limits: Array | None = None,
    title: str = "",
) -> Axes:
    """Draw the step F(z) - z of a network of rank 1 over z; fixed points are where it is zero.

    Args:
        axes: to draw on.
        result: the fixed points.
        trajectories: latents of data, `trials x time x 1`; where they are is shaded below.
        limits: lowest and highest z, `2 x 1`; around the fixed points if None.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 1.
    """
    paths = _paths(trajectories, 1)
    low, high = _limits(result, 1, limits, paths)
    z = np.linspace(low, high, 2001)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.plot(z[:, 0], (result.step(z) - z)[:, 0], color="C0")
    if len(paths):
        seen = paths[~np.isnan(paths)]
        axes.plot(seen, np.zeros_like(seen), "|", color=_OF_DATA, markersize=9, alpha=0.3, label="latents of the data")
    for piece in result.sets:
        axes.plot(piece.vertices[:, 0], np.zeros(len(piece.vertices)), color="tab:green", linewidth=3)
    on_line = np.concatenate([result.points, np.zeros_like(result.points)], 1)
    _scatter(axes, on_line, result.stability, (low, high))
    axes.set(title=title, xlabel="latent (a.u.)", ylabel="change per time bin (a.u.)", xlim=(low[0], high[0]))
    if len(paths) and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small", loc="best", frameon=False)
    return axes


def plot_phase_plane(
    axes: Axes,
    result: Analysed,
    *,
    trajectories: ArrayLike | None = None,
    limits: Array | None = None,
    nullclines: bool = True,
    title: str = "",
) -> Axes:
    """Draw the flow of a network of rank 2, its nullclines and its fixed points by stability.

    A streamline follows F(z) - z, the change per time bin; on a nullcline one latent does not change.

    Args:
        axes: to draw on.
        result: the fixed points.
        trajectories: latents of data, `trials x time x 2`.
        limits: lowest and highest corner, `2 x 2`; around trajectories and fixed points if None.
        nullclines: whether these are drawn.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 2.
    """
    paths = _paths(trajectories, 2)
    low, high = _limits(result, 2, limits, paths)
    x, y = (np.linspace(low[i], high[i], 200) for i in (0, 1))
    z = np.stack(np.meshgrid(x, y), -1)
    change = result.step(z) - z
    axes.streamplot(x, y, change[..., 0], change[..., 1], density=1.3, linewidth=0.7, arrowsize=0.8, color="0.6")
    axes.plot([], [], color="0.6", linewidth=0.7, label="flow")
    if nullclines:
        for i, color in enumerate(("tab:blue", "tab:orange")):
            axes.contour(x, y, change[..., i], levels=[0.0], colors=[color], linewidths=1.4)
            axes.plot([], [], color=color, linewidth=1.4, label=f"nullcline of latent {i + 1}")
    _draw_paths(axes, paths)
    _draw_sets(axes, result)
    _scatter(axes, result.points, result.stability, (low, high))
    axes.set(title=title, xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def plot_phase_space(
    axes: Any,
    result: Analysed,
    *,
    trajectories: ArrayLike | None = None,
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
        trajectories: latents of data, `trials x time x 3`.
        limits: lowest and highest corner of the starts, `2 x 3`; around trajectories and fixed points if None.
        num_lines: number of flow lines.
        num_steps: time bins that each follows.
        seed: of the starts.
        title: of the axes.

    Raises:
        ValueError: if the rank is not 3.
    """
    paths = _paths(trajectories, 3)
    low, high = _limits(result, 3, limits, paths)
    z = np.random.default_rng(seed).uniform(low, high, size=(num_lines, 3))
    lines = [z]
    for _ in range(num_steps):
        lines.append(result.step(lines[-1]))
    room = high - low
    for number, line in enumerate(np.stack(lines, 1)):
        # Lines that run away would make all others small.
        outside = (line < low - 0.2 * room) | (line > high + 0.2 * room)
        gone = np.flatnonzero(outside.any(1))
        line = line[: gone[0]] if len(gone) else line
        told = None if number else "flow from random starts"
        axes.plot(line[:, 0], line[:, 1], line[:, 2], color="0.6", linewidth=0.6, label=told)
    _draw_paths(axes, paths)
    _draw_sets(axes, result)
    _scatter(axes, result.points, result.stability, (low - 0.2 * room, high + 0.2 * room))
    axes.set(title=title, xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)", zlabel="latent 3 (a.u.)")
    axes.legend(fontsize="small", loc="upper left", frameon=False)
    return axes


def _paths(trajectories: ArrayLike | None, rank: int) -> Array:
    """Some of the trajectories, evenly chosen, `trials x time x rank`."""
    if trajectories is None:
        return np.empty((0, 0, rank))
    paths = as_array(trajectories)
    if paths.ndim != 3 or paths.shape[2] != rank:
        raise ValueError(f"`trajectories` must be trials x time x {rank}, got shape {paths.shape}.")
    return paths[np.unique(np.linspace(0, len(paths) - 1, min(_MOST_TRIALS, len(paths))).astype(int))]


def _draw_paths(axes: Any, paths: Array) -> None:
    for number, path in enumerate(paths):
        told = None if number else "latents of the data"
        axes.plot(*path.T, color=_OF_DATA, linewidth=0.9, alpha=0.7, label=told)


def _draw_sets(axes: Any, result: Analysed) -> None:
    """Draw lines and the borders of planes of fixed points, through where they attract and dashed where they do not."""
    styles = {"attractor": ("-", "lines of attractors"), "others": ("--", "other lines of fixed points")}
    drawn = set()
    for piece in result.sets:
        style, label = styles["attractor" if piece.stability == "attractor" else "others"]
        label = "_nolegend_" if style in drawn else label
        axes.plot(*_around(piece.vertices).T, style, color="tab:green", linewidth=3, label=label)
        drawn.add(style)


def _scatter(axes: Any, points: Array, stability: NDArray[np.str_], limits: tuple[Array, Array]) -> None:
    """Draw points by stability; of those outside the picture the legend alone tells."""
    low, high = limits
    # In space markers would fade with their distance, those in the legend too.
    solid = {"depthshade": False} if hasattr(axes, "get_zlim") else {}
    near = ((points[:, : len(low)] >= low) & (points[:, : len(low)] <= high)).all(1)
    for label, style in MARKERS.items():
        chosen = points[(stability == label) & near]
        outside = int(((stability == label) & ~near).sum())
        if len(chosen) or outside:
            told = f"{label} ({len(chosen)}" + f", {outside} outside" * bool(outside) + ")"
            axes.scatter(*chosen.T, **style, **solid, s=40, linewidth=1.2, zorder=5, label=told)


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


def _limits(result: Analysed, rank: int, limits: Array | None, paths: Array) -> tuple[Array, Array]:
    """Lowest and highest corner of what is drawn: of the data and the fixed points near them, or of these alone."""
    if result.points.shape[1] != rank:
        raise ValueError(f"This figure is for networks of rank {rank}, got rank {result.points.shape[1]}.")
    if limits is not None:
        corners = np.asarray(limits, dtype=np.float64)
        if corners.shape != (2, rank) or not (corners[0] < corners[1]).all():
            raise ValueError(f"`limits` must be a lowest and a highest corner, 2 x {rank}, got {corners.tolist()}.")
        return corners[0], corners[1]
    if len(paths):
        return _around_data(result, paths)
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


def _around_data(result: Analysed, paths: Array) -> tuple[Array, Array]:
    """Corners around trajectories and the fixed points that are not far from them."""
    flat = paths.reshape(-1, paths.shape[2])
    flat = flat[~np.isnan(flat).any(1)]
    low, high = flat.min(0), flat.max(0)
    reach = np.maximum(high - low, 1e-6 * (1 + np.abs(flat).max())) / 2
    near = (np.abs(result.points - (low + high) / 2) <= _NEAR * reach).all(1)
    every = np.concatenate([flat, result.points[near]])
    low, high = every.min(0), every.max(0)
    room = 0.08 * np.maximum(high - low, 0.2 * float((high - low).max()))
    return low - room, high + room
