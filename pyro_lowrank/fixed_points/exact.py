"""Linear regions without rounding: weights are whole numbers times powers of two, and decide what doubles cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import Array, LatentMap, knot_order

Objects = NDArray[np.object_]
Exactly = tuple[Fraction, ...]
"""A point without rounding, `rank`."""


@dataclass(frozen=True, eq=False)
class Dyadic:
    """An array of whole numbers, each times two to the same power."""

    whole: Objects
    power: int

    @staticmethod
    def of(values: Array) -> Dyadic:
        """Return floats as they are."""
        parts, powers = np.frexp(np.asarray(values, dtype=np.float64))
        whole = np.asarray((parts * 2.0**53).astype(np.int64), dtype=object)
        nonzero = parts != 0
        least = int(powers[nonzero].min()) if nonzero.any() else 53
        shifts = np.asarray(np.where(nonzero, powers - least, 0), dtype=object)
        return Dyadic(np.asarray(np.left_shift(whole, shifts), dtype=object), least - 53)

    def at(self, power: int) -> Objects:
        """Return the whole numbers at a lower power."""
        return self.whole << (self.power - power) if self.power > power else self.whole

    def __add__(self, other: Dyadic) -> Dyadic:
        power = min(self.power, other.power)
        return Dyadic(self.at(power) + other.at(power), power)

    def __sub__(self, other: Dyadic) -> Dyadic:
        power = min(self.power, other.power)
        return Dyadic(self.at(power) - other.at(power), power)

    def __mul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.whole * other.whole, self.power + other.power)

    def __matmul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.whole @ other.whole, self.power + other.power)

    def __getitem__(self, index: Any) -> Dyadic:
        return Dyadic(self.whole[index], self.power)


class ExactFlat(NamedTuple):
    """Where an affine map vanishes: a point plus the span of some directions."""

    point: Exactly
    directions: tuple[Exactly, ...]


class Sides(NamedTuple):
    """On which pieces of the units a point lies: on two or more where it is on knots."""

    first: NDArray[Any]
    """`units`."""
    last: NDArray[Any]
    """`units`."""

    def touch(self, pieces: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether the point lies in the closure of each region, pieces `... x units`."""
        return np.asarray(((self.first <= pieces) & (pieces <= self.last)).all(-1))


class Exact:
    """The linear regions of a network of piecewise-linear units, without rounding.

    Regions are given by the pieces of the units of a reduced network; points are in the latents of the whole one.

    Args:
        network: as `reduce` returns it, or whole.
    """

    def __init__(self, network: LatentMap) -> None:
        whole, self._kept, self.scale = network.origin
        self.network, self.weights = network, whole.weights[self._kept]
        self._affine = Dyadic.of(whole.affine) + Dyadic.of(whole.rest)
        self._constant = Dyadic.of(whole.constant)
        self._weights, self._outputs = Dyadic.of(whole.weights), Dyadic.of(whole.outputs)
        self._knots, self._slopes, self._intercepts = _units(whole)
        # Units that are not kept are linear, act on nothing, or stay at the piece that they are on at zero.
        self._pieces = np.zeros(whole.units, dtype=np.int64)
        fixed = ~whole.weights.any(1)
        if fixed.any() and whole.knots.shape[1]:
            self._pieces[fixed] = (self._knots.whole[fixed] < 0).sum(1)
        self._unit = np.arange(whole.units)
        rows = self._kept
        self._kept_weights, self._kept_knots = self._weights[rows], self._knots[rows]

    def system(self, pieces: NDArray[np.int64]) -> tuple[Dyadic, Dyadic]:
        """Return the matrix, `rank x rank`, and constant, `rank`, of G on a region."""
        every = self._pieces.copy()
        every[self._kept] = pieces
        slopes, rests = self._slopes[self._unit, every], self._intercepts[self._unit, every]
        on, off = np.flatnonzero(slopes.whole), np.flatnonzero(rests.whole)
        matrix, constant = self._affine, self._constant
        if len(on):
            bent = Dyadic(slopes.whole[on, None] * self._weights.whole[on], slopes.power + self._weights.power)
            matrix = matrix + Dyadic(self._outputs.whole[on].T, self._outputs.power) @ bent
        if len(off):
            constant = constant + rests[off] @ self._outputs[off]
        return matrix, constant

    def solve(self, pieces: NDArray[np.int64], *, value: Array | None = None) -> tuple[Exactly, int] | ExactFlat | None:
        """Return where G vanishes on a region's affine map, or where its linear part takes a value.

        Returns:
            The one point and the sign of det(I - J); or, of a singular map, the flat, or None if there is none.
        """
        matrix, constant = self.system(pieces)
        if value is not None:
            constant = Dyadic.of(-value)
        rows, right = matrix.whole.tolist(), (-constant.whole).tolist()
        unit = Fraction(2) ** (constant.power - matrix.power)
        solution = solve_whole(rows, right)
        if solution is None:
            return flat_of(rows, right, unit)
        determinant, numerators = solution
        point = tuple(Fraction(n, determinant) * unit for n in numerators)
        sign = 1 if determinant > 0 else -1
        return point, sign if len(rows) % 2 == 0 else -sign

    def jacobian(self, pieces: NDArray[np.int64], *, of_map: bool = False) -> Array:
        """Return the Jacobian of F, or of the map G, on a region, rounded once, `rank x rank`."""
        matrix = self.system(pieces)[0]
        unit, one = Fraction(2) ** matrix.power, int(not of_map)
        rows = [[x * unit + one * (i == k) for k, x in enumerate(row)] for i, row in enumerate(matrix.whole.tolist())]
        return np.array([rounded(tuple(row)) for row in rows])

    def sides(self, point: Exactly) -> Sides:
        """Return the pieces that a point touches."""
        denominator = math.lcm(*(x.denominator for x in point))
        numerators = np.array([int(x * denominator) for x in point], dtype=object)
        currents = Dyadic(self._kept_weights.whole @ numerators, self._kept_weights.power)
        levels = Dyadic(self._kept_knots.whole * denominator, self._kept_knots.power)
        power = min(currents.power, levels.power)
        x, knots = currents.at(power)[:, None], levels.at(power)
        return Sides((knots < x).sum(1, dtype=np.int64), (knots <= x).sum(1, dtype=np.int64))

    @property
    def knots(self) -> int:
        """Number of knots of each unit."""
        return int(self._kept_knots.whole.shape[1])

    def hyperplanes(self, units: NDArray[np.int64], which: NDArray[np.int64]) -> tuple[Objects, Objects]:
        """Return some knots as hyperplanes in the latents of the reduced network: normals and offsets."""
        scaled = self._kept_weights[units] * Dyadic.of(self.scale)
        offsets = self._kept_knots[units, which]
        power = min(scaled.power, offsets.power)
        return scaled.at(power), offsets.at(power)

    def bends(self, sides: Sides) -> NDArray[np.bool_]:
        """Return at which units the slope before a point differs from that after it, `units`."""
        before, after = (self._slopes.whole[self._kept, piece] for piece in sides)
        return np.asarray(before != after, dtype=bool)

    def along(self, direction: Exactly) -> NDArray[np.int64]:
        """Return the sign of each unit's current along a direction, `units`."""
        denominator = math.lcm(*(x.denominator for x in direction))
        numerators = np.array([int(x * denominator) for x in direction], dtype=object)
        currents = self._kept_weights.whole @ numerators
        return (currents > 0).astype(np.int64) - (currents < 0).astype(np.int64)

    def face(self, unit: int, knot: int, flat: ExactFlat) -> tuple[Exactly, Fraction]:
        """Return the half-space below a knot on a flat: normal and limit in the coordinates of its directions."""
        scale = Fraction(2) ** self._kept_weights.power
        weights = [Fraction(w) * scale for w in self._kept_weights.whole[unit].tolist()]
        level = Fraction(self._kept_knots.whole[unit, knot]) * Fraction(2) ** self._kept_knots.power
        normal = tuple(_dot(weights, direction) for direction in flat.directions)
        return normal, level - _dot(weights, flat.point)


def _dot(a: Any, b: Any) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _units(network: LatentMap) -> tuple[Dyadic, Dyadic, Dyadic]:
    """Knots, slopes and intercepts of all units."""
    if network.source is None:
        return Dyadic.of(network.knots), Dyadic.of(network.slopes), Dyadic.of(network.intercepts)
    shape, bias, current = network.source
    units, count = len(bias), len(shape.hinges)
    h, drive = Dyadic.of(bias), Dyadic.of(current)
    order, row = knot_order(shape, bias), np.arange(units)[:, None]
    declared = Dyadic.of(np.array(shape.slopes))
    changes = declared[1:] - declared[:-1]
    gains, places = Dyadic.of(np.array(shape.gains)), Dyadic.of(np.array(shape.knots))
    knots = Dyadic(h.whole[:, None] * gains.whole, h.power + gains.power)
    knots = knots + Dyadic(np.broadcast_to(places.whole, (units, count)), places.power)
    knots = (knots - Dyadic(drive.whole[:, None], drive.power))[row, order]
    steps = Dyadic(np.broadcast_to(changes.whole, (units, count)), changes.power)[row, order]
    base = Dyadic(declared.whole[0] * (drive - h).whole[:, None], declared.power + (drive - h).power)
    slopes = _running(Dyadic(np.full((units, 1), declared.whole[0], dtype=object), declared.power), steps)
    intercepts = _running(base, Dyadic(-steps.whole * knots.whole, steps.power + knots.power))
    return knots, slopes, intercepts


def _running(first: Dyadic, steps: Dyadic) -> Dyadic:
    """Return sums of a first column and more and more of the others."""
    power = min(first.power, steps.power)
    columns = np.concatenate([first.at(power), steps.at(power)], 1)
    return Dyadic(np.add.accumulate(columns, axis=1), power)


def solve_whole(matrix: list[list[int]], right: list[int]) -> tuple[int, list[int]] | None:
    """Return the determinant d of a matrix and n with `matrix n = d right`, or None if it is singular.

    Fraction-free elimination: every number on the way is a minor of the matrix.

    References:
        Bareiss (1968), "Sylvester's identity and multistep integer-preserving Gaussian elimination", Math. Comp. 22.

    Example::

        >>> solve_whole([[2, 0], [0, 3]], [4, 3])
        (6, [12, 6])
    """
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size, previous, sign = len(rows), 1, 1
    for column in range(size):
        best = next((i for i in range(column, size) if rows[i][column]), None)
        if best is None:
            return None
        if best != column:
            rows[column], rows[best], sign = rows[best], rows[column], -sign
        pivots = rows[column]
        pivot = pivots[column]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [(pivot * a - factor * b) // previous for a, b in zip(rows[i], pivots, strict=True)]
        previous = pivot
    return sign * previous, [sign * row[-1] for row in rows]


def flat_of(matrix: list[list[int]], right: list[int], unit: Fraction) -> ExactFlat | None:
    """Return where `matrix z = unit right`, for any matrix, or None if nowhere.

    Example::

        >>> flat_of([[1, 1], [2, 2]], [1, 2], Fraction(1))
        ExactFlat(point=(Fraction(1, 1), Fraction(0, 1)), directions=((Fraction(-1, 1), Fraction(1, 1)),))
    """
    rows, columns = reduced_rows(
        [[*map(Fraction, row), value * unit] for row, value in zip(matrix, right, strict=True)]
    )
    size = len(matrix[0])
    if size in columns:
        return None
    point, free = [Fraction(0)] * size, [k for k in range(size) if k not in columns]
    for row, column in zip(rows, columns, strict=False):
        point[column] = row[-1]
    directions = []
    for k in free:
        direction = [Fraction(int(k == i)) for i in range(size)]
        for row, column in zip(rows, columns, strict=False):
            direction[column] = -row[k]
        directions.append(tuple(direction))
    return ExactFlat(tuple(point), tuple(directions))


def reduced_rows(rows: list[list[Fraction]]) -> tuple[list[list[Fraction]], list[int]]:
    """Return the reduced echelon form of some rows, those that vanish left out, and the column that each leads in."""
    rows, columns = [list(row) for row in rows], list[int]()
    for column in range(len(rows[0]) if rows else 0):
        top = len(columns)
        best = next((i for i in range(top, len(rows)) if rows[i][column]), None)
        if best is None:
            continue
        rows[top], rows[best] = rows[best], rows[top]
        pivot = rows[top][column]
        rows[top] = [value / pivot for value in rows[top]]
        for i, row in enumerate(rows):
            if i != top and row[column]:
                factor = row[column]
                rows[i] = [a - factor * b for a, b in zip(row, rows[top], strict=True)]
        columns.append(column)
    return rows[: len(columns)], columns


def rounded(point: Exactly) -> Array:
    """Return the doubles nearest to a point.

    Raises:
        OverflowError: if they are too large for doubles.
    """
    return np.array([float(x) for x in point])
