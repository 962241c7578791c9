"""Pictures of fixed points of posterior draws show the probabilities, regions and bands that they are of."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_lowrank import plots
from pyro_lowrank.fixed_points import sampled_fixed_points
from pyro_lowrank.fixed_points.along import FixedPointsAlongInput
from pyro_lowrank.plots.posterior_points import _region

STRENGTHS = np.array([0.0, -1.0, -4.0])


def found(current: float = 0.0) -> Any:
    gains = np.array([2.0, 2.2, 2.4, 0.3])[:, None, None]
    weights = gains * [[1.0, -1.0]]
    return sampled_fixed_points(
        0.5, [[1.0], [1.0]], weights, [1.0, 2.0], input_current=np.full((4, 2), current), method="enumerate"
    )


def axes() -> Any:
    return Figure().subplots()


def test_points_of_one_latent_have_intervals() -> None:
    ours = axes()
    plots.sampled_points(ours, found())
    assert ours.get_title() == "P(1 attractor) = 0.25\nP(2 attractors) = 0.75"
    dots = np.concatenate([each.get_offsets()[:, 0] for each in ours.collections])
    points = found().points[:, 0]
    np.testing.assert_allclose(np.sort(dots), np.sort(points - points.mean()))
    top = max(patch.get_x() + patch.get_width() for patch in ours.patches)
    place = max(found().matched(), key=lambda point: point.mean[0])
    expected = place.mean[0] - points.mean() + NormalDist().inv_cdf(0.95) * np.sqrt(place.covariance[0, 0])
    assert top == pytest.approx(expected)


def test_regions_in_the_plane_hold_their_share() -> None:
    places = np.random.default_rng(0).normal(size=(4000, 2)) @ [[2.0, 1.0], [0.0, 0.5]] + [3.0, 1.0]
    ours = axes()
    _region(ours, places.mean(0), np.cov(places.T), 0.9, "k")
    (patch,) = Figure().subplots().fill(*ours.lines[0].get_data())
    assert patch.get_path().contains_points(places).mean() == pytest.approx(0.9, abs=0.02)


def test_branches_and_probabilities_over_an_input() -> None:
    path = FixedPointsAlongInput(tuple(found(strength) for strength in STRENGTHS), STRENGTHS[:, None])
    ours = axes()
    plots.sampled_branches(ours, path, STRENGTHS, level=0.8)
    share, low, _, high = path.bifurcation(STRENGTHS, 2, 1, level=0.8)
    assert share == 0.75
    (band,) = ours.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((low, high))
    numbers = axes()
    plots.number_of_attractors(numbers, path, STRENGTHS)
    lines = {line.get_label(): line.get_ydata() for line in numbers.lines}
    np.testing.assert_allclose(lines["2 attractors"], path.probabilities()[2])
    np.testing.assert_allclose(lines["1 attractor"], 1 - lines["2 attractors"])


def test_what_cannot_be_drawn_is_told() -> None:
    path = FixedPointsAlongInput((found(0.0), found(-4.0)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="one number for each of 2"):
        plots.sampled_branches(axes(), path, STRENGTHS)
    with pytest.raises(ValueError, match="one number for each of 2"):
        plots.number_of_attractors(axes(), path, STRENGTHS)
    with pytest.raises(ValueError, match="`level` must be a share"):
        plots.sampled_points(axes(), found(), level=1.0)
