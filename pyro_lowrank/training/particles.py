"""Evidence by the number of particles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ParticleCheck:
    """Held-out evidence of a fitted model at its number of particles, twice as many, and so on.

    Attributes:
        num_particles: the numbers, that of the training first, `numbers`.
        evidence: the mean over runs of the log evidence, in nats per observed time bin, `numbers`.
        error: its Monte Carlo standard error, `numbers`.
        settled: whether the last doubling changed the evidence by no more than the standard error of that change.
    """

    num_particles: NDArray[np.int64]
    evidence: NDArray[np.float64]
    error: NDArray[np.float64]
    settled: bool

    @property
    def gap(self) -> float:
        """What the evidence gains from the number of the training to the last one, in nats per time bin."""
        return float(self.evidence[-1] - self.evidence[0])

    @property
    def parts(self) -> bool:
        """Whether the two differ by more than two standard errors of their difference."""
        return abs(self.gap) > 2 * math.hypot(self.error[0], self.error[-1])

    def __str__(self) -> str:
        first, last = self.num_particles[[0, -1]]
        told = "where it no longer changes" if self.settled else "and still changes"
        return (
            f"{self.evidence[0]:.3f} nats per bin at {first} particles, as trained, "
            f"{self.evidence[-1]:.3f} at {last}, {told} (± {self.error[-1]:.1g})"
        )


def settled(evidence: NDArray[np.float64], error: NDArray[np.float64]) -> bool:
    """Return whether two values differ by no more than the standard error of their difference."""
    return bool(abs(evidence[1] - evidence[0]) <= math.hypot(*error))
