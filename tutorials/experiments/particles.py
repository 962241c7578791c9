"""What more particles buy: the noise that a student of `teacher_gaussian` finds with 1, 10, 64 and 256 of them.

For teachers with less and more noise than that of `teacher_gaussian`, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import teacher_gaussian
from shared import noise_std

REFERENCE = {"noise_off_0.2_256": "more particles, better noise estimate (figure)"}
GOAL: dict[str, float] = {}


BASE = replace(teacher_gaussian.FULL, num_steps=1500, learning_rate=1e-2, final_learning_rate=1e-4)


@dataclass(frozen=True)
class Settings:
    """Noises of the teacher, numbers of particles, and all else as in `teacher_gaussian`, with fewer, larger steps."""

    noises: tuple[float, ...] = (0.05, 0.2, 0.4)
    numbers: tuple[int, ...] = (1, 10, 64, 256)
    base: teacher_gaussian.Settings = BASE


FULL, REDUCED = Settings(), Settings(noises=(0.2,), numbers=(1, 10), base=teacher_gaussian.REDUCED)


def run(seed: int, settings: Settings) -> dict:
    """Train one student for each noise and number of particles, on the same trials."""
    row: dict = {"curves": {}}
    for noise in settings.noises:
        curve = row["curves"][str(noise)] = []
        base = replace(settings.base, noise=noise)
        (y,) = teacher_gaussian.training_trials(seed, base)
        for number in settings.numbers:
            started = time.perf_counter()
            model, _ = teacher_gaussian.trained(y, seed, replace(base, num_particles=number))
            curve.append(noise_std(model))
            row[f"noise_off_{noise}_{number}"] = abs(curve[-1] - noise) / noise
            row[f"seconds_{noise}_{number}"] = time.perf_counter() - started
    return row


def draw(figure, record: dict) -> None:
    """Draw the noise found, over the true one, against the number of particles: median and range over seeds."""
    axes = figure.subplots()
    numbers = record["settings"]["numbers"]
    for place, noise in enumerate(record["settings"]["noises"]):
        found = np.array([row["curves"][str(noise)] for row in record["rows"]]) / noise
        middle, low, high = np.median(found, 0), found.min(0), found.max(0)
        x = np.array(numbers) * 1.08**place
        axes.errorbar(x, middle, [middle - low, high - middle], fmt=".-", lw=0.9, capsize=2, label=f"noise {noise}")
    axes.axhline(1, color="k", lw=0.8)
    axes.legend(frameon=False)
    title = f"{len(record['rows'])} students each: median and range"
    axes.set(xscale="log", xticks=numbers, xticklabels=numbers, xlabel="particles", title=title)
    axes.set(ylabel="noise found / true noise")
    axes.minorticks_off()
