"""Phase portraits hold every fixed point where it is, and a flow that goes where the network goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points
from pyro_lowrank.plots.figures import new_figure, save_figure
from pyro_lowrank.plots.phase import new_space, plot_phase_line, plot_phase_plane, plot_phase_space
from tests.fixed_points.networks import bistable

pytest.importorskip("matplotlib")


def found(rank: int) -> FixedPoints:
    """The fixed points of latents that do not touch."""
    return find_fixed_points(*bistable(rank), method="enumerate")


@pytest.fixture
def axes() -> Any:
    """Axes of a new figure."""
    return new_figure(1, 1, width=5, height=4)[1][0, 0]


def drawn_points(axes: Any, label: str) -> Any:
    """Positions of the markers of one kind."""
    (collection,) = [c for c in axes.collections if str(c.get_label()).startswith(label)]
    return np.asarray(collection.get_offsets())


def test_the_plane_shows_each_kind_where_it_is(axes: Any, tmp_path: Path) -> None:
    result = found(2)
    assert plot_phase_plane(axes, result, title="latents") is axes
    for label in ("attractor", "saddle", "repeller"):
        np.testing.assert_allclose(drawn_points(axes, label), result.points[result.stability == label])
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [
        "flow",
        "nullcline of latent 1",
        "nullcline of latent 2",
        "attractor (4)",
        "saddle (4)",
        "repeller (1)",
    ]
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    assert (low < result.points.min(0)).all()
    assert (high > result.points.max(0)).all()
    save_figure(axes.figure, tmp_path / "plane.png")


def test_nullclines_are_where_a_latent_does_not_change(axes: Any) -> None:
    result = found(2)
    plot_phase_plane(axes, result)
    contours = [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    assert len(contours) == 2
    for latent, contour in enumerate(contours):
        vertices = np.concatenate([path.vertices for path in contour.get_paths()])
        change = result.step(vertices) - vertices
        assert len(vertices) > 100
        assert np.abs(change[:, latent]).max() < 0.05
        assert np.abs(change[:, 1 - latent]).max() > 0.3


def test_limits_and_no_nullclines(axes: Any) -> None:
    plot_phase_plane(axes, found(2), limits=np.array([[-1.0, -2.0], [3.0, 4.0]]), nullclines=False)
    assert axes.get_xlim() == (-1.0, 3.0)
    assert axes.get_ylim() == (-2.0, 4.0)
    assert not [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]


def test_a_line(axes: Any) -> None:
    result = found(1)
    plot_phase_line(axes, result)
    curve = axes.lines[1].get_xydata()
    np.testing.assert_allclose(curve[:, 1], result.step(curve[:, :1])[:, 0] - curve[:, 0])
    np.testing.assert_allclose(drawn_points(axes, "attractor"), [[0, 0], [4, 0]], atol=1e-9)


def test_space_follows_the_flow(tmp_path: Path) -> None:
    result = found(3)
    figure, axes = new_space()
    plot_phase_space(axes, result, num_lines=7, num_steps=5)
    assert len(axes.lines) == 7
    for line in axes.lines:
        z = np.stack(line.get_data_3d(), -1)
        np.testing.assert_allclose(result.step(z[:-1]), z[1:])
    save_figure(figure, tmp_path / "space.png")


def test_sets_and_empty_results_are_drawn_too(axes: Any) -> None:
    left, right = np.eye(2)[[0, 0, 1]], np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.3]])
    line = find_fixed_points(0.0, left, right, [0.0, 2.0, 0.0], method="enumerate")
    assert len(line.sets) == 1
    plot_phase_plane(axes, line)
    drawn = [artist.get_xydata() for artist in axes.lines if len(artist.get_xydata()) == 2]
    np.testing.assert_allclose(np.sort(drawn[0][:, 0]), [0.0, 2.0], atol=1e-9)
    assert "other lines of fixed points" in axes.get_legend_handles_labels()[1]
    none = find_fixed_points(0.5, np.eye(2), 0.1 * np.eye(2), np.full(2, 1e3), method="enumerate", max_boxes=1)
    plot_phase_plane(axes, none)


def test_one_point_has_room_around_it(axes: Any) -> None:
    one = find_fixed_points(0.5, np.eye(2), 0.1 * np.eye(2), np.zeros(2), constant=[1.0, 3.0], method="enumerate")
    assert len(one) == 1
    plot_phase_plane(axes, one)
    np.testing.assert_allclose(np.mean([axes.get_xlim(), axes.get_ylim()], axis=1), one.points[0])


def test_other_ranks_and_limits_are_refused(axes: Any) -> None:
    with pytest.raises(ValueError, match="of rank 2, got rank 3"):
        plot_phase_plane(axes, found(3))
    with pytest.raises(ValueError, match="a lowest and a highest corner, 2 x 2"):
        plot_phase_plane(axes, found(2), limits=np.array([[1.0, 1.0], [0.0, 2.0]]))
