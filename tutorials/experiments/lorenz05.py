"""The Lorenz attractor, chaotic, under observation noise of 5 %: a network of rank 3.

How it is trained and judged, attractors.py says.
"""

from __future__ import annotations

from attractors import FULL, REDUCED, Settings, draw_generated, judged

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

REFERENCE = {}
GOAL = {}

DATA = "lorenz63_noise05"


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network."""
    return judged(DATA, seed, settings)


def draw(figure, record: dict) -> None:
    """Draw the test, what the first seed generates, and both measures of each network."""
    draw_generated(figure, record, DATA)
