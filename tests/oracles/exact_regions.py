"""Every fixed point of a small piecewise-linear network in fractions: one linear system per combination of pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Vector = tuple[Fraction, ...]
Constraint = tuple[Vector, Fraction, bool]
"""Coefficients a, bound b, and whether a t < b and not a t <= b."""

# Slope changes, knots and gains of the bias, as in the equations of the activations.
SHAPES: dict[str, tuple[Fraction, list[tuple[int, int]]]] = {
    "relu": (Fraction(0), [(1, 1)]),
    "clipped_relu": (Fraction(0), [(1, -1), (-1, 0)]),
    "identity": (Fraction(1), []),
}


@dataclass(frozen=True)
class ExactZeros:
    """The fixed points of a network.

    Attributes:
        points: the isolated ones.
        continua: of each linear region that holds a line or more of them, one of these and how many dimensions.
    """

    points: frozenset[Vector]
    continua: tuple[tuple[Vector, int], ...]


def exact_zeros(
    decay: Any, left: Any, right: Any, bias: Any, activation: str, current: Any = None, constant: Any = None
) -> ExactZeros:
    """Return all z with z = decay z + right phi(left z + current; bias) + constant, as the doubles given are.

    Args:
        decay: one number.
        left: `units x rank`.
        right: `rank x units`.
        bias: `units`.
        activation: one of `SHAPES`.
        current: `units`, none if None.
        constant: `rank`, none if None.
    """
    m = [[Fraction(float(x)) for x in row] for row in left]
    n = [[Fraction(float(x)) for x in row] for row in right]
    h = [Fraction(float(x)) for x in bias]
    i = [Fraction(float(x)) for x in (bias * 0 if current is None else current)]
    rank, units = len(n), len(m)
    c = [Fraction(float(x)) for x in ([0.0] * rank if constant is None else constant)]
    base, hinges = SHAPES[activation]
    # The unit is base (x - h) plus a ramp beyond each knot: on or off, each is linear.
    knots = [[gain * h[j] - i[j] for _, gain in hinges] for j in range(units)]
    points: set[Vector] = set()
    flats: list[tuple[list[Constraint], Vector, list[Vector]]] = []
    for ramps in itertools.product(list(itertools.product((0, 1), repeat=len(hinges))), repeat=units):
        matrix = [[Fraction(float(decay)) * (a == b) - (a == b) for b in range(rank)] for a in range(rank)]
        offset, inside = list(c), []
        for j, on in enumerate(ramps):
            slope = base + sum(change * ramp for (change, _), ramp in zip(hinges, on, strict=True))
            rest = base * (i[j] - h[j])
            rest -= sum(change * ramp * k for (change, _), ramp, k in zip(hinges, on, knots[j], strict=True))
            for a in range(rank):
                offset[a] += n[a][j] * rest
                for b in range(rank):
                    matrix[a][b] += n[a][j] * slope * m[j][b]
            for ramp, k in zip(on, knots[j], strict=True):
                sign = -1 if ramp else 1
                inside.append((tuple(sign * w for w in m[j]), sign * k, False))
        solved = solve([[*row, -x] for row, x in zip(matrix, offset, strict=True)], rank)
        if solved is None:
            continue
        point, directions = solved
        if not directions:
            if all(dot(a, point) <= b for a, b, _ in inside):
                points.add(point)
        else:
            flats.append((inside, point, directions))
    return _without_continua(points, flats)


def _without_continua(points: set[Vector], flats: list[tuple[list[Constraint], Vector, list[Vector]]]) -> ExactZeros:
    continua, regions = [], []
    for inside, point, directions in flats:
        part = [(tuple(dot(a, d) for d in directions), b - dot(a, point), s) for a, b, s in inside]
        found = interior(part, len(directions))
        if found is None:
            continue
        t, dimensions = found
        z = tuple(p + sum(x * d[k] for x, d in zip(t, directions, strict=True)) for k, p in enumerate(point))
        if dimensions:
            continua.append((z, dimensions))
            regions.append(inside)
        else:
            points.add(z)
    alone = {z for z in points if not any(all(dot(a, z) <= b for a, b, _ in inside) for inside in regions)}
    return ExactZeros(frozenset(alone), tuple(continua))


def dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    """Return the inner product."""
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def solve(rows: list[list[Fraction]], size: int) -> tuple[Vector, list[Vector]] | None:
    """Return a solution of linear equations, and what may be added to it, or None if there is no solution."""
    rows, leads = [list(row) for row in rows], []
    for column in range(size):
        pivot = next((r for r in range(len(leads), len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        top = len(leads)
        rows[top], rows[pivot] = rows[pivot], rows[top]
        rows[top] = [x / rows[top][column] for x in rows[top]]
        for r in range(len(rows)):
            if r != top and rows[r][column]:
                rows[r] = [x - rows[r][column] * y for x, y in zip(rows[r], rows[top], strict=True)]
        leads.append(column)
    if any(row[-1] for row in rows[len(leads) :]):
        return None
    point = [Fraction(0)] * size
    for row, lead in zip(rows, leads, strict=False):
        point[lead] = row[-1]
    directions = []
    for free in (k for k in range(size) if k not in leads):
        direction = [Fraction(int(k == free)) for k in range(size)]
        for row, lead in zip(rows, leads, strict=False):
            direction[lead] = -row[free]
        directions.append(tuple(direction))
    return tuple(point), directions


def interior(constraints: list[Constraint], size: int) -> tuple[Vector, int] | None:
    """Return a point in the relative interior of a polyhedron, and its dimension, or None if it is empty."""
    if feasible(constraints, size) is None:
        return None
    # A face that every point is on is an equation.
    always = [
        index
        for index, (a, b, _) in enumerate(constraints)
        if feasible([*constraints[:index], (a, b, True), *constraints[index + 1 :]], size) is None
    ]
    strict = [(a, b, index not in always) for index, (a, b, _) in enumerate(constraints)]
    equations = [[*constraints[index][0], constraints[index][1]] for index in always]
    solved = solve(equations, size) if equations else ((), [()] * size)
    point = feasible(strict, size)
    assert solved is not None
    assert point is not None
    return point, len(solved[1])


def feasible(constraints: list[Constraint], size: int) -> Vector | None:
    """Return a point that satisfies all, by Fourier and Motzkin's elimination of one variable after the other."""
    if not size:
        return () if all(b > 0 or (b == 0 and not s) for _, b, s in constraints) else None
    above, below, rest = [], [], []
    for a, b, s in constraints:
        scale = abs(a[-1])
        if not scale:
            rest.append((a[:-1], b, s))
        else:
            one = (tuple(x / scale for x in a[:-1]), b / scale, s)
            (above if a[-1] > 0 else below).append(one)
    for (a, b, s), (d, e, f) in itertools.product(above, below):
        rest.append((tuple(x + y for x, y in zip(a, d, strict=True)), b + e, s or f))
    rest = list(dict.fromkeys(rest))
    point = feasible(rest, size - 1)
    if point is None:
        return None
    highest = min((b - dot(a, point) for a, b, _ in above), default=None)
    lowest = max((dot(a, point) - b for a, b, _ in below), default=None)
    if highest is None or lowest is None:
        last = Fraction(0) if highest is lowest else (lowest + 1 if highest is None else highest - 1)
    else:
        last = (highest + lowest) / 2
    return (*point, last)
