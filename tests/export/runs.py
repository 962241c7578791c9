"""Runs of a filter as arrays alone: what an export reads of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Replicates(NamedTuple):
    """As of `pyro_lowrank.infer.forecast`."""

    mean: NDArray[Any]
    y: NDArray[Any]


@dataclass
class FakeRun:
    """A run whose paths are white noise around the recording's first latents."""

    seed: int = 0
    trials: int = 3
    time: int = 7
    rank: int = 2
    features: int = 4
    num_particles: int = 50
    mean_name: str | None = "rates"
    with_inputs: bool = True
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.log_evidence_increments = self.rng.normal(size=(self.time, self.trials)).astype(np.float32)
        self.log_evidence = self.log_evidence_increments.sum(0)
        self.ess = self.rng.uniform(1, self.num_particles, size=(self.time, self.trials)).astype(np.float32)
        self.resampled = self.ess < 0.5 * self.num_particles
        data = np.random.default_rng(99)
        self.y = data.poisson(3.0, size=(self.trials, self.time, self.features)).astype(np.float32)
        self.u = data.normal(size=(self.trials, self.time, 1)) if self.with_inputs else None
        self.smoothed: list[NDArray[Any]] = []

    @property
    def recording(self) -> tuple[Any, Any]:
        return self.y, self.u

    def smooth(self, num_draws: int, *, method: str) -> NDArray[Any]:
        assert method in ("backward", "mcmc", "genealogy")
        self.smoothed.append(self.rng.normal(size=(num_draws, self.trials, self.time, self.rank)).astype(np.float32))
        return self.smoothed[-1]

    def replicate(self, z: NDArray[Any]) -> Replicates:
        mean = np.exp(z[..., :1] * np.ones(self.features, dtype=z.dtype))
        return Replicates(mean, np.floor(mean))

    def rerun(self) -> FakeRun:
        return FakeRun(self.seed + 1 + int(self.rng.integers(1 << 30)), self.trials, self.time)
