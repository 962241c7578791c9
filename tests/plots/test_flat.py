"""Every plot function has a flat name, and takes names and units from a recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyro_lowrank as plr
from pyro_lowrank.data import Recording
from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.infer.latents import Latents

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.6, size=(6, 30, 4)).astype(float)


@pytest.fixture
def axes() -> Any:
    """Three axes of a new figure."""
    pytest.importorskip("matplotlib")
    return plr.plots.new_figure(1, 3, width=9, height=3)[1][0]


@pytest.fixture
def recording() -> Recording:
    """Counts of six trials of two conditions, the last of them shorter."""
    counts = COUNTS.copy()
    counts[5, 20:] = np.nan
    return Recording(
        counts,
        trial_lengths=np.array([30] * 5 + [20]),
        bin_size=0.1,
        feature_names=("a", "b", "c", "d"),
        feature_units=("counts",) * 4,
        conditions=np.array(["left", "right"] * 3),
    )


def test_every_function_of_the_package_has_a_flat_name() -> None:
    for name in plr.plots.__all__:
        assert callable(getattr(plr.plots, name)), name
    with pytest.raises(AttributeError, match="no attribute 'plot_of_land'"):
        _ = plr.plots.plot_of_land  # type: ignore[attr-defined]


def test_a_recording_brings_its_names_and_units(axes: Any, recording: Recording) -> None:
    plr.plots.traces(axes[0], recording, trial=5)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b", "c", "d"]
    assert axes[0].get_xlabel() == "time (s)"
    assert "counts apart" in axes[0].get_ylabel()
    assert len(axes[0].lines[0].get_xdata()) == 20
    plr.plots.raster(axes[1], recording, trial=5)
    assert axes[1].get_xlim() == (0, 2.0)
    with pytest.raises(ValueError, match="one of the 6 trials"):
        plr.plots.raster(axes[2], recording, trial=6)


def test_rasters_side_by_side_are_sorted_by_the_recorded_rate(axes: Any) -> None:
    recorded, generated = np.zeros((10, 3)), np.zeros((10, 3))
    recorded[:8, 2], recorded[:3, 0], generated[:9, 1] = 1.0, 1.0, 1.0
    plr.plots.rasters_beside(axes[:2], recorded, generated)
    for panel, rows in ((axes[0], {0, 1}), (axes[1], {2})):
        drawn = {round(float(p.vertices[:, 1].mean())) for c in panel.collections for p in c.get_paths()}
        assert drawn == rows
    # A single spike is seen beside a bin with many.
    recorded[0, 0] = 50.0
    plr.plots.raster(axes[2], recorded)
    assert min(collection.get_alpha() for collection in axes[2].collections) > 0.5


def test_trial_averages_are_those_of_each_condition(axes: Any, recording: Recording) -> None:
    plr.plots.psth(axes[0], recording, feature=1)
    left, right = axes[0].lines
    np.testing.assert_allclose(left.get_ydata(), recording.data[::2, :, 1].mean(0) / 0.1)
    np.testing.assert_allclose(right.get_ydata(), np.nanmean(recording.data[1::2, :, 1], 0) / 0.1)
    np.testing.assert_allclose(left.get_xdata(), 0.1 * (np.arange(30) + 0.5))
    assert axes[0].get_ylabel() == "mean (Hz)"
    assert axes[0].get_title() == "b"
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["left", "right"]
    plr.plots.psth(axes[1], np.ones((3, 8, 1)), smoothing=2.0)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), 1.0)
    with pytest.raises(ValueError, match="one label for each of 6 trials"):
        plr.plots.psth(axes[2], recording, ["a"])


def test_latents_of_conditions_in_the_plane_and_in_space(axes: Any) -> None:
    z = RNG.normal(size=(6, 12, 3))
    plr.plots.latents_by_condition(axes[0], z, [1, 2, 1, 2, 1, None], dims=(2, 0))
    means = [line for line in axes[0].lines if line.get_linewidth() == 2.0]
    np.testing.assert_allclose(means[0].get_xydata(), z[[0, 2, 4]].mean(0)[:, [2, 0]])
    np.testing.assert_allclose(means[1].get_xydata(), z[[1, 3]].mean(0)[:, [2, 0]])
    assert axes[0].get_xlabel() == "latent 3 (a.u.)"
    space = plr.plots.new_space()[1]
    plr.plots.latents_by_condition(space, z)
    assert space.get_zlabel() == "latent 3 (a.u.)"
    with pytest.raises(ValueError, match="Three latents"):
        plr.plots.latents_by_condition(space, z[..., :2])


def test_rates_lie_under_the_spikes(axes: Any, recording: Recording) -> None:
    rates = np.tile([0.1, 0.4, 0.2, 0.3], (30, 1))
    plr.plots.rates_over_spikes(axes[0], recording, rates)
    image = axes[0].images[0].get_array()
    # The highest rate on top, in Hz.
    np.testing.assert_allclose(image[:, 0], [4.0, 3.0, 2.0, 1.0])
    ticks = sum(len(collection.get_paths()) for collection in axes[0].collections)
    assert ticks == int((COUNTS[0] > 0).sum())
    with pytest.raises(ValueError, match="the same shape"):
        plr.plots.rates_over_spikes(axes[1], COUNTS[0], rates[:, :2])


def test_decoded_behaviour_has_gaps_between_trials(axes: Any) -> None:
    true = RNG.normal(size=(2, 5))
    plr.plots.decoded(axes[0], true, true + 1, bin_size=0.5, label="speed (m/s)")
    drawn, found = (line.get_ydata() for line in axes[0].lines[:2])
    np.testing.assert_array_equal(drawn[~np.isnan(drawn)], true.ravel())
    np.testing.assert_array_equal(found[~np.isnan(found)], true.ravel() + 1)
    assert np.isnan(drawn).sum() == 2
    assert axes[0].get_ylabel() == "speed (m/s)"
    with pytest.raises(ValueError, match="the same shape"):
        plr.plots.decoded(axes[1], true, true[:1])


def test_bands_of_latents_are_drawn_as_they_are(axes: Any) -> None:
    import torch

    mean = torch.randn(2, 9, 1)
    latents = Latents(mean, mean - 1, mean + 2, 0.9, torch.tensor([9, 6]))
    plr.plots.latents(axes[0], latents, trial=1)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), mean[1, :6, 0])
    band = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(float(mean[1, :6].min()) - 1)
    assert band.max() == pytest.approx(float(mean[1, :6].max()) + 2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_flow_holds_the_data(rank: int) -> None:
    pytest.importorskip("matplotlib")
    result = find_fixed_points(0.5, np.eye(rank), 0.1 * np.eye(rank), np.ones(rank), method="enumerate")
    z = 5 + RNG.normal(size=(3, 20, rank))
    axes = plr.plots.new_space()[1] if rank == 3 else plr.plots.new_figure(1, 1, width=4, height=3)[1][0, 0]
    assert plr.plots.flow(axes, result, trajectories=z) is axes
    labels = axes.get_legend_handles_labels()[1]
    assert "latents of the data" in labels
    assert any("attractor" in label for label in labels)
    if rank > 1:
        # Grey lines have a name, and the picture is wide enough for the data.
        assert labels[0].startswith("flow")
        assert axes.get_xlim()[1] > z[..., 0].max()
    with pytest.raises(ValueError, match=f"trials x time x {rank}"):
        plr.plots.flow(axes, result, trajectories=z[0])


def test_a_fixed_point_far_off_is_counted_and_not_drawn() -> None:
    pytest.importorskip("matplotlib")
    axes = plr.plots.new_figure(1, 1, width=4, height=3)[1][0, 0]
    far = find_fixed_points(
        0.5, np.eye(2), 0.1 * np.eye(2), np.zeros(2), constant=[1e3, 0.0], method="enumerate", activation="identity"
    )
    plr.plots.flow(axes, far, trajectories=RNG.normal(size=(2, 20, 2)))
    assert "attractor (0, 1 outside)" in axes.get_legend_handles_labels()[1]
    assert axes.get_xlim()[1] < 10


def test_limits_are_shared(axes: Any) -> None:
    axes[0].set(xlim=(0, 3), ylim=(5, 0))
    axes[1].set(xlim=(-1, 1), ylim=(9, 2))
    plr.plots.share_limits(axes[:2])
    assert axes[0].get_xlim() == axes[1].get_xlim() == (-1, 3)
    assert axes[0].get_ylim() == axes[1].get_ylim() == (9, 0)


def test_held_out_evidence_is_never_cut(axes: Any) -> None:
    evidence = -10 + RNG.normal(size=200)
    held_out = np.array([-900.0, -14.0, -9.0])
    steps = np.array([0, 100, 200])
    plr.plots.evidence(axes[0], evidence, steps, held_out, reference=-15.0)
    low, high = axes[0].get_ylim()
    assert -25 < low < -15
    assert high > -9
    assert "without dynamics" in axes[0].get_legend_handles_labels()[1]
    # The first point would squeeze the rest: words tell of it.
    assert "held out, before training: -900" in axes[0].texts[0].get_text()
    plr.plots.evidence(axes[1], evidence, steps, np.array([-16.0, -14.0, -9.0]), reference=-500.0)
    assert axes[1].get_ylim()[0] < -16
    assert "without dynamics: -500" in axes[1].texts[0].get_text()


def test_a_figure_to_turn_holds_every_trial() -> None:
    pytest.importorskip("plotly", reason="the extra `interactive` is not installed")
    z = RNG.normal(size=(4, 7, 3))
    result = find_fixed_points(0.5, np.eye(3), 0.1 * np.eye(3), np.ones(3), method="enumerate")
    figure = plr.plots.interactive_space(z, ["a", "b", "a", "b"], fixed_points=result)
    first = next(trace for trace in figure.data if trace.name == "a")
    drawn = np.stack([first.x, first.y, first.z], -1).astype(float)
    np.testing.assert_allclose(drawn[~np.isnan(drawn[:, 0])], z[[0, 2]].reshape(-1, 3))
    assert figure.data[-1].name == "attractor (1)"
    assert figure.layout.scene.xaxis.title.text == "latent 1 (a.u.)"
    with pytest.raises(ValueError, match="rank of at least 3"):
        plr.plots.interactive_space(z[..., :2])
