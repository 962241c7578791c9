"""Lines, planes and higher flats of zeros within one linear region, and their union over regions, without rounding."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.exact import Exact, ExactFlat, Exactly, Sides, reduced_rows, rounded
from pyro_lowrank.fixed_points.found import Complex, FixedSet
from pyro_lowrank.fixed_points.polytope import Polytope
from pyro_lowrank.fixed_points.rounding import TINY, rounding

FAR = 1e3
"""A piece that does not end is cut at this many times the size of its region's own numbers."""

_SMALL = np.int16


@dataclass(frozen=True)
class Piece:
    """The zeros in one linear region whose map is singular, or in several where these make up one convex piece."""

    region: NDArray[np.int64]
    """The units' pieces, `units`; of one of the regions if they are several."""
    corners: tuple[Exactly, ...]
    is_bounded: bool
    eigenvalues: Complex
    """`regions x rank`."""
    stability: str
    component: int = 0

    @property
    def directions(self) -> list[list[Fraction]]:
        """What the corners span, as many as it has dimensions, and the coordinates that tell points on it apart."""
        return reduced_rows(_differences(self.corners))[0]

    @property
    def middle(self) -> Exactly:
        """The mean of its corners."""
        return tuple(sum(xs, Fraction(0)) / len(self.corners) for xs in zip(*self.corners, strict=True))

    def to_set(self) -> FixedSet:
        """Return it in doubles."""
        corners = np.array([rounded(corner) for corner in self.corners])
        basis = np.array([rounded(tuple(row)) for row in self.directions])
        return FixedSet(
            point=rounded(self.middle),
            directions=np.linalg.qr((basis / np.abs(basis).max(1, keepdims=True)).T)[0].T,
            vertices=corners,
            is_bounded=self.is_bounded,
            eigenvalues=self.eigenvalues,
            stability=self.stability,
            component=self.component,
        )


def _differences(corners: Sequence[Exactly]) -> list[list[Fraction]]:
    return [[a - b for a, b in zip(corner, corners[0], strict=True)] for corner in corners[1:]]


def extent(corners: Sequence[Exactly]) -> int:
    """Return in how many dimensions a piece with those corners extends, -1 if there are none."""
    return len(reduced_rows(_differences(corners))[1]) if corners else -1


def cut(exact: Exact, flat: ExactFlat, pieces: NDArray[np.int64]) -> tuple[tuple[Exactly, ...], bool]:
    """Return the corners of the part of a flat within a region, none if there is no such part, and if it is bounded.

    Of a polytope with hundreds of faces few matter: doubles tell which corners lie beyond which faces, and only these
    faces, and those that they cannot tell, are cut along.

    Args:
        exact: the network without rounding.
        flat: where the region's map vanishes.
        pieces: which region, `units`.

    Raises:
        OverflowError: if it has too many corners, or numbers are too large for doubles.
    """
    # First within all that doubles can tell, where every corner is; then what has no end is cut.
    largest = Fraction(2) ** 400
    polytope = _clip(exact, flat, pieces, largest)
    is_bounded, dimensions = polytope.is_cut, extent(polytope.corners)
    if not is_bounded:
        ends = [abs(x) for corner in polytope.corners for x in corner if abs(x) < largest / 2**100]
        far = Fraction(FAR) * (max([*ends, *map(abs, flat.point)]) or 1)
        while far < largest and extent((part := _clip(exact, flat, pieces, far)).corners) < dimensions:
            far *= 2**20
        polytope = part if far < largest else polytope
    corners = []
    for place in polytope.corners:
        shifts = [[t * d for d in direction] for t, direction in zip(place, flat.directions, strict=True)]
        corners.append(tuple(sum(xs, start) for start, *xs in zip(flat.point, *shifts, strict=True)))
    return tuple(corners), is_bounded


def _clip(exact: Exact, flat: ExactFlat, pieces: NDArray[np.int64], far: Fraction) -> Polytope:
    """Return the part of a flat within a region and a cube, in the coordinates of the flat."""
    weights, knots = exact.weights, exact.network.knots
    infinity, unit = np.full((len(knots), 1), np.inf), np.arange(len(knots))
    edges = np.concatenate([-infinity, knots, infinity], 1)
    low, high = edges[unit, pieces], edges[unit, pieces + 1]
    point, directions = rounded(flat.point), np.array([rounded(row) for row in flat.directions])
    along, at = weights @ directions.T, weights @ point
    size = np.abs(weights) @ np.abs(point)
    polytope = Polytope(len(directions), far)
    done = ~np.isfinite([high, low])
    level_room = rounding(8) * exact.network.knot_sizes + TINY
    while polytope.corners:
        t = np.array([rounded(corner) for corner in polytope.corners])
        x = at + t @ along.T
        room = rounding(4 * len(point) + 8) * (size + np.abs(t) @ np.abs(directions) @ np.abs(weights).T + np.abs(x))
        room = room + level_room
        beyond = np.stack([x - high, low - x])
        open_faces = (beyond > -room).any(1) & ~done
        if not open_faces.any():
            break
        worst = np.where(open_faces, (beyond / (room + np.abs(x))).max(1), -np.inf)
        side, face = np.unravel_index(int(worst.argmax()), worst.shape)
        done[side, face] = True
        normal, limit = exact.face(int(face), int(pieces[face]) - int(side), flat)
        polytope.cut(*((normal, limit) if side == 0 else (tuple(-n for n in normal), -limit)))
    return polytope


class _Contact:
    """Which corners lie in the closure of which regions."""

    def __init__(self, exact: Exact) -> None:
        self.exact = exact
        self._sides: dict[Exactly, Sides] = {}

    def of(self, corners: Sequence[Exactly], regions: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Return `corners x regions`."""
        rows = []
        for corner in corners:
            if corner not in self._sides:
                first, last = self.exact.sides(corner)
                self._sides[corner] = Sides(first.astype(_SMALL), last.astype(_SMALL))
            rows.append(self._sides[corner].touch(regions))
        return np.array(rows)


def unite(pieces: list[Piece], exact: Exact, until: float = np.inf) -> list[Piece]:
    """Return the pieces without doubles and faces of larger ones, joined where they make up a larger convex piece.

    After some time, by `time.monotonic`, they are joined no more.
    """
    ordered = sorted(pieces, key=lambda piece: -extent(piece.corners))
    regions = np.array([piece.region for piece in ordered]).astype(_SMALL)
    contact = _Contact(exact)
    inside = [contact.of(piece.corners, regions) for piece in ordered]
    kept: list[int] = []
    for row, mask in enumerate(inside):
        if not mask[:, kept].all(0).any():
            kept.append(row)
    # Pieces that touch, themselves or through others, are one component: convex ones do so at a corner of either.
    numbers = {row: row for row in kept}
    for row in kept:
        for other in np.flatnonzero(inside[row].any(0)).tolist():
            old, new = numbers.get(other), numbers[row]
            if old is not None and old != new:
                numbers = {key: new if number == old else number for key, number in numbers.items()}
    joined = _join_all([replace(ordered[row], component=numbers[row]) for row in kept], until)
    joined.sort(key=lambda piece: (-extent(piece.corners), piece.middle))
    firsts = list(dict.fromkeys(piece.component for piece in joined))
    return [replace(piece, component=firsts.index(piece.component)) for piece in joined]


def _join_all(kept: list[Piece], until: float) -> list[Piece]:
    done: list[Piece] = []
    while kept:
        if time.monotonic() > until:
            return done + kept
        piece = kept.pop()
        for index, other in enumerate(done):
            joined = join(piece, other)
            if joined is not None:
                del done[index]
                kept.append(joined)
                break
        else:
            done.append(piece)
    return done


def join(a: Piece, b: Piece) -> Piece | None:
    """Return the segment or polygon that two pieces of one line or plane make up, or None if they make up no such."""
    if a.component != b.component or a.stability != b.stability:
        return None
    shared = set(a.corners) & set(b.corners)
    both = list(dict.fromkeys(a.corners + b.corners))
    if not shared and len(a.corners) == len(b.corners) == 2:
        return None
    rows, columns = reduced_rows(_differences(both))
    dimensions = len(rows)
    if dimensions > 2 or extent(a.corners) != dimensions or extent(b.corners) != dimensions:
        return None
    # Coordinates that tell the points of the line, or plane, apart.
    places = {corner: tuple(corner[k] for k in columns) for corner in both}
    hull = _hull(both, places)
    whole, parts = _measure(hull, places), [_measure(_hull(list(part.corners), places), places) for part in (a, b)]
    if whole != sum(parts):
        return None
    values = np.concatenate([a.eigenvalues, b.eigenvalues])
    return replace(a, corners=tuple(hull), is_bounded=a.is_bounded and b.is_bounded, eigenvalues=values)


def _hull(corners: list[Exactly], places: dict[Exactly, tuple[Fraction, ...]]) -> list[Exactly]:
    """Which of some points are the corners of their convex hull: on a line its ends, in a plane its corners in turn."""
    ordered = sorted(corners, key=places.__getitem__)
    if len(places[corners[0]]) == 1:
        return [ordered[0], ordered[-1]]
    hull: list[Exactly] = []
    for row in (ordered, ordered[::-1]):
        half: list[Exactly] = []
        for corner in row:
            while len(half) > 1 and _turn(places[half[-2]], places[half[-1]], places[corner]) <= 0:
                half.pop()
            half.append(corner)
        hull += half[:-1]
    return hull


def _turn(a: tuple[Fraction, ...], b: tuple[Fraction, ...], c: tuple[Fraction, ...]) -> Fraction:
    """Twice the area of a triangle, above zero if its corners turn left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _measure(hull: list[Exactly], places: dict[Exactly, tuple[Fraction, ...]]) -> Fraction:
    """Length of a segment, or twice the area of a polygon with its corners in turn."""
    points = [places[corner] for corner in hull]
    if len(points[0]) == 1:
        return abs(points[-1][0] - points[0][0])
    pairs = itertools.pairwise([*points, points[0]])
    return abs(sum((a[0] * b[1] - a[1] * b[0] for a, b in pairs), Fraction(0)))
