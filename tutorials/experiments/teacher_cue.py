"""A student learns a ring attractor that a cue sets, and where each cue leads: 60 units, 8 angles.

The angle of a state is that of its currents, projected on the teacher's left vectors; the final one of a cue is the
circular mean over 500 trials with all noises, of the student and of the teacher on the same cue. `floor` is the error
of the teacher against itself, under other noise.

`from_teacher` is a student that starts at the teacher's own weights and noise and is trained on the same trials. It has
nothing to find, so its error is what these trials, seen with so many particles, leave open. Evidence of both is told as
nats a trial above that of the teacher itself, on the training trials and on as many new ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from shared import Teacher, draw_fixed_points, fitted, noise_std, student, tensor

import pyro_lowrank as plr
from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.training.initialise import initialise_from_data

REFERENCE = {"angle_error": "recovered (figure)", "same_fixed_points": "recovered (figure)"}
GOAL = {"angle_error": 5.0, "same_fixed_points": 1}

NOISE, OBSERVATION_NOISE, CUES = 0.05, 0.05, 8
FROM_TEACHER = ("angle_error", "mean_angle_error", "same_fixed_points", "fixed_points", "attractors")


@dataclass(frozen=True)
class Settings:
    """A quarter of the paper's particles, 2.5 times its steps, and larger ones, from the principal components on."""

    num_trials: int = 800
    num_bins: int = 250
    num_steps: int = 40_000
    batch_size: int = 10
    num_particles: int = 16
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-5
    decay: float = 0.7
    num_test_trials: int = 4000
    num_steps_from_teacher: int = 8000
    learning_rate_from_teacher: float = 1e-3


FULL = Settings()
REDUCED = Settings(num_trials=80, num_bins=100, num_steps=60, num_test_trials=80, num_steps_from_teacher=20)


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


def trials(teacher: Teacher, u: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Return recordings of the teacher, trials x time x units, for these inputs."""
    start = NOISE * rng.standard_normal((len(u), 2))
    x = teacher.currents(teacher.latents(start, u.shape[1], NOISE, rng, u), u)
    return tensor(x + OBSERVATION_NOISE * rng.standard_normal(x.shape))


def itself(teacher: Teacher) -> plr.StateSpaceModel:
    """Return the teacher with its noises, in the form of a student."""
    model = student(teacher, decay=teacher.decay, observation_noise=OBSERVATION_NOISE, inputs=2)
    dynamics, noise = model.dynamics, NOISE * torch.eye(2)
    weights = {"left": teacher.left, "right": teacher.right, "input_weights": teacher.input_weights}
    with torch.no_grad():
        for name, values in (*weights.items(), ("bias", -teacher.bias)):
            getattr(dynamics, name).copy_(tensor(values))
    dynamics.noise_scale = dynamics.initial_noise_scale = noise
    return model


def evidence(model: plr.StateSpaceModel, y: torch.Tensor, u: torch.Tensor) -> float:
    """Return the mean log evidence of a trial, in nats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(plr.SMCFilter(model, plr.OptimalGuide(model), 100).run(y, u).log_evidence.double().mean())


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one student, and one from the teacher on."""
    teacher = Teacher.load("reach_rnn")
    rng = np.random.default_rng(seed)
    cued = cues(settings.num_trials, settings.num_bins)
    u, (y, new) = tensor(cued), (trials(teacher, cued, rng) for _ in range(2))
    torch.manual_seed(seed)
    model = student(teacher, decay=settings.decay, observation_noise=OBSERVATION_NOISE, inputs=2)
    initialise_from_data(model, y, u)
    fit = fitted(model, plr.OptimalGuide(model), settings, seed, y, u)
    best = itself(teacher)
    known = [evidence(best, each, u) for each in (y, new)]
    shorter = replace(
        settings, num_steps=settings.num_steps_from_teacher, learning_rate=settings.learning_rate_from_teacher
    )
    fitted(best, plr.OptimalGuide(best), shorter, seed, y, u)
    found = judge(teacher, model, settings, rng)
    for name, each in (("", model), ("_from_teacher", best)):
        for part, recordings, nats in zip(("training", "new"), (y, new), known, strict=True):
            found[f"{part}_nats_above_teacher{name}"] = evidence(each, recordings, u) - nats
    for name, value in judge(teacher, best, settings, rng).items():
        if name in FROM_TEACHER:
            found[f"{name}_from_teacher"] = value
    return {**found, "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean())}


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
    reach = max(np.abs(found["z"]).max() for found in row["points"].values())
    for axes, (name, found) in zip(planes, row["points"].items(), strict=True):
        draw_fixed_points(axes, found["z"], found["kind"], reach)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.25))
        axes.set(title=name)
    for row in record["rows"]:
        difference = np.exp(1j * (np.array(row["angles"]["student"]) - np.array(row["angles"]["teacher"])))
        errors.plot(45 * np.arange(CUES), np.angle(difference) * 180 / np.pi, ".-", lw=0.8, label=f"seed {row['seed']}")
    errors.axhspan(-GOAL["angle_error"], GOAL["angle_error"], color="C3", alpha=0.12, lw=0)
    errors.set(xlabel="cue (degrees)", ylabel="off the teacher's (degrees)", title="final angles; red: the goal")
    errors.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.25))
