"""A rat on a linear track: runs from end to end, hippocampal units, 25 ms bins, a network of rank 4.

An end is the outer tenth of the track. How networks are trained and the position is decoded, hippocampus.py says.
"""

from __future__ import annotations

import numpy as np
from hippocampus import FULL, GOAL, REDUCED, REFERENCE, Settings, draw_decoded, judged, runs_of

__all__ = ["FULL", "GOAL", "REDUCED", "REFERENCE", "draw", "run"]

EDGE = 0.1


def track(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position along the track as a share of its length, and the end that the animal is at."""
    centred = pixels - pixels.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    place = (along - along.min()) / (along.max() - along.min())
    return place[:, None], np.select([place < EDGE, place > 1 - EDGE], [0, 1], -1)


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    return judged(*runs_of("ca1_linear_track.npz", track, longest=10.0), seed, settings)


def draw(figure, record: dict) -> None:
    """Draw positions of held-out runs, decoded and real, and all scores."""
    draw_decoded(figure, record, ["share of the track"])
