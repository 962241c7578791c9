"""Two networks in the same coordinates, so that their portraits can stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.plots.phase import Analysed, Array
from pyro_lowrank.plots.recorded import as_array


@dataclass(frozen=True, eq=False)
class InCoordinates:
    """Fixed points and flow of a network, seen in other coordinates, w = A z + b.

    Attributes:
        result: the fixed points in the network's own coordinates z.
        matrix: A, `rank x rank`.
        offset: b, `rank`.
        r2: share of the variance of the reference's latents that w explains, `rank`.
    """

    result: Analysed
    matrix: Array
    offset: Array
    r2: Array

    def map(self, z: ArrayLike) -> Array:
        """Return A z + b, of `... x rank`."""
        return as_array(z) @ self.matrix.T + self.offset

    @property
    def points(self) -> Array:
        """The fixed points in the new coordinates, `points x rank`."""
        return self.map(self.result.points)

    @property
    def stability(self) -> NDArray[np.str_]:
        """A label each; they do not depend on coordinates."""
        return self.result.stability

    @property
    def sets(self) -> Sequence[Any]:
        """Lines and planes of fixed points, with their corners in the new coordinates."""
        return [replace(piece, vertices=self.map(piece.vertices)) for piece in self.result.sets]

    def step(self, w: Array) -> Array:
        """Return A F(A^{-1} (w - b)) + b, where the network is one step after w, both `... x rank`."""
        return self.map(self.result.step((w - self.offset) @ np.linalg.inv(self.matrix).T))


def in_coordinates(result: Analysed, latents: ArrayLike, reference: ArrayLike) -> InCoordinates:
    r"""Return fixed points and flow of one network in the coordinates of another that saw the same recording.

    Latents are known up to an affine map. The one that is used is that of least squares,

    .. math:: \min_{A, b} \; \sum_t \lVert A z_t + b - w_t \rVert^2

    with z the network's latents of the recording and w the other one's. What comes back is drawn by `flow` as the fixed
    points themselves are. The offset b is why it is no `LowRankRNN`: in shifted coordinates a network has a constant
    drive that its form does not hold.

    Args:
        result: fixed points of the network, as `dynamics.fixed_points()` returns them.
        latents: its latents of a recording, `... x rank`, such as `posterior.latents().mean`.
        reference: the other network's latents of the same recording, of the same shape.

    Raises:
        ValueError: if the shapes do not fit, or the latents do not span the space.

    Example::

        >>> from pyro_lowrank.fixed_points import find_fixed_points
        >>> result = find_fixed_points(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0], method="enumerate")
        >>> z = np.linspace(0, 4, 20).reshape(1, 20, 1)
        >>> in_coordinates(result, z, 10 - 2 * z).points.ravel().round(6).tolist()
        [10.0, 7.333333, 2.0]
    """
    rank = result.points.shape[1]
    z, w = as_array(latents), as_array(reference)
    if z.shape != w.shape or z.shape[-1:] != (rank,):
        raise ValueError(
            f"`latents` and `reference` must both be ... x {rank}, of one shape, got {z.shape} and {w.shape}."
        )
    z, w = z.reshape(-1, rank), w.reshape(-1, rank)
    seen = ~(np.isnan(z) | np.isnan(w)).any(1)
    z, w = z[seen], w[seen]
    if len(z) <= rank or np.linalg.matrix_rank(z - z.mean(0)) < rank:
        raise ValueError(f"`latents` must vary in all {rank} directions, got {len(z)} time bins that do not.")
    solved = np.linalg.lstsq(z - z.mean(0), w - w.mean(0), rcond=None)[0].T
    left = ((z - z.mean(0)) @ solved.T - (w - w.mean(0))).var(0)
    return InCoordinates(result, solved, w.mean(0) - solved @ z.mean(0), 1 - left / w.var(0))
