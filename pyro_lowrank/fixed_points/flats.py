"""Lines, planes and higher flats of zeros within one linear region, and their union over regions."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from pyro_lowrank.fixed_points.found import FixedSet
from pyro_lowrank.fixed_points.network import Array

FAR = 1e3
"""A piece that does not end is cut at this many times the size of its region's own numbers."""

MOST_CORNERS = 200_000
"""Most sets of edges that are tried for the corners of one piece."""

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
        OverflowError: if it takes too many sets of edges to find the corners.
    """
    dimensions = len(flat.directions)
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
    box = np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
    all_normals, all_limits = np.concatenate([normals, box]), np.append(limits, np.full(2 * dimensions, far))
    all_slack = np.append(slack, np.full(2 * dimensions, TOUCH * far))
    corners = _corners(all_normals, all_limits, all_slack)
    if not len(corners):
        return None
    bounded = bool((np.abs(corners) < far * (1 - 1e-6)).all())
    return flat.point + corners @ flat.directions, bounded


def _corners(normals: Array, limits: Array, slack: Array) -> Array:
    """Vertices of `normals t <= limits`."""
    dimensions = normals.shape[1]
    corners: list[Array] = []
    for count, rows in enumerate(itertools.combinations(range(len(normals)), dimensions)):
        if count >= MOST_CORNERS:
            raise OverflowError
        matrix = normals[list(rows)]
        if abs(np.linalg.det(matrix)) < 1e-10:
            continue
        t: Array = np.linalg.solve(matrix, limits[list(rows)]).astype(np.float64)
        if (normals @ t <= limits + slack + 1e-12 * np.abs(t).max()).all() and not _near(t, corners):
            corners.append(t)
    return np.array(corners).reshape(-1, dimensions)


def _near(point: Array, others: list[Array]) -> bool:
    return any(np.linalg.norm(point - other) <= TOUCH * (1 + np.linalg.norm(point)) for other in others)


def extent(corners: Array) -> int:
    """Return in how many dimensions a piece with those corners extends."""
    if len(corners) < 2:
        return 0
    spread = np.linalg.svd(corners - corners.mean(0), compute_uv=False)
    return int((spread > TOUCH * (1 + np.abs(corners).max())).sum())


def fixed_set(corners: Array, is_bounded: bool) -> FixedSet:
    """Return the piece with those corners."""
    middle = corners.mean(0)
    directions = np.linalg.svd(corners - middle)[2][: extent(corners)]
    return FixedSet(point=middle, directions=directions, vertices=corners, is_bounded=is_bounded)


def unite(sets: list[FixedSet]) -> tuple[FixedSet, ...]:
    """Return the pieces with doubles left out, faces of larger pieces too, and segments of one line joined."""
    sets = sorted(sets, key=lambda piece: -len(piece.directions))
    kept: list[FixedSet] = []
    for piece in sets:
        if not any(_lies_on(piece.vertices, other) for other in kept):
            kept.append(piece)
    joined = True
    while joined:
        joined = False
        for i, j in itertools.combinations(range(len(kept)), 2):
            segment = _join(kept[i], kept[j])
            if segment is not None:
                kept = [piece for k, piece in enumerate(kept) if k not in (i, j)] + [segment]
                joined = True
                break
    return tuple(kept)


def _join(a: FixedSet, b: FixedSet) -> FixedSet | None:
    """Return the segment that two segments of one line that touch make up, or None."""
    if len(a.directions) != 1 or len(b.directions) != 1 or abs(a.directions[0] @ b.directions[0]) < 1 - 1e-9:
        return None
    direction = a.directions[0]
    ends = np.concatenate([a.vertices, b.vertices])
    t = (ends - a.point) @ direction
    off = np.linalg.norm(ends - a.point - t[:, None] * direction, axis=1)
    size = 1 + np.abs(ends).max()
    gap = max(t[:2].min(), t[2:].min()) - min(t[:2].max(), t[2:].max())
    if off.max() > 1e-7 * size or gap > 1e-7 * size:
        return None
    return fixed_set(ends[[t.argmin(), t.argmax()]], a.is_bounded and b.is_bounded)


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
    """Whether a point is within `room` of the convex hull of some corners, by Frank and Wolfe's nearest point."""
    nearest = corners[np.argmin(np.linalg.norm(corners - t, axis=1))].copy()
    for _ in range(1000):
        toward = t - nearest
        distance = float(np.linalg.norm(toward))
        if distance <= room:
            return True
        best = corners[np.argmax(corners @ toward)]
        ahead = best - nearest
        if ahead @ toward <= 0.5 * room * distance:
            return False
        nearest += min(1.0, float(ahead @ toward / (ahead @ ahead))) * ahead
    return False
