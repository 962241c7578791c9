"""Figures of posteriors, comparisons, branches and noise show the numbers they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import continuation
from pyro_lowrank.metrics.estimate import Estimate
from pyro_lowrank.plots.branches import plot_branches
from pyro_lowrank.plots.comparison import plot_agreement, plot_rasters_beside, plot_spectra, plot_traces_beside
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.noise import plot_noise_ellipse
from pyro_lowrank.plots.posterior import plot_calibration, plot_ess, plot_latents
from pyro_lowrank.plots.trajectories import plot_raster
from pyro_lowrank.plots.validation import plot_by_rank

RNG = np.random.default_rng(0)


@pytest.fixture
def axes() -> Any:
    """Three axes of a new figure."""
    pytest.importorskip("matplotlib")
    return new_figure(1, 3, width=9, height=3)[1][0]


def heights(collection: Any) -> tuple[float, float]:
    """Lowest and highest point of a filled band."""
    points = collection.get_paths()[0].vertices[:, 1]
    return points.min(), points.max()


def test_latents_are_medians_within_bands(axes: Any) -> None:
    draws = RNG.normal(size=(400, 30, 3)) + np.arange(3.0)
    truth = RNG.normal(size=(30, 3))
    assert plot_latents(axes, draws, levels=(0.9,), truth=truth, bin_size=0.1, title="trial 1") is axes
    for latent, panel in enumerate(axes):
        np.testing.assert_allclose(panel.lines[0].get_ydata(), np.median(draws[..., latent], 0))
        np.testing.assert_allclose(panel.lines[0].get_xdata(), 0.1 * np.arange(30))
        np.testing.assert_array_equal(panel.lines[1].get_ydata(), truth[:, latent])
        low, high = heights(panel.collections[0])
        assert low == pytest.approx(np.quantile(draws[..., latent], 0.05, axis=0).min())
        assert high == pytest.approx(np.quantile(draws[..., latent], 0.95, axis=0).max())
        assert panel.get_ylabel() == f"latent {latent + 1} (a.u.)"
    assert axes[-1].get_xlabel() == "time (s)"
    one = new_figure(1, 1, width=3, height=3)[1][0, 0]
    assert len(plot_latents(one, draws).lines) == 3
    with pytest.raises(ValueError, match="one per latent, 3, got 2"):
        plot_latents(axes[:2], draws)
    with pytest.raises(ValueError, match="draws x time x rank"):
        plot_latents(one, draws[0])
    with pytest.raises(ValueError, match="must be shares"):
        plot_latents(one, draws, levels=(95,))


def test_effective_sizes_of_every_trial(axes: Any) -> None:
    ess = RNG.uniform(1, 100, size=(20, 4))
    plot_ess(axes[0], ess, num_particles=100, ess_threshold=0.5)
    lines = axes[0].lines
    np.testing.assert_array_equal(np.stack([line.get_ydata() for line in lines[:4]], 1), ess)
    np.testing.assert_array_equal(lines[4].get_ydata(), np.median(ess, 1))
    np.testing.assert_array_equal(lines[5].get_ydata(), ess.min(1))
    assert lines[6].get_ydata()[0] == 50
    assert axes[0].get_ylabel() == "effective particles (of 100)"
    plot_ess(axes[1], ess[:, :1], num_particles=100)
    with pytest.raises(ValueError, match="time x trials"):
        plot_ess(axes[2], ess[0], num_particles=100)


def test_a_calibration_is_a_density(axes: Any) -> None:
    pit = RNG.uniform(size=(5, 100, 2)) ** 2
    pit[0, 3] = np.nan
    plot_calibration(axes[0], pit, num_bins=10)
    values = axes[0].patches[0].get_data().values
    assert values.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(values, np.histogram(pit[~np.isnan(pit)], 10, (0, 1), density=True)[0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        plot_calibration(axes[1], [1.5])


def test_recording_and_generated_data_share_their_scale(axes: Any) -> None:
    real, generated = RNG.normal(size=(50, 3)), 9 * RNG.normal(size=(40, 3))
    plot_traces_beside(axes[:2], real, generated, unit="µV")
    spacing = np.ptp(real, axis=0).max()
    for feature in range(3):
        np.testing.assert_allclose(axes[1].lines[feature].get_ydata(), generated[:, feature] - spacing * feature)
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert [panel.get_title() for panel in axes[:2]] == ["recording", "generated"]
    with pytest.raises(ValueError, match="same features"):
        plot_traces_beside(axes[:2], real, generated[:, :2])


def test_a_raster_has_a_tick_where_there_are_spikes(axes: Any) -> None:
    spikes = RNG.poisson(0.5, size=(40, 5)).astype(float)
    spikes[3, 2] = np.nan
    plot_raster(axes[0], spikes, bin_size=0.02)
    ticks = {
        (round(float(x) / 0.02 - 0.5), round(float(y.mean())))
        for found in axes[0].collections
        for x, y in ((path.vertices[0, 0], path.vertices[:, 1]) for path in found.get_paths())
    }
    assert ticks == {(int(t), int(unit)) for t, unit in np.argwhere(spikes > 0)}
    assert axes[0].get_ylim() == (4.5, -0.5)
    plot_rasters_beside(axes[1:], spikes, RNG.poisson(0.5, size=(60, 5)))
    assert axes[1].get_xlim() == axes[2].get_xlim() == (0, 60)
    assert axes[1].get_ylim() == (4.5, -0.5)


def test_a_spectrum_has_its_peak_where_the_rhythm_is(axes: Any) -> None:
    times = np.arange(2000) * 0.01
    wave = np.sin(2 * np.pi * 12.5 * times)[:, np.newaxis] + 0.1 * RNG.normal(size=(2000, 3))
    plot_spectra(axes[0], {"recording": wave, "generated": RNG.normal(size=(2, 2000, 3))}, bin_size=0.01, unit="µV")
    first = axes[0].lines[0]
    assert first.get_xdata()[first.get_ydata().argmax()] == pytest.approx(12.5, abs=0.2)
    # White noise of variance 1 has the density 2 per 100 Hz.
    assert np.mean(axes[0].lines[1].get_ydata()) == pytest.approx(0.02, rel=0.1)
    assert axes[0].get_xlabel() == "frequency (Hz)"
    wave[0] = np.nan
    with pytest.raises(ValueError, match="spectrum of 'recording' cannot leave out"):
        plot_spectra(axes[0], {"recording": wave})


def test_agreement_draws_each_feature_or_pair_once(axes: Any) -> None:
    real, generated = RNG.uniform(1, 5, size=(2, 10))
    real[4] = np.nan
    plot_agreement(axes[0], real, generated, what="mean rate (Hz)")
    np.testing.assert_array_equal(axes[0].lines[1].get_xydata(), np.stack([real, generated], 1)[~np.isnan(real)])
    assert axes[0].get_title() == "mean rate (Hz)"
    kept = ~np.isnan(real)
    assert axes[0].texts[0].get_text() == f"r = {np.corrcoef(real[kept], generated[kept])[0, 1]:.2f}, n = 9"
    matrix = np.corrcoef(RNG.normal(size=(6, 50)))
    plot_agreement(axes[1], matrix, matrix)
    assert len(axes[1].lines[1].get_xdata()) == 15
    plot_agreement(axes[2], [0.0, 1.0, 2.0], [1.0, 1.0, 3.0], log=True)
    assert len(axes[2].lines[1].get_xdata()) == 2
    with pytest.raises(ValueError, match="same shape"):
        plot_agreement(axes[0], [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no entry that both have"):
        plot_agreement(axes[0], [np.nan], [1.0])


def test_values_by_rank_have_error_bars_and_a_best(axes: Any) -> None:
    values = [Estimate(-2.0, 0.1), Estimate(-3.0, 0.2), float("nan")]
    plot_by_rank(axes[0], (2, 1, 3), values, label="evidence (nats per bin)")
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[1, -3], [2, -2], [3, np.nan]])
    bars = axes[0].collections[0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [-3.2, -2.8])
    assert axes[0].lines[-1].get_xydata().tolist() == [[2.0, -2.0]]
    with pytest.raises(ValueError, match="one per rank, 2, got 3"):
        plot_by_rank(axes[0], (1, 2), values)


def test_an_ellipse_holds_its_share_of_the_noise(axes: Any) -> None:
    covariance = np.array([[0.5, 0.3], [0.3, 0.4]])
    plot_noise_ellipse(axes[0], covariance, center=(1.0, -1.0), level=0.8)
    points = axes[0].lines[0].get_xydata() - [1.0, -1.0]
    distance = np.einsum("pi,ij,pj->p", points, np.linalg.inv(covariance), points)
    draws = RNG.multivariate_normal(np.zeros(2), covariance, size=20_000)
    within = np.einsum("pi,ij,pj->p", draws, np.linalg.inv(covariance), draws) < distance[0]
    np.testing.assert_allclose(distance, distance[0])
    assert within.mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match="positive definite 2 x 2"):
        plot_noise_ellipse(axes[0], np.eye(3))
    with pytest.raises(ValueError, match="`level` must be a share"):
        plot_noise_ellipse(axes[0], covariance, level=95)


def test_branches_end_where_fixed_points_vanish(axes: Any) -> None:
    # One unit that excites itself: two attractors and a saddle between them, until it meets the lower one.
    strengths = np.linspace(0.0, 1.5, 16)
    path = continuation(0.0, [[1.0]], [[2.5]], [0.0], "tanh", input_currents=strengths[:, np.newaxis])
    plot_branches(axes[0], path, strengths, label="current (a.u.)")
    (event,) = (event for event in path.events if event.kind == "vanishes" and event.before == "attractor")
    (stays,) = path.results[-1].points[:, 0]
    lines = [line for line in axes[0].lines if len(line.get_xdata()) > 1]
    ends = sorted(float(line.get_xdata()[-1]) for line in lines)
    # Two fixed points z = 2.5 tanh(z + u) meet where 2.5 (1 - tanh(z + u)^2) = 1.
    critical = 2.5 * np.sqrt(0.6) - np.arctanh(np.sqrt(0.6))
    assert ends == pytest.approx([critical, critical, 1.5], abs=0.02)
    assert event.kind == "vanishes"
    last = max(lines, key=lambda line: line.get_xdata()[-1])
    assert last.get_ydata()[-1] == stays
    assert axes[0].get_ylabel() == "latent 1 of the fixed points (a.u.)"
    with pytest.raises(ValueError, match="one number for each of 16"):
        plot_branches(axes[1], path, strengths[:3])
    with pytest.raises(ValueError, match="`latent` must be from 0 to 0"):
        plot_branches(axes[1], path, strengths, latent=1)
