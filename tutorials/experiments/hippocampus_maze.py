"""A rat on a W maze: runs between the ends of its three arms, hippocampal units, 25 ms bins, a network of rank 4.

An end is the outer tenth of an arm. The position is that in the plane of the camera, both coordinates in shares of the
maze's width: places on two arms that are near each other are near each other in it, which they are not along a line
that the arms are laid on. Its R2 is one less the squared distance from the true position over that of the true position
from its mean. How networks are trained, here for three times as many steps, and the position is decoded,
hippocampus.py says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hippocampus import FULL as TRACK
from hippocampus import GOAL, REDUCED, REFERENCE, Settings, draw_decoded, judged, runs_of

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

EDGE = 0.1

# Three times as many steps as on the track.
FULL = Settings(replace(TRACK.training, num_steps=9000))


def maze(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position in shares of the maze's width, across and along the arms, and the end that the animal is at.

    The arms stand at the two sides and in the middle; their ends are at large second coordinates.
    """
    extent = np.ptp(pixels, axis=0)
    across, along = ((pixels - pixels.min(0)) / extent).T
    arm = np.digitize(across, [1 / 3, 2 / 3])
    return (pixels - pixels.min(0)) / extent[0], np.where(along > 1 - EDGE, arm, -1)


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    return judged(*runs_of("ca1_w_maze.npz", maze, longest=25.0), seed, settings)


def draw(figure, record: dict) -> None:
    """Draw both coordinates of held-out runs, decoded and real, and all scores."""
    draw_decoded(figure, record, ["across the arms", "along the arms"])
