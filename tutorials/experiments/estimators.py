"""Guides and gradient estimators beside each other, on the trials of `teacher_gaussian`, at about equal cost.

The students differ in what proposes and in what is differentiated, and take as many steps as make their trainings last
about as long as that of the first. All are judged by one filter: the evidence per bin of 200 new trials under the
optimal guide with 500 particles, and the noise found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import teacher_gaussian
import torch
from shared import draw_within, noise_std, tensor

import pyro_lowrank as plr

REFERENCE = {}
GOAL: dict[str, float] = {}


BASE = replace(teacher_gaussian.FULL, num_particles=16, learning_rate=1e-2, final_learning_rate=1e-4)


@dataclass(frozen=True)
class Settings:
    """Steps of each student, of as many particles as the base says, and all else as in `teacher_gaussian`."""

    optimal: int = 3000
    optimal_stop_gradient: int = 3000
    optimal_score_function: int = 3300
    bootstrap: int = 2900
    encoder: int = 1300
    base: teacher_gaussian.Settings = BASE
    test_particles: int = 500


FULL, REDUCED = Settings(), Settings(*[15] * 5, base=teacher_gaussian.REDUCED, test_particles=50)

NAMES = ("optimal", "optimal_stop_gradient", "optimal_score_function", "bootstrap", "encoder")


def objective(name: str, num_particles: int) -> plr.SMC_ELBO:
    """Return what a student of that name differentiates."""
    if name.endswith("stop_gradient"):
        return plr.SMC_ELBO(num_particles, gradient=plr.StopGradient())
    if name.endswith("score_function"):
        multinomial = plr.MultinomialResampling()
        return plr.SMC_ELBO(num_particles, gradient=plr.ScoreFunctionGradient(), resampler=multinomial)
    return plr.SMC_ELBO(num_particles, gradient=plr.PathwiseGradient())


def guide(name: str, model: plr.StateSpaceModel):
    """Return what proposes the latents of a student of that name."""
    if name == "encoder":
        return plr.EncoderGuide(model, plr.ConvEncoder(model.observation.features, model.dynamics.rank))
    return plr.BootstrapGuide(model) if name == "bootstrap" else plr.OptimalGuide(model)


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Train and judge one student of each name, on the same trials."""
    base, row = settings.base, {}
    y, new = teacher_gaussian.training_trials(seed, base, num_sets=2)
    for name in NAMES:
        started = time.perf_counter()
        model, _ = teacher_gaussian.trained(
            y,
            seed,
            replace(base, num_steps=getattr(settings, name)),
            lambda model, name=name: guide(name, model),
            objective(name, base.num_particles),
        )
        row[f"seconds_{name}"] = time.perf_counter() - started
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            judge = plr.SMCFilter(model, plr.OptimalGuide(model), settings.test_particles)
            row[f"evidence_{name}"] = float(judge.run(tensor(new)).log_evidence.mean()) / base.num_bins
        row[f"noise_off_{name}"] = abs(noise_std(model) - base.noise) / base.noise
    return row


def draw(figure, record: dict) -> None:
    """Draw evidence and noise of each student."""
    best = max(row[f"evidence_{name}"] for row in record["rows"] for name in NAMES)
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("evidence", "noise_off"), strict=True):
        for place, name in enumerate(NAMES):
            values = [row[f"{what}_{name}"] for row in record["rows"]]
            # What is far below would hide how far the others are apart.
            draw_within(axes, values, place, lowest=best - 12 if what == "evidence" else 0.0)
        axes.set_yticks(range(len(NAMES)), [name.replace("_", " ", 1).replace("_", "-") for name in NAMES])
    axes.set(xscale="log", xlabel="noise off by (share of the true one)", title="lower is better")
    figure.axes[0].set(
        xlabel="evidence of new trials (nats per bin; triangles: lower)", title="each student; higher is better"
    )
    axes.invert_yaxis()
