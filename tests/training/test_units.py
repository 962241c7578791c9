"""The unit of the data does not matter to starts and fits, whatever door they come by, or it is told that it does."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer.smcfilter import SMCFailed

import pyro_lowrank as plr
from pyro_lowrank.cli import main
from pyro_lowrank.data import Recording, from_mne
from pyro_lowrank.training.initialise import start_at_means
from tests.training.builders import small_fit

CHANNELS, BINS = 8, 400


def volts() -> Recording:
    """Eight channels of some ten microvolts, an oscillation and noise, as MNE hands them out."""
    mne = pytest.importorskip("mne", reason="the extra `mne` is not installed")
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * np.arange(BINS) / 50
    signals = rng.normal(size=(CHANNELS, 2)) @ [np.sin(phase), np.cos(phase)] + 0.3 * rng.normal(size=(CHANNELS, BINS))
    raw = mne.io.RawArray(1e-5 * signals, mne.create_info(CHANNELS, 100.0, "eeg"), verbose="error")
    return from_mne(raw)


def pair(seed: int = 0, **options: Any) -> tuple[plr.StateSpaceModel, plr.OptimalGuide]:
    """A new model of the channels, and its guide."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        observation = plr.GaussianObservation(rank=2, features=CHANNELS, **options)
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=16, **options), observation)
    return model, plr.OptimalGuide(model)


@pytest.mark.parametrize("initialised", [True, False])
def test_a_fit_of_volts_is_that_of_ten_microvolts(initialised: bool) -> None:
    recording, found = volts(), []
    for scale in (1.0, 1e5):
        scaled = replace(recording, data=scale * recording.data)
        model, guide = pair()
        if initialised:
            plr.initialise_from_data(model, scaled)
        result = plr.fit(model, guide, scaled, num_steps=30, num_particles=8, seed=0, progress=False)
        found.append(np.asarray(result.evidence) + CHANNELS * math.log(scale))
    assert found[0][-5:].mean() > found[0][:5].mean()
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("standardise", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_command_line_takes_volts(standardise: bool, tmp_path: Path) -> None:
    recording, found = volts(), []
    for name, scale in (("volts", 1.0), ("microvolts", 1e6)):
        np.save(tmp_path / f"{name}.npy", scale * recording.data)
        out = tmp_path / name
        words = [
            "fit",
            str(tmp_path / f"{name}.npy"),
            "--out",
            str(out),
            "--rank",
            "2",
            "--units",
            "16",
            "--steps",
            "10",
        ]
        assert main([*words, *["--no-standardise"] * (not standardise)]) == 0
        evidence = json.loads((out / "summary.json").read_text())["held_out_evidence_per_bin"]["after"]
        model = plr.load(out / "model.safetensors")[0]
        found.append((evidence + CHANNELS * math.log(scale) * (not standardise), model.observation.noise_scale / scale))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_noises_start_in_the_units_of_each_feature(scale: float) -> None:
    """Volts beside teslas, a channel that never changes, one without any entry, all of them small or large."""
    y = torch.randn(1, 500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes = scale * torch.tensor([1.0, 1e-8, 0.0, 1.0], dtype=torch.float64)
    y = y * sizes + scale * torch.tensor([0.0, 0.0, 0.1, 0.0], dtype=torch.float64)
    y[..., 3] = torch.nan
    observation = plr.GaussianObservation(rank=1, features=4, dtype=torch.float64)
    start_at_means(observation, y)
    expected = torch.tensor(
        [scale, 1e-8 * scale, 1e-3 * scale * math.sqrt(0.5), scale * math.sqrt(0.5)], dtype=torch.float64
    )
    torch.testing.assert_close(observation.noise_scale.detach(), expected, rtol=0.1, atol=0.0)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4, dtype=torch.float64), observation)
    plr.initialise_from_data(model, y[..., [0, 1, 2, 0]])
    assert float(model.observation.noise_scale[1]) == pytest.approx(1e-8 * scale, rel=0.1)


def test_sizes_that_floats_cannot_square_are_told() -> None:
    recording = volts()
    teslas = replace(recording, data=1e-8 * recording.data)
    with (
        pytest.warns(UserWarning, match="Feature 0 of `y` spreads by .*e-14, and gradients in float32 hold its fourth"),
        pytest.raises(SMCFailed, match="not finite"),
    ):
        small_fit(*pair(), teslas, num_steps=1, start_at_data=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_fit(*pair(dtype=torch.float64), teslas, num_steps=1, start_at_data=True)


@pytest.mark.parametrize(("readout_scale", "told"), [(1.0, True), (1e-5, False)])
def test_units_that_are_far_from_the_data_are_told(readout_scale: float, told: bool) -> None:
    readout = plr.UnitReadout(units=CHANNELS, source="rates", scale=readout_scale)
    dynamics = plr.LowRankRNN(rank=2, units=CHANNELS)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(readout=readout, noise_scale=1e-5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small_fit(model, plr.BootstrapGuide(model), volts(), num_steps=1)
    assert any("the network's units, of a size about 1, are read off" in str(one.message) for one in caught) == told
