"""Zeros of a piecewise-linear network within given linear regions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import PIECEWISE, Array, Network, from_units

Pieces = NDArray[np.int64]


class Solved(NamedTuple):
    """The one zero of each region's affine map, or that it has none or many."""

    points: Array
    """`regions x rank`, NaN where the map is singular."""
    errors: Array
    """How far rounding may have moved each, `regions`."""
    signs: NDArray[np.int64]
    """Sign of det(I - J), `regions`; 0 where the map is singular to rounding."""
    inside: NDArray[np.bool_]
    """Whether the zero lies in the region itself, give or take its error, `regions`."""


class AffinePieces:
    """The affine maps of a network's linear regions, one for each combination of its units' pieces.

    Args:
        network: of piecewise-linear units.
    """

    def __init__(self, network: Network) -> None:
        rank, units = network.rank, network.units
        self.network = network
        self._outer = np.einsum("jr,js->jrs", network.outputs, network.weights).reshape(units, rank * rank)
        self._unit = np.arange(units)
        infinity = np.full((units, 1), np.inf)
        self._edges = np.concatenate([-infinity, network.knots, infinity], 1)
        self._reach = np.linalg.norm(network.weights, axis=1)
        self.rounding = 4 * float(np.linalg.norm(network.error_slope))

    def matrices(self, pieces: Pieces) -> tuple[Array, Array]:
        """Return the matrix, `regions x rank x rank`, and constant, `regions x rank`, of G on each region."""
        network = self.network
        slopes, rests = network.slopes[self._unit, pieces], network.intercepts[self._unit, pieces]
        matrix = (slopes @ self._outer).reshape(len(pieces), network.rank, network.rank)
        return network.affine + matrix, network.constant + rests @ network.outputs

    def bounds(self, pieces: Pieces) -> tuple[Array, Array]:
        """Return the lowest and highest current of each unit on its piece, `regions x units` each."""
        return self._edges[self._unit, pieces], self._edges[self._unit, pieces + 1]

    def contain(self, pieces: Pieces, points: Array, errors: Array) -> NDArray[np.bool_]:
        """Whether each point, with an error, lies on the pieces of its row."""
        x = points @ self.network.weights.T
        low, high = self.bounds(pieces)
        room = errors[:, None] * self._reach + 4e-16 * self.network.rank * np.abs(x)
        return np.asarray(((x >= low - room) & (x <= high + room)).all(1))

    def solve(self, pieces: Pieces, target: Array | None = None) -> Solved:
        """Find where G equals `target`, zero if None, on each region, pieces `regions x units`."""
        matrix, constant = self.matrices(pieces)
        if target is not None:
            constant = constant - target
        count, rank = constant.shape
        points, errors = np.full((count, rank), np.nan), np.full(count, np.inf)
        signs = np.zeros(count, dtype=np.int64)
        determinants = np.linalg.det(-matrix)
        rows = np.flatnonzero(determinants)
        inverses = np.linalg.inv(matrix[rows])
        regular = np.linalg.norm(inverses, axis=(1, 2)) * self.rounding < 1
        rows, inverses = rows[regular], inverses[regular]
        points[rows] = z = -(inverses @ constant[rows][..., None])[..., 0]
        errors[rows] = 2 * (np.abs(inverses) @ self.network.error(z)[..., None])[..., 0].max(1, initial=0)
        signs[rows] = np.sign(determinants[rows])
        inside = np.zeros(count, dtype=bool)
        inside[rows] = self.contain(pieces[rows], z, errors[rows])
        return Solved(points, errors, signs, inside)


def prune(network: Network) -> Network:
    """Return a network with the same map whose units all act on z and depend on it, not linearly.

    The others are folded into the affine part.
    """
    whole, network = network, _fold_linear_units(network)
    depends = network.weights.any(1)
    acts = network.outputs.any(1)
    constant = network.constant
    if not depends.all():
        rates, _, _ = network.rates(np.zeros(network.rank))
        constant = constant + rates[~depends] @ network.outputs[~depends]
    keep = depends & acts
    pruned = from_units(
        network.affine,
        constant,
        network.weights[keep],
        network.outputs[keep],
        kind=network.kind,
        intercepts=network.intercepts[keep],
        knots=network.knots[keep],
        slopes=network.slopes[keep],
    )
    # What was folded in was rounded as the terms of the whole network are.
    return pruned._replace(error_slope=whole.error_slope, error_constant=whole.error_constant)


def _fold_linear_units(network: Network) -> Network:
    """Return a network without the piecewise-linear units whose slope nowhere changes, which are one affine map."""
    if network.kind != PIECEWISE or not network.units:
        return network
    # A piece between two coincident knots is none.
    exists = np.ones(network.slopes.shape, dtype=bool)
    exists[:, 1:-1] = np.diff(network.knots, axis=1) > 0
    is_linear = (~exists | (network.slopes == network.slopes[:, :1])).all(1)
    slopes, rests = network.slopes[is_linear, 0], network.intercepts[is_linear, 0]
    outputs = network.outputs[is_linear]
    return from_units(
        network.affine + (outputs * slopes[:, None]).T @ network.weights[is_linear],
        network.constant + rests @ outputs,
        network.weights[~is_linear],
        network.outputs[~is_linear],
        intercepts=network.intercepts[~is_linear],
        knots=network.knots[~is_linear],
        slopes=network.slopes[~is_linear],
    )


class Collection:
    """Zeros found so far, each kept once: a zero on a knot is found from both sides."""

    def __init__(self) -> None:
        self.points: list[Array] = []
        self.errors: list[float] = []
        self.signs: list[set[int]] = []

    def add(self, point: Array, error: float, sign: int) -> None:
        """Keep a point unless it is there, up to the errors of both; note the sign of det(I - J) either way."""
        size = 1 + float(np.abs(point).max(initial=0))
        for index, known in enumerate(self.points):
            if np.linalg.norm(known - point) <= error + self.errors[index] + 1e-14 * size:
                self.signs[index].add(sign)
                return
        self.points.append(point)
        self.errors.append(error)
        self.signs.append({sign})

    def array(self, rank: int) -> Array:
        """Return the points, `points x rank`."""
        # Adding zero makes an end of minus zero.
        return np.array(self.points, dtype=np.float64).reshape(len(self.points), rank) + 0.0

    def drop(self, keep: NDArray[np.bool_]) -> None:
        """Forget the points whose entry is False."""
        rows = np.flatnonzero(keep)
        self.points = [self.points[i] for i in rows]
        self.errors = [self.errors[i] for i in rows]
        self.signs = [self.signs[i] for i in rows]

    def index_sum(self) -> int | None:
        """Sum of the signs of det(I - J), or None if a point has both signs, or none, for it lies on a knot."""
        if any(len(signs) != 1 or 0 in signs for signs in self.signs):
            return None
        return sum(next(iter(signs)) for signs in self.signs)
