"""Corners of polytopes are those of another program."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.spatial import HalfspaceIntersection

from pyro_lowrank.fixed_points import polytope
from pyro_lowrank.fixed_points.exact import rounded
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.polytope import Polytope
from tests.oracles.brute_force import same_points

FAR = 10.0


def corners(normals: Array, limits: Array) -> Array:
    part = Polytope(normals.shape[1], Fraction(FAR))
    for normal, limit in zip(normals.tolist(), limits.tolist(), strict=True):
        part.cut(tuple(map(Fraction, normal)), Fraction(limit))
    return np.array([rounded(corner) for corner in part.corners]).reshape(-1, normals.shape[1])


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_corners_of_random_polytopes(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    for faces in (1, 2, 5, 10, 40):
        normals = rng.normal(size=(faces, dimensions))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        limits = rng.uniform(0.1, 2.0, faces)
        cube = np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
        every = np.concatenate([np.column_stack([normals, -limits]), np.column_stack([cube, np.full(len(cube), -FAR)])])
        expected = HalfspaceIntersection(every, np.zeros(dimensions)).intersections
        assert same_points(corners(normals, limits), np.unique(expected.round(9), axis=0))


def test_polytopes_without_an_interior() -> None:
    plane = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert same_points(corners(plane, np.array([1.0, -1.0, 3.0, 2.0])), np.array([[-2.0, 1.0], [3.0, 1.0]]))
    assert same_points(corners(plane, np.array([1.0, -1.0, 3.0, -3.0])), np.array([[3.0, 1.0]]))
    assert len(corners(plane, np.array([1.0, -1.0, 3.0, -3.1]))) == 0


def test_corners_where_many_faces_meet() -> None:
    # A pyramid over a polygon of 12 sides: all 12 meet at the top.
    angles = np.arange(12) * np.pi / 6
    sides = np.column_stack([np.cos(angles), np.sin(angles), np.ones(12)]) / 2**0.5
    normals = np.concatenate([sides, [[0.0, 0.0, -1.0]]])
    found = corners(normals, np.append(np.full(12, 1 / 2**0.5), 0.0))
    assert len(found) == 13
    assert np.linalg.norm(found - [0, 0, 1], axis=1).min() < 1e-12


def test_too_many_corners_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polytope, "MOST_CORNERS", 8)
    with pytest.raises(OverflowError):
        corners(np.ones((1, 3)) / 3**0.5, np.zeros(1))
