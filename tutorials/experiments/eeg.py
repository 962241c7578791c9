"""Networks of rank 3 that generate EEG, figure 4 and table 1 of the paper, and how all of them are judged.

Trained on the standardised raw recording, judged against the smoothed one: from a posterior sample of the state at the
recording's start, 9,640 + 2,400 bins are simulated with both noises, the first 2,400 dropped, each channel convolved
with a Hann window of 15 bins and standardised. The smoothed recording lags the raw one by 7 bins, which neither measure
sees: D_stsp has no order in time, D_H no phase. Both recordings are the same minute, and there is no other; so a second
number is the evidence of the last 10 s under another network, of the same seed, that was trained on the first 50 s.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

import numpy as np
import torch
from shared import data_file, fitted, tensor

import pyro_lowrank as plr
from pyro_lowrank import metrics
from pyro_lowrank.training.initialise import initialise_from_data

REFERENCE = {"d_stsp": "2.08 +- 0.11 (best 1.69)", "d_h": "0.106 +- 0.020 (best 0.074)"}
GOAL = {"d_stsp": 1.69, "d_h": 0.074}

TRANSIENT, SAMPLING_RATE = 2400, 160  # bins, Hz
HELD_OUT = 10 * SAMPLING_RATE  # bins


@dataclass(frozen=True)
class Settings:
    """From the principal components on, with longer windows and larger steps than the paper's; see `eeg_learning`."""

    rank: int = 3
    units: int = 512
    num_steps: int = 6000
    window: int = 200
    batch_size: int = 10
    num_particles: int = 10
    learning_rate: float = 5e-3
    final_learning_rate: float = 1e-5


FULL, REDUCED = Settings(), Settings(units=64, num_steps=50)
SEEDS = range(10)


def recordings() -> tuple[np.ndarray, np.ndarray]:
    """Return the standardised raw recording, and the smoothed one, time x channels."""
    with np.load(data_file("eeg_s001r01_raw.npz")) as file:
        raw = metrics.standardised(file["raw_uv"].astype(float))
    return raw, np.load(data_file("eeg_s001r01_smoothed.npy")).astype(float)


def judge(model: plr.StateSpaceModel, guide, raw: np.ndarray, smoothed: np.ndarray, seed: int) -> dict[str, float]:
    """Return D_stsp and D_H of what a model generates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = plr.SMCFilter(model, guide, num_particles=1000, max_plate_nesting=1).run(tensor(raw[None, :1]))
        generated = start.forecast(TRANSIENT + len(smoothed), num_draws=1).y[0, 0, TRANSIENT:].double().numpy()
    return measures(smoothed, generated, seed)


def measures(smoothed: np.ndarray, generated: np.ndarray, seed: int) -> dict[str, float]:
    """Return D_stsp and D_H of a generated raw recording."""
    generated = metrics.standardised(metrics.hann_smoothed(generated, window=15))
    return {
        "d_stsp_published": published_state_space_kl(smoothed, generated, seed),
        "d_stsp": float(metrics.state_space_kl(smoothed, generated, num_draws=1000, seed=seed)),
        "d_h": float(metrics.power_spectrum_hellinger(smoothed, generated, smoothing=20)),
    }


def published_state_space_kl(real: np.ndarray, generated: np.ndarray, seed: int) -> float:
    """Return D_stsp of unit kernels and 1,000 draws, without those whose density underflows in float32.

    Programs in the field leave them out. They are the draws that lie farthest from what was generated, so that the
    number is smaller than `state_space_kl`, for comparison with published ones only.
    """
    rng = np.random.default_rng(seed)
    draws = real[rng.integers(len(real), size=1000)] + rng.standard_normal((1000, real.shape[1]))
    p, q = (_density_in_float32(draws, centres) for centres in (real, generated))
    there = (p > 0) & (q > 0)
    return float(np.log(p[there] / q[there]).mean())


def _density_in_float32(draws: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = (draws**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * draws @ centres.T
    return np.exp(-0.5 * squares.astype(np.float32)).sum(1, dtype=np.float32) / np.float32(len(centres))


def trained(
    y: torch.Tensor, seed: int, settings: Settings, held_out: torch.Tensor | None = None
) -> tuple[plr.StateSpaceModel, plr.OptimalGuide, plr.FitResult]:
    """Return a network trained on one recording, its guide, and what the training went through."""
    torch.manual_seed(seed)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=settings.rank, units=settings.units, activation="clipped_relu", decay=0.9),
        plr.GaussianObservation(rank=settings.rank, features=y.shape[-1], noise_scale=0.1),
    )
    initialise_from_data(model, y)
    guide = plr.OptimalGuide(model)
    fit = fitted(model, guide, settings, seed, y, window=settings.window, held_out=held_out)
    return model, guide, fit


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and another that does not see the end of the recording."""
    raw, smoothed = recordings()
    y = tensor(raw[None])
    model, guide, fit = trained(y, seed, settings)
    *_, blind = trained(y[:, :-HELD_OUT], seed, settings, held_out=y[:, -HELD_OUT:])
    return {
        **judge(model, guide, raw, smoothed, seed),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
        "held_out_evidence_before": float(blind.held_out_evidence[0]),
        "held_out_evidence": float(blind.held_out_evidence[-1]),
        "training_seconds": fit.seconds,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def draw(figure, record: dict) -> None:
    """Draw both measures of each network, D_stsp also as it is published."""
    axes = figure.subplots()
    for name, label in (("d_stsp_published", "as published"), ("d_stsp", "no draw left out")):
        axes.scatter([row[name] for row in record["rows"]], [row["d_h"] for row in record["rows"]], s=18, label=label)
    axes.axvline(GOAL["d_stsp"], color="C3", lw=0.8)
    axes.axhline(GOAL["d_h"], color="C3", lw=0.8)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="D_stsp (nats)", ylabel="D_H", title=f"{len(record['rows'])} networks; the goals are red")
