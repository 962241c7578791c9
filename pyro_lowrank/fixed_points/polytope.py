"""Corners of a convex polytope from its half-spaces, without rounding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.exact import Exactly

MOST_CORNERS = 5000
"""Above so many corners at a time it is given up."""


class Polytope:
    """The part of a large cube that is left after cuts by half-spaces, by its corners.

    Each cut takes the corners beyond the half-space away, and each edge from one that stays to one that goes has a new
    corner where it is cut. Two corners are joined by an edge if no third one lies on all the faces that both lie on.

    Args:
        dimensions: of the cube.
        far: half of its side.

    Example::

        >>> half = Polytope(2, Fraction(1))
        >>> half.cut((Fraction(1), Fraction(1)), Fraction(0))
        >>> sorted(tuple(map(int, corner)) for corner in half.corners)
        [(-1, -1), (-1, 1), (1, -1)]
    """

    def __init__(self, dimensions: int, far: Fraction) -> None:
        self.dimensions, self.far = dimensions, far
        self.corners: list[Exactly] = [
            tuple(side * far for side in sides) for sides in itertools.product((-1, 1), repeat=dimensions)
        ]
        # Which faces each corner lies on: those of the cube first.
        signs = np.array([[x > 0 for x in corner] for corner in self.corners]).reshape(-1, dimensions)
        self._faces = np.concatenate([signs, ~signs], 1)

    def cut(self, normal: Sequence[Fraction], limit: Fraction) -> None:
        """Keep the part where `normal t <= limit`.

        Raises:
            OverflowError: if there are more than `MOST_CORNERS` corners.
        """
        beyond = [sum((n * t for n, t in zip(normal, corner, strict=True)), -limit) for corner in self.corners]
        signs = np.array([(value > 0) - (value < 0) for value in beyond], dtype=np.int64)
        inside, outside = np.flatnonzero(signs < 0), np.flatnonzero(signs > 0)
        if not len(outside):
            return
        edges = _edges(self._faces, inside, outside, self.dimensions) if len(inside) else []
        new = []
        for a, b in edges:
            share = beyond[a] / (beyond[a] - beyond[b])
            new.append(tuple(x + share * (y - x) for x, y in zip(self.corners[a], self.corners[b], strict=True)))
        keep = np.flatnonzero(signs <= 0)
        faces = [self._faces[a] & self._faces[b] for a, b in edges]
        width = self._faces.shape[1]
        self._faces = np.concatenate([self._faces[keep], np.array(faces, dtype=bool).reshape(-1, width)])
        on_face = np.concatenate([signs[keep] == 0, np.ones(len(new), dtype=bool)])
        self._faces = np.concatenate([self._faces, on_face[:, None]], 1)
        self.corners = [self.corners[i] for i in keep] + new
        if len(self.corners) > MOST_CORNERS:
            raise OverflowError

    @property
    def is_cut(self) -> bool:
        """Whether nothing is left of the faces of the cube."""
        return all(abs(x) < self.far for corner in self.corners for x in corner)


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
