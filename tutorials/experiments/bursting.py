"""A bursting neuron, a limit cycle of slow and fast parts, under observation noise of 10 %: a network of rank 3.

Training and test are the same cycle, 215 bins apart: the test tells whether it was learnt, and nothing else. The cycle
takes 296 bins, so that windows are longer than for the Lorenz attractor: two of it.

How it is trained and judged, attractors.py says.
"""

from __future__ import annotations

from attractors import REDUCED, Settings, draw_generated, judged

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

REFERENCE = {}
GOAL = {}

FULL = Settings(window=600, batch_size=8, num_steps=12_000)

DATA = "bursting_neuron"


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network."""
    return judged(DATA, seed, settings)


def draw(figure, record: dict) -> None:
    """Draw the test, what the first seed generates, and both measures of each network."""
    draw_generated(figure, record, DATA)
