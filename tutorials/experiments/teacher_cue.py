"""A student learns a ring attractor that a cue sets, and where each cue leads: 60 units, 8 angles.

The angle of a state is that of its currents, projected on the teacher's left vectors; the final one of a cue is the
circular mean over 500 trials with all noises, of the student and of the teacher on the same cue. `floor` is the error
of the teacher against itself, under other noise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from shared import Teacher, fitted, noise_std, student, tensor

import pyro_lowrank as plr
from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.training.initialise import initialise_from_data

REFERENCE = {"angle_error": "recovered (figure)", "same_fixed_points": "recovered (figure)"}
GOAL = {"angle_error": 5.0, "same_fixed_points": 1}

NOISE, OBSERVATION_NOISE, CUES = 0.05, 0.05, 8


@dataclass(frozen=True)
class Settings:
    """The paper's, but larger steps, from the principal components on."""

    num_trials: int = 800
    num_bins: int = 250
    num_steps: int = 16_000
    batch_size: int = 10
    num_particles: int = 64
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    decay: float = 0.7
    num_test_trials: int = 4000


FULL, REDUCED = Settings(), Settings(num_trials=80, num_bins=100, num_steps=60, num_particles=16, num_test_trials=80)


def cues(num_trials: int, num_bins: int) -> np.ndarray:
    """Return one cue after the other, on in bins 25 to 49, trials x time x inputs."""
    angle = 2 * np.pi * (np.arange(num_trials) % CUES) / CUES
    u = np.zeros((num_trials, num_bins, 2))
    u[:, 25:50] = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
    return u


def final_angles(teacher: Teacher, currents: np.ndarray) -> np.ndarray:
    """Return the circular mean angle, in radians, in the last bin of each cue, from currents trials x time x units."""
    z = currents[:, -1] @ teacher.left
    direction = np.exp(1j * np.arctan2(z[:, 1], z[:, 0]))
    return np.angle([direction[cue::CUES].mean() for cue in range(CUES)])


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one student."""
    teacher = Teacher.load("reach_rnn")
    rng = np.random.default_rng(seed)
    u = cues(settings.num_trials, settings.num_bins)
    start = NOISE * rng.standard_normal((settings.num_trials, 2))
    x = teacher.currents(teacher.latents(start, settings.num_bins, NOISE, rng, u), u)
    y = tensor(x + OBSERVATION_NOISE * rng.standard_normal(x.shape))
    torch.manual_seed(seed)
    model = student(teacher, decay=settings.decay, observation_noise=OBSERVATION_NOISE, inputs=2)
    initialise_from_data(model, y, tensor(u))
    fit = fitted(model, plr.OptimalGuide(model), settings, seed, y, tensor(u))
    return {
        **judge(teacher, model, settings, rng),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
    }


def judge(teacher: Teacher, model: plr.StateSpaceModel, settings: Settings, rng: np.random.Generator) -> dict:
    """Return where each cue leads a student and its teacher, and the fixed points of both."""
    u = cues(settings.num_test_trials, settings.num_bins)
    true, again = (
        final_angles(teacher, teacher.currents(teacher.latents(start, settings.num_bins, NOISE, rng, u), u))
        for start in NOISE * rng.standard_normal((2, settings.num_test_trials, 2))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = final_angles(teacher, model.simulate(u=tensor(u)).mean.double().numpy())
    errors, floor = (np.abs(np.angle(np.exp(1j * (angles - true)))) * 180 / np.pi for angles in (found, again))
    # The student's latents as the teacher's: its currents, projected on the teacher's left vectors.
    basis = teacher.left.T @ model.dynamics.left.detach().double().numpy()
    lists = {"teacher": find_fixed_points(*teacher.network), "student": model.dynamics.fixed_points()}
    kinds = {name: Counter(found.stability.tolist()) for name, found in lists.items()}
    return {
        "angle_error": float(errors.max()),
        "mean_angle_error": float(errors.mean()),
        "floor_angle_error": float(floor.max()),
        "same_fixed_points": int(kinds["teacher"] == kinds["student"]),
        "fixed_points": sum(kinds["student"].values()),
        "attractors": kinds["student"]["attractor"],
        "noise_std": noise_std(model),
        "points": {
            name: {
                "z": result.points @ (basis.T if name == "student" else np.eye(2)),
                "kind": result.stability.tolist(),
            }
            for name, result in lists.items()
        },
        "angles": {"teacher": true, "student": found},
    }


def draw(figure, record: dict) -> None:
    """Draw the fixed points of teacher and first student, and the error of each cue's angle."""
    row = record["rows"][0]
    *planes, errors = figure.subplots(1, 3)
    for axes, (name, found) in zip(planes, row["points"].items(), strict=True):
        for kind, color in (("attractor", "k"), ("saddle", "C0"), ("repeller", "C3")):
            chosen = [z for z, label in zip(found["z"], found["kind"], strict=True) if label == kind]
            if chosen:
                axes.scatter(*zip(*chosen, strict=True), s=14, color=color, label=f"{kind}: {len(chosen)}")
        axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, -0.7))
        axes.set(title=name, xlabel="z1", ylabel="z2", aspect="equal")
    for row in record["rows"]:
        difference = np.exp(1j * (np.array(row["angles"]["student"]) - np.array(row["angles"]["teacher"])))
        errors.plot(45 * np.arange(CUES), np.angle(difference) * 180 / np.pi, ".-", lw=0.8)
    errors.axhspan(-GOAL["angle_error"], GOAL["angle_error"], color="C3", alpha=0.12, lw=0)
    errors.set(xlabel="cue (degrees)", ylabel="final angle, student - teacher", title="each student; the goal is red")
