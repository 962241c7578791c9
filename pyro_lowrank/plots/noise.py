"""The noise of the latents, in their plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_noise_ellipse(
    axes: Axes,
    covariance: ArrayLike,
    *,
    center: ArrayLike = (0.0, 0.0),
    level: float = 0.95,
    color: str = "tab:green",
    label: str | None = None,
) -> Axes:
    r"""Draw the ellipse that holds a share of the noise of one time bin, on the axes of a phase portrait.

    .. math:: \{ c + x : x^T \Sigma^{-1} x \le -2 \ln(1 - p) \}

    Args:
        axes: to draw on.
        covariance: of the two latents that are drawn, `2 x 2`, such as `dynamics.noise_covariance`.
        center: where it stands, `2`.
        level: share of the noise within it, p.
        color: of the line.
        label: in the legend.

    Raises:
        ValueError: if the covariance is not a positive definite `2 x 2` matrix, or the level is no share.
    """
    matrix = np.asarray(covariance.detach().cpu() if hasattr(covariance, "detach") else covariance, dtype=np.float64)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be a share, above 0 and below 1, got {level}.")
    if matrix.shape != (2, 2) or not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0:
        raise ValueError(f"`covariance` must be a positive definite 2 x 2 matrix, got {matrix.tolist()}.")
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1) * np.sqrt(-2 * np.log1p(-level))
    x, y = (np.asarray(center, dtype=np.float64) + circle @ np.linalg.cholesky(matrix).T).T
    axes.plot(x, y, color=color, linewidth=1.6, zorder=4, label=label or f"{100 * level:g} % of the noise per bin")
    axes.plot(*np.asarray(center, dtype=np.float64), "+", color=color, markersize=7, zorder=4)
    return axes
