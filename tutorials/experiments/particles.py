"""What more particles buy: the noise that a student of `teacher_gaussian` finds with 1, 10, 64 and 256 of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import teacher_gaussian

REFERENCE = {"noise_off_256": "more particles, better noise estimate (figure)"}
GOAL: dict[str, float] = {}


BASE = replace(teacher_gaussian.FULL, num_steps=3000, learning_rate=1e-2, final_learning_rate=1e-4)


@dataclass(frozen=True)
class Settings:
    """Numbers of particles, and all else as in `teacher_gaussian`, with fewer and larger steps."""

    numbers: tuple[int, ...] = (1, 10, 64, 256)
    base: teacher_gaussian.Settings = BASE


FULL, REDUCED = Settings(), Settings(numbers=(1, 10), base=teacher_gaussian.REDUCED)


def run(seed: int, settings: Settings) -> dict:
    """Train one student for each number of particles, on the same trials."""
    row: dict = {"curve": {}}
    for number in settings.numbers:
        started = time.perf_counter()
        found = teacher_gaussian.run(seed, replace(settings.base, num_particles=number))
        row |= {f"noise_off_{number}": found["noise_off"], f"seconds_{number}": time.perf_counter() - started}
        row["curve"][str(number)] = found["noise_std"]
    return row


def draw(figure, record: dict) -> None:
    """Draw the noise found against the number of particles."""
    axes = figure.subplots()
    for row in record["rows"]:
        axes.plot([int(number) for number in row["curve"]], list(row["curve"].values()), "C0.-", lw=0.8)
    axes.axhline(teacher_gaussian.NOISE, color="k", lw=0.8)
    axes.set(xscale="log", xlabel="particles", ylabel="noise found (truth in black)", title="each student")
