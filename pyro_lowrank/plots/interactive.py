"""Latents in space, to turn with the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import require
from pyro_lowrank.plots.conditions import groups_of, mean_over_trials
from pyro_lowrank.plots.phase import Analysed
from pyro_lowrank.plots.recorded import as_array

_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_SYMBOLS = {"attractor": "circle", "saddle": "diamond", "repeller": "circle-open", "marginal": "square"}


def interactive_space(
    z: ArrayLike,
    conditions: Sequence[Any] | NDArray[np.generic] | None = None,
    *,
    fixed_points: Analysed | None = None,
    title: str = "",
) -> Any:
    """Return a plotly figure of the first three latents of every trial, with fixed points if there are any.

    `figure.show()` opens it, `figure.write_html("latents.html")` saves it. Needs the extra `interactive`.

    Args:
        z: latents, `trials x time x rank` of rank 3 or more.
        conditions: one label per trial; one condition if None.
        fixed_points: of a network of rank 3, as `dynamics.fixed_points()` returns them.
        title: of the figure.

    Raises:
        ModuleNotFoundError: if plotly is not installed, with how to get it.
        ValueError: if there are fewer than three latents, or there is not one label per trial.
    """
    values = as_array(z)
    if values.ndim != 3 or values.shape[2] < 3:
        raise ValueError(f"`z` must be trials x time x rank with a rank of at least 3, got shape {values.shape}.")
    plotly = require("plotly.graph_objects", "interactive", "An interactive figure")
    figure = plotly.Figure()
    for index, (label, rows) in enumerate(groups_of(conditions, len(values))):
        line = {"color": _COLORS[index % len(_COLORS)]}
        # One line for all trials of a condition, with gaps: hundreds of lines would be slow to turn.
        joined = np.pad(values[rows, :, :3], ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 3)
        figure.add_scatter3d(
            **_xyz(joined), mode="lines", line=line | {"width": 2}, opacity=0.4, name=label, legendgroup=label
        )
        mean = mean_over_trials(values[rows, :, :3])
        if len(rows) > 1:
            figure.add_scatter3d(
                **_xyz(mean), mode="lines", line=line | {"width": 6}, legendgroup=label, name=f"{label}, mean"
            )
    if fixed_points is not None:
        for kind in np.unique(fixed_points.stability):
            points = fixed_points.points[fixed_points.stability == kind]
            marker = {"symbol": _SYMBOLS.get(str(kind), "x"), "size": 5, "color": "black"}
            figure.add_scatter3d(**_xyz(points), mode="markers", marker=marker, name=f"{kind} ({len(points)})")
    names = {f"{axis}axis": {"title": f"latent {number + 1} (a.u.)"} for number, axis in enumerate("xyz")}
    figure.update_layout(title=title, scene=names)
    return figure


def _xyz(points: NDArray[np.floating[Any]]) -> dict[str, Any]:
    return dict(zip("xyz", points.T, strict=True))
