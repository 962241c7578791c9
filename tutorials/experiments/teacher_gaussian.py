"""A student learns a noisy oscillator from what it does: 20 units seen through Gaussian noise, figure 3 of the paper.

The teacher draws the training trials anew for every seed, and 2,000 more, the same for all seeds, which tell what is
true. The student generates as many from scratch. A second set of as many trials as were trained on tells how well a
set of that size knows the truth: `floor`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import Teacher, fitted, noise_std, student, tensor

import pyro_lowrank as plr
from pyro_lowrank import metrics

REFERENCE = {
    "noise_std": "0.2014, 0.2012",
    "sd_off": "0.037",
    "autocorrelation_rmse": "0.052 to 0.060",
    "correlation_rmse": "0.013",
}
GOAL = {"noise_off": 0.01, "sd_off": 0.02, "autocorrelation_rmse": 0.03, "correlation_rmse": 0.010}

NOISE, OBSERVATION_NOISE = 0.2, 0.1


@dataclass(frozen=True)
class Settings:
    """The paper's: 1,000 epochs of 20 batches."""

    num_trials: int = 200
    num_bins: int = 75
    num_steps: int = 20_000
    batch_size: int = 10
    num_particles: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    decay: float = 0.7
    noise: float = NOISE
    max_lag: int = 50
    num_true_trials: int = 2000


FULL, REDUCED = (
    Settings(),
    Settings(num_trials=50, num_steps=300, num_particles=16, learning_rate=1e-2, num_true_trials=500),
)


def draw_trials(
    teacher: Teacher, num_trials: int, num_bins: int, rng: np.random.Generator, noise: float = NOISE
) -> np.ndarray:
    """Return recordings of the teacher, trials x time x units."""
    z = teacher.latents(teacher.ring_start(num_trials, noise, rng), num_bins, noise, rng)
    y = teacher.currents(z)
    return y + OBSERVATION_NOISE * rng.standard_normal(y.shape)


def compare(truth: np.ndarray, generated: np.ndarray, max_lag: int) -> dict[str, float]:
    """Return how far statistics of generated trials are from the true ones."""
    deviations = [x.std((0, 1)) for x in (truth, generated)]
    correlations = [metrics.autocorrelation(x, max_lag=max_lag) for x in (truth, generated)]
    pairs = [metrics.pairwise_correlations(x) for x in (truth, generated)]
    return {
        "sd_off": metrics.agreement(*deviations).relative,
        "autocorrelation_rmse": metrics.agreement(*correlations).rmse,
        "correlation_rmse": metrics.agreement(*pairs).rmse,
    }


def judge(model: plr.StateSpaceModel, truth: np.ndarray, settings: Settings) -> dict[str, float]:
    """Return the numbers of one student, which may also be one of the authors'."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generated = model.simulate(num_trials=len(truth), num_steps=settings.num_bins).y.double().numpy()
    found = noise_std(model)
    return {
        "noise_std": found,
        "noise_off": abs(found - settings.noise) / settings.noise,
        **compare(truth, generated, settings.max_lag),
        "curves": {
            "true": metrics.autocorrelation(truth, max_lag=settings.max_lag)[:, 0],
            "student": metrics.autocorrelation(generated, max_lag=settings.max_lag)[:, 0],
        },
    }


def training_trials(seed: int, settings: Settings, num_sets: int = 1) -> list[np.ndarray]:
    """Return sets of trials to train on, trials x time x units; the first does not depend on how many there are."""
    teacher, rng = Teacher.load("osc_rnn"), np.random.default_rng(seed)
    size = settings.num_trials, settings.num_bins
    return [draw_trials(teacher, *size, rng, settings.noise) for _ in range(num_sets)]


def trained(
    y: np.ndarray, seed: int, settings: Settings, guide_of=plr.OptimalGuide, elbo: plr.SMC_ELBO | None = None
) -> tuple[plr.StateSpaceModel, plr.FitResult]:
    """Return a student, and what its training went through."""
    torch.manual_seed(seed)
    model = student(Teacher.load("osc_rnn"), decay=settings.decay, observation_noise=OBSERVATION_NOISE)
    return model, fitted(model, guide_of(model), settings, seed, tensor(y), elbo=elbo)


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one student."""
    y, again = training_trials(seed, settings, num_sets=2)
    rng = np.random.default_rng(10**6)
    truth = draw_trials(Teacher.load("osc_rnn"), settings.num_true_trials, settings.num_bins, rng, settings.noise)
    model, fit = trained(y, seed, settings)
    floor = compare(truth, again, settings.max_lag)
    return {
        **judge(model, truth, settings),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
        **{f"floor_{name}": value for name, value in floor.items()},
    }


def draw(figure, record: dict) -> None:
    """Draw the autocorrelation of one unit, and the spread of the errors over seeds beside their goals."""
    left, right = figure.subplots(1, 2)
    for row in record["rows"]:
        left.plot(row["curves"]["student"], color="C0", lw=1, label="students")
    left.plot(record["rows"][0]["curves"]["true"], color="k", lw=1.5, label="teacher")
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[-2:], labels[-2:], frameon=False)
    left.set(xlabel="lag (bins)", ylabel="autocorrelation", title="unit 1")
    for place, (name, goal) in enumerate(GOAL.items()):
        right.scatter([row[name] for row in record["rows"]], [place] * len(record["rows"]), s=14, color="C0", zorder=3)
        right.scatter(goal, place, marker="|", s=300, color="C3", zorder=2)
    right.set_yticks(range(len(GOAL)), [name.replace("_", " ") for name in GOAL])
    right.set(xscale="log", xlabel="error; the goal is red", title="each student")
    right.invert_yaxis()
