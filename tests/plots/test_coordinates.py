"""A network seen in another one's coordinates has the other one's fixed points and flow, if it is the same network."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.plots.coordinates import in_coordinates
from pyro_lowrank.plots.phase import plot_phase_plane

MATRIX = np.array([[0.3, -1.2], [0.8, 0.4]])


def networks() -> tuple[tuple, tuple]:
    """A network of rank 2, and the same in the basis A z."""
    rng = np.random.default_rng(1)
    left, bias = rng.normal(size=(12, 2)), np.abs(rng.normal(size=12))
    right = 0.15 * left.T
    turned = left @ np.linalg.inv(MATRIX), MATRIX @ right
    return (0.9, left, right, bias, "clipped_relu"), (0.9, *turned, bias, "clipped_relu")


def test_the_same_network_in_another_basis_is_seen_as_it_is() -> None:
    own, turned = (find_fixed_points(*network) for network in networks())
    w = np.random.default_rng(2).normal(size=(3, 40, 2))
    seen = in_coordinates(turned, w @ MATRIX.T, w)
    np.testing.assert_allclose(seen.r2, 1)
    assert len(seen.points) == len(own.points) > 1
    order = [np.linalg.norm(seen.points - point, axis=1).argmin() for point in own.points]
    np.testing.assert_allclose(seen.points[order], own.points, atol=1e-9)
    assert seen.stability[order].tolist() == own.stability.tolist()
    np.testing.assert_allclose(seen.step(w), own.step(w), atol=1e-9)


def test_fixed_points_stay_fixed_under_an_offset_and_missing_bins_do_not_count() -> None:
    result = find_fixed_points(*networks()[0])
    z = np.random.default_rng(3).normal(size=(2, 30, 2))
    w = z @ MATRIX.T + [5.0, -3.0]
    z[1, 20:], w[0, :3] = np.nan, np.nan
    seen = in_coordinates(result, z, w)
    np.testing.assert_allclose(seen.offset, [5.0, -3.0])
    np.testing.assert_allclose(seen.step(seen.points), seen.points, atol=1e-9)


def test_lines_of_fixed_points_go_along() -> None:
    # Without feedback and decay every state stays.
    result = find_fixed_points(1.0, np.eye(2), np.zeros((2, 2)), np.ones(2), "relu", method="enumerate")
    z = np.random.default_rng(4).normal(size=(50, 2))
    seen = in_coordinates(result, z, 2 * z + 1)
    assert len(seen.sets) == len(result.sets) > 0
    for piece, own in zip(seen.sets, result.sets, strict=True):
        np.testing.assert_allclose(piece.vertices, 2 * own.vertices + 1, atol=1e-9)


def test_it_is_drawn_as_fixed_points_are() -> None:
    axes = pytest.importorskip("pyro_lowrank.plots.figures").new_figure(1, 1, width=4, height=3)[1][0, 0]
    result = find_fixed_points(*networks()[0])
    z = np.random.default_rng(5).normal(size=(40, 2))
    seen = in_coordinates(result, z, z + 100)
    plot_phase_plane(axes, seen)
    assert axes.get_xlim()[0] > 50


@pytest.mark.parametrize(
    ("latents", "reference", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 3)), "must both be ... x 2"),
        (np.zeros((5, 2)), np.zeros((6, 2)), "of one shape"),
        (np.ones((5, 2)), np.ones((5, 2)), "vary in all 2 directions"),
    ],
)
def test_what_cannot_be_mapped_is_refused(latents: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_coordinates(find_fixed_points(*networks()[0]), latents, reference)
