"""A student learns to integrate a noisy input that varies in time, and decides as its teacher does: 60 units, rank 1.

The choice is the sign of the teacher's own readout of the currents in the last bin. Both networks see the same inputs,
without noise in the latents, so that a difference is one of the networks; and with it, for the psychometric curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import Teacher, data_file, fitted, noise_std, student, tensor

import pyro_lowrank as plr
from pyro_lowrank.training.initialise import initialise_from_data

REFERENCE = {"agreement": "recovered (figure)"}
GOAL = {"agreement": 0.97}

NOISE, OBSERVATION_NOISE = 0.05, 0.1
COHERENCES = np.array([-4, -2, -1, 1, 2, 4])


@dataclass(frozen=True)
class Settings:
    """The paper's trials, half as many and larger steps, from the principal components on."""

    num_trials: int = 400
    num_bins: int = 100
    num_steps: int = 10_000
    batch_size: int = 10
    num_particles: int = 64
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    decay: float = 0.7
    num_test_trials: int = 1200


FULL, REDUCED = Settings(), Settings(num_trials=60, num_steps=150, num_particles=16, num_test_trials=120)


def inputs(num_trials: int, num_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise, with a mean of a tenth of the trial's coherence in bins 5 to 44, trials x time x 1."""
    u = 0.1 * rng.standard_normal((num_trials, num_bins, 1))
    u[:, 5:45, 0] += 0.1 * COHERENCES[np.arange(num_trials) % len(COHERENCES), None]
    return u


def choices(currents: np.ndarray) -> np.ndarray:
    """Return the sign of the teacher's readout in the last bin, of currents trials x time x units."""
    with np.load(data_file("teacher_rdm_rnn.npz")) as file:
        readout = file["w_out"][:, 0].astype(float)
    return np.sign(np.maximum(currents[:, -1], 0) @ readout)


@torch.no_grad()
def without_noise(model: plr.StateSpaceModel, u: np.ndarray) -> np.ndarray:
    """Return the currents of a student whose latents have no noise, trials x time x units."""
    transition = model.dynamics.transition()
    v = transition.drift.effective_inputs(tensor(u))
    z = [transition.first_mean(v[:, 0])]
    for t in range(1, u.shape[1]):
        z.append(model.dynamics(z[-1], v[:, t - 1]))
    return model.observation.mean(torch.stack(z, 1), v).double().numpy()


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one student."""
    teacher = Teacher.load("rdm_rnn")
    rng = np.random.default_rng(seed)
    u = inputs(settings.num_trials, settings.num_bins, rng)
    v = teacher.filtered(u)
    start = NOISE * rng.standard_normal((settings.num_trials, 1))
    x = teacher.currents(teacher.latents(start, settings.num_bins, NOISE, rng, v), v)
    y = tensor(x + OBSERVATION_NOISE * rng.standard_normal(x.shape))
    torch.manual_seed(seed)
    model = student(teacher, decay=settings.decay, observation_noise=OBSERVATION_NOISE, inputs=1, input_filter=True)
    initialise_from_data(model, y, tensor(u))
    fit = fitted(model, plr.OptimalGuide(model), settings, seed, y, tensor(u))
    return {
        **judge(teacher, model, settings, rng),
        "noise_std": noise_std(model),
        "decay": float(model.dynamics.decay.detach()),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
    }


def judge(teacher: Teacher, model: plr.StateSpaceModel, settings: Settings, rng: np.random.Generator) -> dict:
    """Return how often a student chooses as the teacher does, and both psychometric curves."""
    u = inputs(settings.num_test_trials, settings.num_bins, rng)
    v = teacher.filtered(u)
    silent = np.zeros((len(u), 1))
    true = choices(teacher.currents(teacher.latents(silent, settings.num_bins, 0.0, rng, v), v))
    noisy = [
        choices(
            teacher.currents(
                teacher.latents(NOISE * rng.standard_normal((len(u), 1)), settings.num_bins, NOISE, rng, v), v
            )
        )
        for _ in range(2)
    ]
    with_noise = choices(model.simulate(u=tensor(u)).mean.double().numpy())
    curves = {
        name: [float((chosen[place :: len(COHERENCES)] > 0).mean()) for place in range(len(COHERENCES))]
        for name, chosen in (("teacher", noisy[0]), ("student", with_noise))
    }
    return {
        "agreement": float((choices(without_noise(model, u)) == true).mean()),
        "agreement_with_noise": float((with_noise == noisy[0]).mean()),
        "agreement_of_teacher_with_itself": float((noisy[1] == noisy[0]).mean()),
        "curve_off": float(np.abs(np.subtract(*curves.values())).max()),
        "curves": curves,
    }


def draw(figure, record: dict) -> None:
    """Draw the psychometric curves, and how often each student agrees."""
    left, right = figure.subplots(1, 2)
    for row in record["rows"]:
        left.plot(COHERENCES, row["curves"]["student"], "C0.-", lw=0.8, label="students")
    left.plot(COHERENCES, record["rows"][0]["curves"]["teacher"], "k.-", label="teacher")
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[-2:], labels[-2:], frameon=False)
    left.set(xlabel="coherence", ylabel="share of choices to the right", title="with noise in the latents")
    names = ("agreement", "agreement_with_noise", "agreement_of_teacher_with_itself")
    for place, name in enumerate(names):
        right.scatter([row[name] for row in record["rows"]], [place] * len(record["rows"]), s=14, color="C0", zorder=3)
    right.axvline(GOAL["agreement"], color="C3", lw=0.8)
    right.set_yticks(range(3), ["same input, no noise", "with noise", "teacher and teacher, with noise"])
    right.set(xlabel="same choice; the goal is red", title="each student")
    right.locator_params(axis="x", nbins=5)
    right.invert_yaxis()
