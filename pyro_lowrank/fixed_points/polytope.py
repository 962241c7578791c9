"""Corners of a convex polytope from its half-spaces."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import Array

MOST_CORNERS = 5000
"""Above so many corners at a time it is given up."""


def polytope_corners(normals: Array, limits: Array, slack: Array, far: float) -> Array:
    """Return the corners of the part of a large cube where `normals t <= limits`, `corners x dimensions`.

    Start from the cube and cut it by one half-space after the other: corners beyond it go, and each edge from one that
    stays to one that goes has a new corner where it is cut. Two corners are joined by an edge if no third one lies on
    all the faces that both lie on.

    Args:
        normals: of unit length, `faces x dimensions`.
        limits: `faces`.
        slack: how far beyond a face a corner may lie by rounding, `faces`.
        far: half of the cube's side.

    Raises:
        OverflowError: if there are more than `MOST_CORNERS` corners at a time.

    Example::

        >>> half = polytope_corners(np.array([[1.0, 1.0]]), np.array([0.0]), np.array([1e-12]), 1.0)
        >>> sorted(half.tolist())
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]
    """
    dimensions = normals.shape[1]
    corners = far * np.array(list(itertools.product((-1.0, 1.0), repeat=dimensions)))
    # Which faces each corner lies on: those of the cube first.
    faces = np.concatenate([corners > 0, corners < 0], 1)
    order = np.argsort(limits, kind="stable")
    for normal, limit, room in zip(normals[order], limits[order], slack[order], strict=True):
        beyond = corners @ normal - limit
        room = room + 1e-12 * np.abs(corners).max(initial=0)
        inside, outside = np.flatnonzero(beyond < -room), np.flatnonzero(beyond > room)
        near = np.abs(beyond) <= room
        edges = _edges(faces, inside, outside, dimensions) if len(inside) and len(outside) else []
        new = [corners[a] + beyond[a] / (beyond[a] - beyond[b]) * (corners[b] - corners[a]) for a, b in edges]
        new_faces = [faces[a] & faces[b] for a, b in edges]
        keep = beyond <= room
        corners = np.concatenate([corners[keep], np.array(new).reshape(-1, dimensions)])
        faces = np.concatenate([faces[keep], np.array(new_faces, dtype=bool).reshape(-1, faces.shape[1])])
        on_face = np.concatenate([near[keep], np.ones(len(new), dtype=bool)])
        if len(outside):
            faces = np.concatenate([faces, on_face[:, None]], 1)
        if len(corners) > MOST_CORNERS:
            raise OverflowError
    return corners


def _edges(
    faces: NDArray[np.bool_], inside: NDArray[np.int64], outside: NDArray[np.int64], dimensions: int
) -> list[tuple[int, int]]:
    """Pairs of corners, one of each group, that are joined by an edge."""
    shared = faces[inside].astype(np.int64) @ faces[outside].T.astype(np.int64)
    pairs = []
    for row, column in np.argwhere(shared >= dimensions - 1).tolist():
        a, b = int(inside[row]), int(outside[column])
        common = faces[a] & faces[b]
        if (faces[:, common].all(1)).sum() == 2:
            pairs.append((a, b))
    return pairs
