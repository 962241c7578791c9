"""Zeros of a piecewise-linear network within given linear regions, as far as doubles can tell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import Array, LatentMap
from pyro_lowrank.fixed_points.rounding import inverses, rounding, sizes

Pieces = NDArray[np.int64]

_ROUGH = 2.0**-20
"""Zeros that have a latent whose error is larger than this share of it are found without rounding."""


class Solved(NamedTuple):
    """The one zero of each region's affine map, or that doubles cannot tell it."""

    points: Array
    """`regions x rank`, NaN where the map is singular to rounding."""
    errors: Array
    """How far each may be from the true one, `regions x rank`."""
    signs: NDArray[np.int64]
    """Sign of det(I - J), `regions`; 0 where the map is singular to rounding."""
    inside: NDArray[np.bool_]
    """Whether the zero lies in the region's interior, whatever its error, `regions`."""
    unsure: NDArray[np.bool_]
    """Whether its error does not tell if it lies in the region, or the map is singular to rounding, `regions`."""


class AffinePieces:
    """The affine maps of a network's linear regions, one for each combination of its units' pieces.

    Args:
        network: of piecewise-linear units.
    """

    def __init__(self, network: LatentMap) -> None:
        rank, units = network.rank, network.units
        self.network = network
        self._outer = np.einsum("jr,js->jrs", network.outputs, network.weights).reshape(units, rank * rank)
        self._unit = np.arange(units)
        infinity = np.full((units, 1), np.inf)
        self._edges = np.concatenate([-infinity, network.knots, infinity], 1)
        self._reach = np.abs(network.weights).T
        self._room = rounding(4) * network.knot_sizes
        # Whether nothing was added up to make the constant of a region where no unit adds any.
        whole = network.origin.network
        self._has_no_constant = network.units == whole.units and not whole.constant.any()

    def matrices(self, pieces: Pieces) -> tuple[Array, Array]:
        """Return the matrix, `regions x rank x rank`, and constant, `regions x rank`, of G on each region."""
        network = self.network
        slopes, rests = network.slopes[self._unit, pieces], network.intercepts[self._unit, pieces]
        matrix = (slopes @ self._outer).reshape(len(pieces), network.rank, network.rank)
        return network.affine + matrix, network.constant + rests @ network.outputs

    def solve(self, pieces: Pieces) -> Solved:
        r"""Find where G vanishes on each region, pieces `regions x units`.

        With Y the computed inverse of a region's matrix M and :math:`E = |I - Y M| + |Y| \delta`, of which
        :math:`\delta` bounds the rounding of M, and with r the residual of z, the zero lies within

        .. math:: |Y|\, |r| + E\, \frac{\max |Y| |r|}{1 - \|E\|_\infty}

        of z, if the norm is below 1; here it must be below a half. M is regular then, with the sign of Y.
        """
        matrix, constant = self.matrices(pieces)
        count, rank = constant.shape
        points, errors = np.full((count, rank), np.nan), np.full((count, rank), np.inf)
        signs = np.zeros(count, dtype=np.int64)
        inside, unsure = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
        with np.errstate(all="ignore"):
            determinants = np.linalg.slogdet(-matrix)
            rows = np.flatnonzero(determinants.sign)
            inverse = inverses(matrix[rows])
            left = np.abs(np.eye(rank) - inverse @ matrix[rows]) + 2 * np.abs(inverse) @ self.network.error_slope
            norms = left.sum(2).max(1, initial=0)
            regular = norms < 0.5
        rows, inverse, left, norms = rows[regular], inverse[regular], left[regular], norms[regular]
        z = -(inverse @ constant[rows][..., None])[..., 0]
        rest = (matrix[rows] @ z[..., None])[..., 0] + constant[rows]
        z = z - (inverse @ rest[..., None])[..., 0]
        rest = np.abs((matrix[rows] @ z[..., None])[..., 0] + constant[rows]) + 2 * self.network.error(z)
        first = (np.abs(inverse) @ rest[..., None])[..., 0]
        error = first + left.sum(2) * (first.max(1, initial=0) / (1 - norms))[:, None]
        points[rows], errors[rows], signs[rows] = z, error, determinants.sign[rows]
        is_inside, is_open = self._locate(pieces[rows], z, error)
        # A zero that is mostly rounding is left open too, but the origin where there is no constant.
        is_exact = self._has_no_constant & ~self.network.intercepts[self._unit, pieces[rows]].any(1)
        is_rough = (error > _ROUGH * np.abs(z)).any(1) & ~is_exact
        inside[rows], unsure[rows] = is_inside & ~is_rough, is_open | (is_inside & is_rough)
        return Solved(points, errors, signs, inside, unsure)

    def _locate(self, pieces: Pieces, points: Array, errors: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each point, with an error, is inside of its region for sure, and whether that is open."""
        x = points @ self.network.weights.T
        room = errors @ self._reach + rounding(self.network.rank + 2) * (np.abs(points) @ self._reach) + self._room
        slack = np.minimum(x - self._edges[self._unit, pieces], self._edges[self._unit, pieces + 1] - x)
        outside = (slack < -room).any(1)
        inside = (slack > room).all(1)
        return inside, ~outside & ~inside


class Collection:
    """Zeros of smooth units found so far, each kept once, up to the errors of both."""

    def __init__(self) -> None:
        self.points: list[Array] = []
        self.errors: list[float] = []
        self.signs: list[set[int]] = []

    def add(self, point: Array, error: float, sign: int) -> None:
        """Keep a point unless it is there; note the sign of det(I - J) either way."""
        for index, known in enumerate(self.points):
            if sizes(known - point) <= error + self.errors[index] + rounding(16) * sizes(point):
                self.signs[index].add(sign)
                return
        self.points.append(point)
        self.errors.append(error)
        self.signs.append({sign})

    def array(self, rank: int) -> Array:
        """Return the points, `points x rank`."""
        # Adding zero makes an end of minus zero.
        return np.array(self.points, dtype=np.float64).reshape(len(self.points), rank) + 0.0

    def index_sum(self) -> int | None:
        """Sum of the signs of det(I - J), or None if a point has both signs, or none."""
        if any(len(signs) != 1 or 0 in signs for signs in self.signs):
            return None
        return sum(next(iter(signs)) for signs in self.signs)
