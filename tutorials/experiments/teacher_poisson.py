"""A student learns a noisy oscillator from its spikes: 40 units, 200 bins, appendix of the paper.

With a convolutional encoder, as in the paper. Judged as in `teacher_gaussian`, against 400 new trials of the teacher;
`floor` is what the training trials would get.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import Teacher, fitted, noise_std, tensor

import pyro_lowrank as plr
from pyro_lowrank import metrics
from pyro_lowrank.training.initialise import initialise_from_data

REFERENCE = {
    "rates_off": "0.061",
    "rates_r": "0.991",
    "isi_off": "0.057",
    "isi_r": "0.979",
    "correlation_r": "0.928",
    "correlation_rmse": "0.019",
}
GOAL = {"rates_off": 0.03, "isi_off": 0.03, "correlation_r": 0.96}

NOISE, GAIN, BIAS = 0.2, 4.0, -3.0


@dataclass(frozen=True)
class Settings:
    """The paper's trials; fewer and larger steps than its 60,000, from the principal components on."""

    num_trials: int = 400
    num_bins: int = 200
    num_steps: int = 6000
    batch_size: int = 10
    num_particles: int = 64
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    decay: float = 0.9


FULL, REDUCED = Settings(), Settings(num_trials=40, num_bins=60, num_steps=40, num_particles=16)


def draw_trials(teacher: Teacher, num_trials: int, num_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Return spike counts of the teacher, trials x time x units."""
    z = teacher.latents(teacher.ring_start(num_trials, NOISE, rng), num_bins, NOISE, rng)
    return rng.poisson(np.logaddexp(0, GAIN * teacher.currents(z) + BIAS)).astype(float)


def compare(truth: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Return how far statistics of generated spikes are from the true ones."""
    rates = metrics.agreement(*(metrics.mean_rates(x) for x in (truth, generated)))
    intervals = metrics.agreement(*(metrics.isi_statistics(x).mean for x in (truth, generated)))
    pairs = metrics.agreement(*(metrics.pairwise_correlations(x) for x in (truth, generated)))
    return {
        "rates_off": rates.relative,
        "rates_r": rates.correlation,
        "isi_off": intervals.relative,
        "isi_r": intervals.correlation,
        "correlation_r": pairs.correlation,
        "correlation_rmse": pairs.rmse,
    }


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one student."""
    teacher = Teacher.load("osc_rnn_poisson")
    y = draw_trials(teacher, settings.num_trials, settings.num_bins, np.random.default_rng(seed))
    truth = draw_trials(teacher, settings.num_trials, settings.num_bins, np.random.default_rng(10**6))
    torch.manual_seed(seed)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=teacher.units, activation="relu", decay=settings.decay),
        plr.PoissonObservation(readout=plr.UnitReadout(units=teacher.units, source="currents")),
    )
    initialise_from_data(model, tensor(y))
    fit = fitted(
        model,
        plr.EncoderGuide(model, plr.ConvEncoder(teacher.units, 2, (21, 11, 1), (64, 64), padding="acausal")),
        settings,
        seed,
        tensor(y),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generated = model.simulate(num_trials=len(truth), num_steps=settings.num_bins).y.double().numpy()
    return {
        **compare(truth, generated),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
        "noise_std": noise_std(model, model.observation.readout.scale / GAIN),
        **{f"floor_{name}": value for name, value in compare(truth, y).items()},
        "rates": {"true": metrics.mean_rates(truth), "student": metrics.mean_rates(generated)},
    }


def draw(figure, record: dict) -> None:
    """Draw the rates of each unit."""
    axes = figure.subplots()
    for row in record["rows"]:
        axes.scatter(row["rates"]["true"], row["rates"]["student"], s=10, label=f"seed {row['seed']}")
    limit = max(record["rows"][0]["rates"]["true"])
    axes.plot([0, limit], [0, limit], color="k", lw=0.8)
    axes.legend(frameon=False)
    axes.set(
        xlabel="rate of the teacher (counts per bin)", ylabel="rate of the student (counts per bin)", title="each unit"
    )
