"""A bursting neuron under observation noise of 10 %, a limit cycle of fast and slow parts

How it is trained and judged, attractors.py says.
"""

from __future__ import annotations

from attractors import FULL, REDUCED, Settings, draw_generated, judged

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

REFERENCE = {}
GOAL = {}


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network."""
    return judged("bursting_neuron", seed, settings)


def draw(figure, record: dict) -> None:
    """Draw both trajectories of the first seed, and both measures of each network."""
    draw_generated(figure, record)
