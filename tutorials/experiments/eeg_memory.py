"""EEG whose channels remember their own past and share noise: networks of rank 3 against what needs no network.

Trained on the first 50 s of the standardised raw recording, judged on the last 10: log evidence in nats per bin, of the
network, of the same network with its dynamics frozen at zero (latents that are white: static factors), and of the
baselines without latents; and the mean squared error of forecasts from every 20th bin, each from the 100 bins before,
beside repeating the last bin (`persistence`) and each channel's own AR(4). Networks have no noise factors, or 20. What
they generate is judged as in `eeg`, with the network that was not shown the last 10 s.

The learning rate was chosen on the last 10 of the first 50 s, by networks of seed 0 that were trained on the first 40:
of 0.01 and 0.02 without noise factors (29.70 and 29.75 nats per bin; AR(4) with 3 static factors 27.27), and of 0.02
and 0.04 with 20 (63.54 and 63.52; AR(4) with 23 static factors 59.21).
"""

from __future__ import annotations

from dataclasses import dataclass

import eeg
import numpy as np
import torch
from shared import fitted, tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.memory import Past, roll
from pyro_lowrank.observations.observed import Observed

REFERENCE = {"evidence_white": -20.0, "forecast_persistence": "1, 5, 20 bins: 0.120, 0.509, 0.802"}
GOAL = {"evidence_0_factors": 34.0, "evidence_20_factors": 65.0}

HORIZONS = (1, 5, 20, 50)  # bins
SEEN = 100  # bins before a forecast
PARTICLES = 200  # of the filters that judge


@dataclass(frozen=True)
class Settings:
    """The model, and its training."""

    rank: int = 3
    units: int = 64
    order: int = 4
    noise_factors: tuple[int, ...] = (0, 20)
    num_steps: int = 1500
    window: int = 100
    batch_size: int = 10
    num_particles: int = 10
    learning_rate: float = 2e-2
    final_learning_rate: float = 2e-4


FULL, REDUCED = Settings(), Settings(num_steps=5)
SEEDS = range(2)


def network(y: torch.Tensor, settings: Settings, noise_factors: int, *, frozen: bool) -> plr.StateSpaceModel:
    """Return a network that starts at the data; frozen, its latents are white whatever it is trained on."""
    # The smallest leak there is: of the latents before next to nothing is left.
    decay = 1e-6 if frozen else 0.9
    dynamics = plr.LowRankRNN(rank=settings.rank, units=settings.units, activation="clipped_relu", decay=decay)
    observation = plr.GaussianObservation(
        rank=settings.rank,
        features=y.shape[-1],
        noise="autoregressive",
        order=settings.order,
        noise_factors=noise_factors,
    )
    model = plr.StateSpaceModel(dynamics, observation)
    if frozen:
        with torch.no_grad():
            dynamics.right_unconstrained.zero_()
        for name, parameter in dynamics.named_parameters():
            parameter.requires_grad_("noise" in name or "initial" in name)
    plr.initialise_from_data(model, y)
    return model


def origins(held_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bins before each forecast, `forecasts x bins x channels`, and those to be forecast."""
    starts = range(SEEN, held_out.shape[1] - max(HORIZONS), 20)
    before = torch.cat([held_out[:, start - SEEN : start] for start in starts])
    return before, torch.cat([held_out[:, start : start + max(HORIZONS)] for start in starts])


def errors(name: str, forecast: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return the mean squared error at each horizon."""
    found = (forecast - truth).square().mean((0, 2))
    return {f"error_{name}_{horizon}_bins": float(found[horizon - 1]) for horizon in HORIZONS}


def own_forecast(train: torch.Tensor, before: torch.Tensor, order: int) -> torch.Tensor:
    """Return what each channel's own past expects, the best forecast of AR(p) with any static factors."""
    center = train.mean((0, 1))
    memory = AutoregressiveMemory(center, partials_of_data(train - center, None, order).to(train))
    lags = Past.of(memory, Observed.of(before)).lags_after(torch.full((len(before),), SEEN - 1))
    return roll(memory, center.expand(len(before), max(HORIZONS), -1), lags)


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Train and judge networks without and with noise factors."""
    raw, smoothed = eeg.recordings()
    y = tensor(raw[None])
    train, held_out = y[:, : -eeg.HELD_OUT], y[:, -eeg.HELD_OUT :]
    table = plr.baselines(train, held_out, order=settings.order, factors=settings.rank)
    row = {f"evidence_of_{baseline.name}": baseline.nats for baseline in table.rows}
    before, truth = origins(held_out)
    row |= errors("persistence", before[:, -1:].expand(truth.shape), truth)
    row |= errors("own_past", own_forecast(train, before, settings.order), truth)
    for number in settings.noise_factors:
        for frozen in (False, True):
            torch.manual_seed(seed)
            model = network(train, settings, number, frozen=frozen)
            guide = plr.OptimalGuide(model)
            fitted(model, guide, settings, seed, train, window=settings.window)
            name = f"{'frozen_' if frozen else ''}{number}_factors"
            torch.manual_seed(seed)
            smc = plr.SMCFilter(model, guide, num_particles=PARTICLES)
            row[f"evidence_{name}"] = float(smc.run(held_out).log_evidence.sum()) / eeg.HELD_OUT
            if not frozen:
                forecast = smc.run(before).forecast(max(HORIZONS), num_draws=200).mean.mean(0)
                row |= errors(name, forecast, truth)
                row |= {f"{key}_{name}": value for key, value in eeg.judge(model, guide, raw, smoothed, seed).items()}
    return row


def _said(name: str) -> str:
    """Return what a row of the picture is called."""
    words = name.removeprefix("evidence_")
    if words.startswith("of_"):
        return words.removeprefix("of_")
    frozen, words = words.startswith("frozen_"), words.removeprefix("frozen_")
    number = words.partition("_")[0]
    return f"network, {number} factors" + (", frozen" if frozen else "")


def _named(kind: str) -> str:
    """Return what a line of the picture is called."""
    kinds = {"persistence": "the last bin", "own_past": "each channel's own past"}
    return kinds.get(kind, f"network, {kind.partition('_')[0]} factors")


def draw(figure, record: dict) -> None:
    """Draw evidence and errors of forecasts."""
    left, right = figure.subplots(1, 2)
    rows = record["rows"]
    names = sorted((name for name in rows[0] if name.startswith("evidence_")), key=lambda name: rows[0][name])
    for place, name in enumerate(names):
        left.scatter([row[name] for row in rows], [place] * len(rows), s=18, color="0.5" if "_of_" in name else "C0")
    left.set(
        yticks=range(len(names)),
        yticklabels=[_said(name) for name in names],
        xlabel="nats per held-out bin",
        title="higher is better",
    )
    left.grid(axis="y", color="0.9")
    kinds = ["persistence", "own_past", *(f"{number}_factors" for number in record["settings"]["noise_factors"])]
    for kind in kinds:
        medians = [np.median([row[f"error_{kind}_{h}_bins"] for row in rows]) for h in HORIZONS]
        right.plot(HORIZONS, medians, marker="o", ms=3, label=_named(kind))
    right.set(
        xscale="log",
        xlabel="bins ahead (1/160 s)",
        ylabel="mean squared error (SD²)",
        title="forecasts; lower is better",
    )
    right.legend(frameon=False, fontsize=7, loc="lower right")
