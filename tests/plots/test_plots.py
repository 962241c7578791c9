"""Figures show the numbers they were given, with labels that say in which units, and import nothing beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.plots.figures import new_figure, save_figure
from pyro_lowrank.plots.training import plot_effective_size, plot_evidence
from pyro_lowrank.plots.trajectories import plot_phase_portrait, plot_traces

RNG = np.random.default_rng(0)


@pytest.fixture
def axes() -> Any:
    """Axes of a new figure."""
    pytest.importorskip("matplotlib")
    return new_figure(1, 1, width=4, height=3)[1][0, 0]


def test_a_phase_portrait_holds_every_trajectory(axes: Any) -> None:
    z = RNG.normal(size=(4, 30, 3))
    assert plot_phase_portrait(axes, z, title="latents") is axes
    for trial, line in zip(z, axes.lines, strict=False):
        np.testing.assert_array_equal(line.get_xydata(), trial[:, :2])
    np.testing.assert_array_equal(axes.lines[4].get_xydata(), z[:, 0, :2])
    assert axes.get_xlabel() == "latent 1 (a.u.)"
    assert axes.get_title() == "latents"
    for bad in (z[0], z[..., :1]):
        with pytest.raises(ValueError, match="rank of at least 2"):
            plot_phase_portrait(axes, bad)


def test_traces_stand_apart_in_the_units_of_the_recording(axes: Any) -> None:
    y = RNG.normal(size=(50, 3))
    y[4, 1] = np.nan
    plot_traces(axes, y, names=("Fz", "Cz", "Pz"), spacing=2.0, bin_size=0.01, unit="µV")
    for feature, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_ydata(), y[:, feature] - 2.0 * feature)
        np.testing.assert_allclose(line.get_xdata(), 0.01 * np.arange(50))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Fz", "Cz", "Pz"]
    assert axes.get_ylabel() == "features, 2 µV apart"
    assert axes.get_xlabel() == "time (s)"
    with pytest.raises(ValueError, match="one per feature, 3, got 2"):
        plot_traces(axes, y, names=("a", "b"))


@pytest.mark.parametrize(
    ("spacing", "unit", "told"),
    [(6.8e-5, "V", "68 µV"), (1e-3, "V", "1 mV"), (2e-13, "T", "200 fT"), (3.0, "SD", "3 SD"), (2.0, "V", "2 V")],
)
def test_small_numbers_of_large_units_get_a_prefix(spacing: float, unit: str, told: str, axes: Any) -> None:
    plot_traces(axes, RNG.normal(size=(50, 3)), spacing=spacing, unit=unit)
    assert axes.get_ylabel() == f"features, {told} apart"


def test_traces_without_a_spacing_do_not_overlap(axes: Any) -> None:
    y = RNG.normal(size=(50, 3)) * [1.0, 10.0, 0.1]
    plot_traces(axes, y)
    lines = [line.get_ydata() for line in axes.lines]
    # Around their own zero lines, neighbours are at least the widest range apart.
    offsets = [np.mean(line - y[:, feature]) for feature, line in enumerate(lines)]
    assert np.diff(offsets) == pytest.approx(-np.ptp(y, axis=0).max())
    assert axes.get_xlabel() == "time (bins)"
    plot_traces(axes, np.zeros((5, 2)))


def test_evidence_and_its_running_mean(axes: Any) -> None:
    evidence = -10.0 + 0.01 * np.arange(200.0)
    plot_evidence(axes, evidence, np.array([0, 200]), np.array([-11.0, -9.0]))
    minibatch, mean, held_out = axes.lines
    np.testing.assert_array_equal(minibatch.get_ydata(), evidence)
    # The running mean of a straight line is the line itself.
    np.testing.assert_allclose(mean.get_ydata(), np.interp(mean.get_xdata() - 0.5, np.arange(200), evidence))
    np.testing.assert_array_equal(held_out.get_xydata(), [[0, -11], [200, -9]])
    assert axes.get_ylabel() == "log evidence (nats per time bin)"
    low, high = axes.get_ylim()
    assert low < -9.9
    assert high > -8.1


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_short_fits_are_drawn_too(axes: Any, steps: int, tmp_path: Path) -> None:
    plot_evidence(axes, np.full(steps, -3.0), np.empty(0, dtype=int), np.empty(0))
    plot_effective_size(axes, np.full(steps, 0.5))
    save_figure(axes.figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_effective_size_is_a_percentage(axes: Any) -> None:
    plot_effective_size(axes, np.array([1.0, 0.5]))
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [100, 50])
    assert axes.get_ylabel() == "effective particles (%)"


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pyro-lowrank\[plot\]"'):
        new_figure(1, 1, width=4, height=3)
