"""The authors' own students, read by `load_smc_rnns` and judged as ours are.

It takes a checkout of the authors' repository, which the environment variable SMC_RNNS names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import teacher_cue
import teacher_gaussian
import teacher_input
from shared import REPOSITORY, DataMissing, Teacher

import pyro_lowrank as plr

REFERENCE: dict[str, str] = {}
GOAL: dict[str, float] = {}
SEEDS = (0,)


@dataclass(frozen=True)
class Settings:
    """Where the models lie in the checkout."""

    gaussian: tuple[str, ...] = ("models/students/SW20_1000_new", "tutorial/tutorial_data/tutorial_cont")
    cue: str = "models/students/reach_vae_new"
    input: str = "models/students/rdm_student_new"


FULL = REDUCED = Settings()


def run(seed: int, settings: Settings) -> dict:
    """Judge each student."""
    checkout = os.environ.get("SMC_RNNS")
    if not checkout:
        raise DataMissing(f"Set the environment variable SMC_RNNS to a checkout of {REPOSITORY}.")

    def load(name: str) -> plr.StateSpaceModel:
        return plr.load_smc_rnns(Path(checkout, name))[0]

    full = teacher_gaussian.FULL
    rng = np.random.default_rng(10**6)
    truth = teacher_gaussian.draw_trials(Teacher.load("osc_rnn"), full.num_true_trials, full.num_bins, rng)
    students = {Path(name).name: teacher_gaussian.judge(load(name), truth, full) for name in settings.gaussian}
    for name, module, teacher in ((settings.cue, teacher_cue, "reach_rnn"), (settings.input, teacher_input, "rdm_rnn")):
        rng = np.random.default_rng(seed)
        students[Path(name).name] = module.judge(Teacher.load(teacher), load(name), module.FULL, rng)
    return {"students": students}


def draw(figure, record: dict) -> None:
    """Draw the fixed points of the authors' cued student, and the psychometric curves of the other with inputs."""
    students = record["rows"][0]["students"]
    left, right = figure.subplots(1, 2)
    found = students["reach_vae_new"]["points"]
    for name, marker in (("teacher", "o"), ("student", "x")):
        left.scatter(*np.array(found[name]["z"]).T, marker=marker, s=18, label=f"{name}: {len(found[name]['z'])}")
    left.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    left.set(title="fixed points", xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)", aspect="equal")
    # The curves lie on one another.
    for (name, curve), style in zip(students["rdm_student_new"]["curves"].items(), ("-", "--"), strict=True):
        right.plot(teacher_input.COHERENCES, curve, style, marker=".", label=name)
    right.legend(frameon=False)
    right.set(title="noisy input", xlabel="coherence", ylabel="share of choices to the right")
