"""Fixed points of a map that is known as a function alone: Newton's method from many starts, without proof."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.result import FixedPoints, completed
from pyro_lowrank.fixed_points.stability import spectra

NEWTON_STEPS = 60
_SHORTER = 0.5 ** np.arange(10)


@dataclass(frozen=True)
class OwnMap:
    """A map F of one's own.

    Args:
        rank: number of latents.
        function: F and its Jacobian, `points x rank` and `points x rank x rank`, of points `points x rank`.
        precision: the relative rounding error of the numbers that it returns.
    """

    rank: int
    function: Callable[[Array], tuple[Array, Array]]
    precision: float = 2.0**-52

    def value(self, z: Array) -> Array:
        """Return F(z) - z, `... x rank`."""
        flat = np.reshape(z, (-1, self.rank))
        return np.asarray((self.function(flat)[0] - flat).reshape(np.shape(z)))


def search_own(own: OwnMap, starts: Array) -> FixedPoints:
    r"""Look for fixed points from many starts; what is found is true, what is not found may exist.

    Newton's method on :math:`G(z) = F(z) - z`, with shorter steps where a full one does not make G smaller. A point is
    found where G is nothing but rounding. The search is confined to a box around the starts, ten times as wide: far out
    rounding hides what a map adds to z.

    Args:
        own: the map.
        starts: `starts x rank`.

    Example::

        >>> tanh = OwnMap(1, lambda z: (np.tanh(2 * z), 2 / np.cosh(2 * z)[..., None] ** 2))
        >>> result = search_own(tanh, np.linspace(-2, 2, 9)[:, None])
        >>> result.points.ravel().round(6).tolist(), result.stability.tolist()
        ([-0.957504, 0.0, 0.957504], ['attractor', 'repeller', 'attractor'])
    """
    begun = time.perf_counter()
    starts = np.array(starts, dtype=float)
    starts = starts[np.isfinite(starts).all(1)]
    box, extent = _box(starts)
    z, solves = _polished(own, starts, box)
    points = _distinct(own, z, extent)
    jacobians = own.function(points)[1] if len(points) else np.zeros((0, own.rank, own.rank))
    signs = np.linalg.slogdet(np.eye(own.rank) - jacobians).sign
    found = Found(
        points=points,
        boxes=len(starts),
        solves=solves,
        open_boxes=np.zeros((0, 2, own.rank)),
        searched=box,
        index_sum=None if (signs == 0).any() else int(signs.sum()),
    )
    unknown = np.zeros((len(points), 0))
    return completed(
        own,
        found,
        method="search",
        seconds=time.perf_counter() - begun,
        points=points,
        eigenvalues=spectra(jacobians),
        residuals=np.abs(own.value(points)).max(1, initial=0),
        pieces=unknown.astype(np.int64),
        active=unknown.astype(bool),
        on_knot=unknown.astype(bool),
    )


def _box(starts: Array) -> tuple[Array, float]:
    """Return the box that the search is confined to, `2 x rank`, and how far the starts reach from their middle."""
    if not len(starts):
        return np.zeros((2, starts.shape[1])), 1.0
    low, high = starts.min(0), starts.max(0)
    extent = float((high - low).max()) / 2
    # One start says nothing of the scale but its own size.
    extent = extent if extent > 0 else float(np.abs(starts).max()) or 1.0
    middle = (low + high) / 2
    return np.stack([middle - 10 * extent, middle + 10 * extent]), extent


def _polished(own: OwnMap, z: Array, box: Array) -> tuple[Array, int]:
    """Return where Newton's method comes to rest in a box, and the number of systems that were solved."""
    solves, moving = 0, np.ones(len(z), dtype=bool)
    for _ in range(NEWTON_STEPS):
        rows = np.flatnonzero(moving)
        if not len(rows):
            break
        image, jacobians = own.function(z[rows])
        gap = image - z[rows]
        size = np.linalg.norm(gap, axis=1)
        matrices = jacobians - np.eye(own.rank)
        usable = np.asarray(np.isfinite(matrices).all((1, 2)) & np.isfinite(size) & (size > 0))
        usable[usable] &= np.linalg.slogdet(matrices[usable]).sign != 0
        moving[rows[~usable]] = False
        rows, gap, size, matrices = rows[usable], gap[usable], size[usable], matrices[usable]
        solves += len(rows)
        steps = -np.linalg.solve(matrices, gap[..., None])[..., 0]
        better = np.zeros(len(rows), dtype=bool)
        for shorter in _SHORTER:
            left = np.flatnonzero(~better)
            if not len(left):
                break
            trial = z[rows[left]] + shorter * steps[left]
            now = np.linalg.norm(own.value(trial), axis=1)
            good = now < size[left]
            z[rows[left[good]]] = trial[good]
            better[left[good]] = True
        # Where no step helps it has come to rest: at a fixed point, or where G has a least size that is not zero.
        moving[rows[~better]] = False
        left_it = ((z < box[0]) | (z > box[1])).any(1)
        moving[left_it] = False
        z[left_it] = np.inf
    return z[np.isfinite(z).all(1)], solves


def _distinct(own: OwnMap, z: Array, extent: float) -> Array:
    """Return the fixed points among points, each once, sorted by their coordinates."""
    if not len(z):
        return z
    z = z[np.abs(own.value(z)).max(1) <= 64 * own.precision * (extent + np.abs(z).max(1))]
    kept: list[Array] = []
    for point in z:
        near = 10 * np.sqrt(own.precision) * extent
        if all(np.abs(point - other).max() > near for other in kept):
            kept.append(point)
    points = np.array(kept).reshape(-1, own.rank)
    return points[np.lexsort(np.round(points / extent, 9).T[::-1])] + 0.0
