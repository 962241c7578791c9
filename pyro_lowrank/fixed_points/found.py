"""What a method of finding fixed points hands back, before stability and a readable form are added."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import Array

Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class FixedSet:
    """A piece of a line, plane or higher-dimensional flat on which every point is fixed.

    Attributes:
        point: one of its points, `rank`.
        directions: orthonormal directions that it extends in, `dimensions x rank`.
        vertices: corners of the piece, `corners x rank`.
        is_bounded: whether the corners span all of the piece, or it goes on beyond the box that was searched.
        eigenvalues: of the Jacobian in each linear region that the piece runs through, the largest in modulus first,
            `regions x rank`; one per direction is 1.
        stability: what the others say of the directions across the piece: `"attractor"`, `"saddle"`, `"repeller"`,
            `"marginal"` (another on the unit circle, or there are no others) or `"boundary"` (all of it is on a knot).
        component: number of the connected part of all fixed points that it belongs to: pieces that touch share it.
    """

    point: Array
    directions: Array
    vertices: Array
    is_bounded: bool
    eigenvalues: Complex
    stability: str
    component: int


@dataclass(frozen=True)
class Found:
    """Zeros of a network's map and how they were found.

    Attributes:
        points: isolated zeros, `points x rank`, no two the same.
        sets: pieces that are not isolated.
        complete: whether it is proved that there are no others.
        boxes: how many boxes, or linear regions, were looked at.
        solves: how many systems of `rank` linear equations were solved.
        open_boxes: boxes about which nothing is proved, `boxes x 2 x rank` (lowest and highest corner).
        searched: the box outside of which no zero lies, or that the search was confined to, `2 x rank`.
        index_sum: sum of the signs of det(I - J) over the isolated zeros, or None where it is not defined.
        expected_index_sum: the degree that the map at infinity must have, or None where it is not known.
        interrupted: whether the user stopped the search.
        on_knot: which units are on a knot at each of the points, `points x units`, if that is known without rounding.
        margin: bound on the rounding error of the map that was added to every decision, or None if there was none.
    """

    points: Array
    sets: tuple[FixedSet, ...] = ()
    complete: bool = False
    boxes: int = 0
    solves: int = 0
    open_boxes: Array = field(default_factory=lambda: np.zeros((0, 2, 0)))
    searched: Array | None = None
    index_sum: int | None = None
    expected_index_sum: int | None = None
    interrupted: bool = False
    margin: float | None = None
    on_knot: NDArray[np.bool_] | None = None
