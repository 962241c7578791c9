"""Lines and planes of fixed points: pieces are joined where they make up one, and labelled by what lies across."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.fixed_points.network import Array
from tests.oracles.brute_force import same_points

both = pytest.mark.parametrize("method", ["certified", "enumerate"])


def square(extra_left: Array, extra_right: Array, extra_bias: Array) -> dict[str, Any]:
    """Latents 1 and 2 keep what they hold between 0 and 1, the third is driven by more units."""
    left = np.concatenate([np.repeat(np.eye(3)[:2], 2, 0), extra_left])
    kept = np.kron(np.eye(3)[:, :2], [[1.0, -1.0]])
    bias = np.concatenate([[0.0, 1.0, 0.0, 1.0], extra_bias])
    return {"decay": 0.0, "left": left, "right": np.concatenate([kept, extra_right], 1), "bias": bias}


@both
def test_a_plane_through_many_regions_is_one(method: str) -> None:
    # Five pairs of units cancel: their knots cross the plane and change nothing.
    rng = np.random.default_rng(0)
    crossing, effect = np.pad(rng.normal(size=(5, 2)), ((0, 0), (0, 1))), 0.1 * rng.normal(size=(3, 5))
    twice = np.concatenate([crossing, crossing])
    network = square(twice, np.concatenate([effect, -effect], 1), np.full(10, 0.3))
    result = find_fixed_points(**network, method=method)
    assert result.certificate.complete
    assert len(result) == 0
    (piece,) = result.sets
    assert same_points(piece.vertices[:, :2], np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]))
    assert piece.stability == "attractor"
    assert len(piece.eigenvalues) > 3, "one row for each region that it runs through"
    np.testing.assert_allclose(np.abs(piece.eigenvalues), np.tile([1.0, 1.0, 0.0], (len(piece.eigenvalues), 1)))
    assert "plane with 4 corners, attractor, component 1" in str(result)


@both
def test_a_bent_plane_is_its_flat_pieces(method: str) -> None:
    # The third latent is 0.4 max(z1 + z2 - 1, 0) there: flat on one side of the diagonal, tilted on the other.
    network = square(np.array([[1.0, 1.0, 0.0]]), np.array([[0.0], [0.0], [0.4]]), np.array([1.0]))
    result = find_fixed_points(**network, method=method)
    assert result.certificate.complete
    first, second = result.sets
    corners = {tuple(corner) for piece in result.sets for corner in piece.vertices.round(6).tolist()}
    assert corners == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0.4)}
    assert len(first.vertices) == len(second.vertices) == 3
    assert first.component == second.component == 0


def diamond(drive: Array) -> dict[str, Any]:
    """F(z) = z + drive (1 - |z1| - |z2|): the ring of fixed points is the diamond."""
    left = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    return {"decay": 1.0, "left": left, "right": -np.outer(drive, np.ones(4)), "bias": np.zeros(4), "constant": drive}


@both
def test_a_ring_is_its_sides(method: str) -> None:
    result = find_fixed_points(**diamond(np.array([0.4, 0.12])), method=method)
    assert result.certificate.complete
    assert len(result) == 0, "corners of the ring are not isolated"
    assert [piece.component for piece in result.sets] == [0, 0, 0, 0]
    ends = np.array([piece.vertices for piece in result.sets])
    np.testing.assert_allclose(np.abs(ends).sum(-1), 1, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1), 2**0.5)
    # The drive points out of the ring on its right and into it on its left.
    for piece in result.sets:
        assert piece.stability == ("attractor" if piece.point[0] > 0 else "repeller")
        assert piece.is_bounded


@pytest.mark.parametrize(("slope", "label"), [(0.5, "attractor"), (1.5, "repeller"), (-1.0, "marginal")])
def test_the_label_is_what_lies_across(slope: float, label: str) -> None:
    left = np.array([[1.0, 0.0], [1.0, 0.0]])
    result = find_fixed_points([0.0, slope], left, [[1.0, -1.0], [0.0, 0.0]], [0.0, 1.0], method="enumerate")
    (piece,) = result.sets
    assert piece.stability == label
    # Simulated from beside the line: what is across shrinks or grows.
    z = np.array([0.5, 1e-3])
    for _ in range(100):
        z = result.step(z)
    assert (abs(z[1]) < 1e-6, abs(z[1]) > 1.0) == (label == "attractor", label == "repeller")


def test_lines_that_do_not_touch_are_apart() -> None:
    # z1 is kept on [0, 1]; z2 has three fixed points: three parallel lines.
    left = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    right = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]])
    result = find_fixed_points([0.0, 0.5], left, right, [0.0, 1.0, 1.0, 2.0])
    assert result.certificate.complete
    assert [piece.stability for piece in result.sets] == ["attractor", "repeller", "attractor"]
    assert [piece.component for piece in result.sets] == [0, 1, 2]
    np.testing.assert_allclose([piece.point for piece in result.sets], [[0.5, 0], [0.5, 4 / 3], [0.5, 4]], atol=1e-9)


def test_a_line_in_a_network_of_512_units() -> None:
    # Hundreds of knots cross the line, which bends at each: one piece per region, all in one component.
    rng = np.random.default_rng(1)
    left = np.concatenate([[[1.0, 0.0], [1.0, 0.0]], rng.normal(size=(510, 2))])
    right = np.zeros((2, 512))
    right[0, :2], right[1, 2:] = [1.0, -1.0], 0.3 / 510 * rng.normal(size=510)
    result = find_fixed_points(0.0, left, right, np.concatenate([[0.0, 1.0], rng.normal(size=510)]))
    assert result.certificate.complete
    assert len(result) == 0
    assert len(result.sets) > 50
    assert {piece.component for piece in result.sets} == {0}
    lengths = [np.ptp(piece.vertices[:, 0]) for piece in result.sets]
    assert sum(lengths) == pytest.approx(1.0, abs=1e-6)
    middles = np.array([piece.point for piece in result.sets])
    np.testing.assert_allclose(result.step(middles), middles, atol=1e-12)
