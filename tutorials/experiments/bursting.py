"""A bursting neuron, a limit cycle of slow and fast parts, under observation noise of 10 %: a network of rank 3.

Training and test are the same cycle, 215 bins apart: the test tells whether it was learnt, and nothing else. The cycle
takes 296 bins, so that windows are longer than for the Lorenz attractor: two of it. Many steps of few particles have
more evidence, 2.42 nats per bin, than 12,000 of 16 particles, 2.40.

How it is trained and judged, attractors.py says.
"""

from __future__ import annotations

from attractors import REDUCED, Settings, draw_generated, judged

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

REFERENCE = {}
GOAL = {}

FULL = Settings(window=600, batch_size=8, num_particles=4, num_steps=40_000)

DATA = "bursting_neuron"


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network."""
    return judged(DATA, seed, settings)


def draw(figure, record: dict) -> None:
    """Draw the test, what the first seed generates, and both measures of each network."""
    draw_generated(figure, record, DATA)
