"""Lines, planes and higher flats of zeros within one linear region, and their union over regions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pyro_lowrank.fixed_points.found import Complex, FixedSet
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.polytope import polytope_corners

FAR = 1e3
"""A piece that does not end is cut at this many times the size of its region's own numbers."""

TOUCH = 1e-9
"""Relative size below which a piece is taken for a single point, and distance at which two pieces are one."""


class Flat(NamedTuple):
    """Where an affine map vanishes: `point` plus the span of `directions`."""

    point: Array
    """The point of the flat nearest to the origin, `rank`."""
    directions: Array
    """Orthonormal, `dimensions x rank`."""
    is_certain: bool
    """Whether the map vanishes there up to rounding; False if only up to a thousand times that."""


def flat_of_zeros(matrix: Array, constant: Array, rounding: float) -> Flat | None:
    """Return where `matrix z + constant` vanishes, for a matrix that is singular to `rounding`, or None if nowhere."""
    u, sizes, vt = np.linalg.svd(matrix)
    null = sizes <= rounding
    # At least one direction: the caller found the matrix singular by a norm of its inverse.
    null[-1] = True
    safe = np.where(null, 1.0, sizes)
    point = vt.T @ np.where(null, 0.0, -(u.T @ constant) / safe)
    rest = float(np.abs((u.T @ constant)[null]).max())
    limit = rounding * (1 + float(np.abs(point).max())) + 4e-15 * float(np.abs(constant).max())
    if rest > 1e3 * limit:
        return None
    return Flat(point, vt[null], rest <= 10 * limit)


def cut(flat: Flat, weights: Array, low: Array, high: Array) -> tuple[Array, bool] | None:
    """Return the corners of the part of a flat where `low <= weights z <= high`, and whether that part is bounded.

    None if there is no such part. A part that goes on for ever is cut at a large box.

    Raises:
        OverflowError: if it has too many corners.
    """
    along, at = weights @ flat.directions.T, weights @ flat.point
    size = np.linalg.norm(weights, axis=1)
    room = TOUCH * 1e-3 * (size + np.abs(at))
    flat_rows = np.linalg.norm(along, axis=1) <= 1e-12 * size
    if ((at < low - room) | (at > high + room))[flat_rows].any():
        return None
    rows = ~flat_rows
    normals = np.concatenate([along[rows], -along[rows]])
    limits = np.concatenate([(high - at)[rows], (at - low)[rows]])
    slack = np.concatenate([room[rows], room[rows]])
    finite = np.isfinite(limits)
    normals, limits, slack = normals[finite], limits[finite], slack[finite]
    lengths = np.linalg.norm(normals, axis=1)
    normals, limits, slack = normals / lengths[:, None], limits / lengths, slack / lengths
    far = FAR * (1 + float(np.abs(limits).max(initial=0)) + float(np.abs(flat.point).max()))
    corners = _distinct(polytope_corners(normals, limits, slack, far))
    if not len(corners):
        return None
    bounded = bool((np.abs(corners) < far * (1 - 1e-6)).all())
    return flat.point + corners @ flat.directions, bounded


def _distinct(points: Array) -> Array:
    """Points with doubles left out."""
    kept: list[Array] = []
    for point in points:
        if not _near(point, kept):
            kept.append(point)
    return np.array(kept).reshape(-1, points.shape[1])


def _near(point: Array, others: list[Array]) -> bool:
    return any(np.linalg.norm(point - other) <= TOUCH * (1 + np.linalg.norm(point)) for other in others)


def extent(corners: Array) -> int:
    """Return in how many dimensions a piece with those corners extends."""
    if len(corners) < 2:
        return 0
    spread = np.linalg.svd(corners - corners.mean(0), compute_uv=False)
    return int((spread > TOUCH * (1 + np.abs(corners).max())).sum())


def fixed_set(corners: Array, is_bounded: bool, eigenvalues: Complex, stability: str) -> FixedSet:
    """Return the piece with those corners; it is numbered when it is known what it touches."""
    middle = corners.mean(0)
    directions = np.linalg.svd(corners - middle)[2][: extent(corners)]
    return FixedSet(
        point=middle,
        directions=directions,
        vertices=corners,
        is_bounded=is_bounded,
        eigenvalues=eigenvalues.reshape(-1, corners.shape[1]),
        stability=stability,
        component=0,
    )


def unite(sets: list[FixedSet]) -> tuple[FixedSet, ...]:
    """Return the pieces without doubles and faces of larger ones, joined where they make up a larger convex piece."""
    kept: list[FixedSet] = []
    for piece in sorted(sets, key=lambda piece: -len(piece.directions)):
        if not any(_lies_on(piece.vertices, other) for other in kept):
            kept.append(piece)
    done: list[FixedSet] = []
    while kept:
        piece = kept.pop()
        for index, other in enumerate(done):
            joined = join(piece, other)
            if joined is not None:
                del done[index]
                kept.append(joined)
                break
        else:
            done.append(piece)
    order = sorted(done, key=lambda piece: (-len(piece.directions), tuple(piece.point.round(9))))
    return _numbered(order)


def _numbered(sets: list[FixedSet]) -> tuple[FixedSet, ...]:
    """Number the pieces so that those that touch, themselves or through others, have the same number."""
    numbers = list(range(len(sets)))
    for i, j in itertools.combinations(range(len(sets)), 2):
        if numbers[i] != numbers[j] and _touch(sets[i], sets[j]):
            numbers = [numbers[i] if number == numbers[j] else number for number in numbers]
    firsts = list(dict.fromkeys(numbers))
    return tuple(replace(piece, component=firsts.index(n)) for piece, n in zip(sets, numbers, strict=True))


def _touch(a: FixedSet, b: FixedSet) -> bool:
    return any(on_set(point, b) for point in a.vertices) or any(on_set(point, a) for point in b.vertices)


def join(a: FixedSet, b: FixedSet) -> FixedSet | None:
    """Return the segment or polygon that two pieces of one line or plane make up, or None if they make up no such."""
    dimensions = len(a.directions)
    if len(b.directions) != dimensions or dimensions > 2 or a.stability != b.stability:
        return None
    if np.ptp(a.vertices, axis=0).max() < np.ptp(b.vertices, axis=0).max():
        # The directions of the larger piece are known better.
        a, b = b, a
    both = np.concatenate([a.vertices, b.vertices])
    size = 1 + np.abs(both).max()
    t = (both - a.point) @ a.directions.T
    if np.linalg.norm(both - a.point - t @ a.directions, axis=1).max() > TOUCH * size:
        return None
    parts = t[: len(a.vertices)], t[len(a.vertices) :]
    hull = _hull(t)
    if _measure(t[hull]) > sum(_measure(part[_hull(part)]) for part in parts) + 1e-7 * size**dimensions:
        return None
    values = np.concatenate([a.eigenvalues, b.eigenvalues])
    return fixed_set(both[hull], a.is_bounded and b.is_bounded, values, a.stability)


def _hull(t: Array) -> list[int]:
    """Which of some points are the corners of their convex hull: on a line its ends, in a plane its corners in turn."""
    if t.shape[1] == 1:
        return [int(t.argmin()), int(t.argmax())]
    room = 1e-9 * (1 + np.abs(t).max()) * np.ptp(t, axis=0).max()
    ordered: list[int] = np.lexsort(t.T[::-1]).tolist()
    hull: list[int] = []
    for row in (ordered, ordered[::-1]):
        half: list[int] = []
        for index in row:
            while len(half) > 1 and _turn(t[half[-2]], t[half[-1]], t[index]) <= room:
                half.pop()
            half.append(index)
        hull += half[:-1]
    return hull


def _turn(a: Array, b: Array, c: Array) -> float:
    """Twice the area of a triangle, above zero if its corners turn left."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def _measure(corners: Array) -> float:
    """Length of a segment, or area of a polygon with its corners in turn."""
    if corners.shape[1] == 1:
        return float(np.ptp(corners))
    x, y = corners.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _lies_on(points: Array, piece: FixedSet) -> bool:
    return bool(all(on_set(point, piece) for point in points))


def on_set(point: Array, piece: FixedSet) -> bool:
    """Whether a point lies on a piece: on its flat, and among its corners (as told by a supporting line)."""
    size = 1 + float(np.abs(piece.vertices).max())
    away = point - piece.point
    t = piece.directions @ away
    if np.linalg.norm(away - t @ piece.directions) > 1e-7 * size:
        return False
    return in_hull(t, (piece.vertices - piece.point) @ piece.directions.T, 1e-7 * size)


def in_hull(t: Array, corners: Array, room: float) -> bool:
    """Whether a point is within `room` of the convex hull of some corners, by Wolfe's nearest point.

    References:
        Wolfe (1976), "Finding the nearest point in a polytope", Mathematical Programming 11.
    """
    away = corners - t
    chosen = [int(np.argmin(np.linalg.norm(away, axis=1)))]
    weights = np.ones(1)
    for _ in range(10 * len(corners) + 100):
        nearest = weights @ away[chosen]
        distance = float(np.linalg.norm(nearest))
        if distance <= room:
            return True
        ahead = int(np.argmin(away @ nearest))
        # No corner lies nearer in that direction: this is the nearest point, up to a fraction of the room.
        if ahead in chosen or away[ahead] @ nearest > distance * (distance - 0.1 * room):
            return False
        chosen, weights = [*chosen, ahead], np.append(weights, 0.0)
        while True:
            best = _nearest_weights(away[chosen])
            if (best > 1e-14).all():
                weights = best
                break
            falling = best <= 1e-14
            share = np.min(weights[falling] / np.maximum(weights[falling] - best[falling], 1e-300))
            weights = weights + min(1.0, float(share)) * (best - weights)
            keep = weights > 1e-14
            chosen, weights = [i for i, k in zip(chosen, keep, strict=True) if k], weights[keep]
    return False


def _nearest_weights(points: Array) -> Array:
    """Weights, of sum 1, of the point nearest to the origin of all that some points span."""
    count = len(points)
    system = np.ones((count + 1, count + 1))
    system[0, 0] = 0.0
    scale = max(float(np.abs(points).max()), 1e-300)
    system[1:, 1:] = (points / scale) @ (points / scale).T
    right = np.zeros(count + 1)
    right[0] = 1.0
    return np.asarray(np.linalg.lstsq(system, right, rcond=None)[0][1:])
