"""A random share of the trials, with as large a share of every condition."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import as_labels, label_codes, missing_labels


def draw_trials(num_trials: int, number: int, labels: ArrayLike | None = None, *, seed: int = 0) -> NDArray[np.bool_]:
    """Return which trials are drawn, `trials`: as many of each condition as its share of all, up to rounding.

    What rounding leaves over goes to the conditions that it took most from. A condition gives never all of its trials,
    unless there are not enough others; where a trial has no label, all are drawn from alike.

    Args:
        num_trials: to draw from.
        number: to draw, fewer than all.
        labels: one per trial, or None.
        seed: of the draw.

    Raises:
        ValueError: if there are not as many labels as trials, or none would be left.

    Example:
        >>> draw_trials(10, 2, ["left"] * 5 + ["right"] * 5).reshape(2, 5).sum(1)
        array([1, 1])
    """
    if not 0 <= number < num_trials:
        raise ValueError(f"`number` must be at least 0 and below the {num_trials} trials, got {number}.")
    plain = labels is None or len(missing_labels(as_labels(labels))) > 0
    codes = np.zeros(num_trials, dtype=np.int64) if plain else label_codes("labels", labels, num_trials)
    counts = np.bincount(codes)
    if (counts - 1).sum() < number:
        codes, counts = np.zeros(num_trials, dtype=np.int64), np.array([num_trials])
    rng = np.random.default_rng(seed)
    wanted = number * counts / num_trials
    taken = np.minimum(np.floor(wanted), counts - 1).astype(np.int64)
    # In a random order first, so that ties are broken by chance.
    order = rng.permutation(len(counts))
    while taken.sum() < number:
        short = np.where(taken < counts - 1, wanted - taken, -np.inf)[order]
        taken[order[short.argmax()]] += 1
    drawn = np.zeros(num_trials, dtype=bool)
    for code, share in enumerate(taken):
        drawn[rng.permutation(np.flatnonzero(codes == code))[:share]] = True
    return drawn
