"""What a particle filter run over whole sequences leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.smc.loop import History, State


@dataclass(frozen=True)
class SMCPosterior:
    r"""The filtering distributions of a run: weighted particles of every time bin, and the evidence.

    Attributes:
        particles: state tensors by name, `particles x trials x time x ...`; "z" are the latents of built-in models.
        log_weights: normalised, `time x particles x trials`.
        ancestors: index of each particle's ancestor at the time bin before, `time x particles x trials`.
        log_evidence_increments: log p(y_t | y_{<t}) estimates in nats, `time x trials`.
        ess: effective sample sizes before resampling, `time x trials`.
        resampled: whether ancestors were drawn anew before the time bin, `time x trials`.
    """

    particles: State
    log_weights: Tensor
    ancestors: Tensor
    log_evidence_increments: Tensor
    ess: Tensor
    resampled: Tensor

    @classmethod
    def from_history(cls, history: History[Any], batch_dims: int) -> SMCPosterior:
        """Collect what the loop over time stored."""
        assert history.states is not None
        assert history.log_weights is not None
        assert history.ancestors is not None
        # A user's model may add state as it goes; only what every time bin has makes a sequence.
        names = [name for name in history.states[0] if all(name in state for state in history.states)]
        particles = {
            name: torch.stack([s[name] for s in history.states], min(batch_dims, history.states[0][name].dim()))
            for name in names
        }
        return cls(
            particles=particles,
            log_weights=history.log_weights,
            ancestors=history.ancestors,
            log_evidence_increments=history.increments,
            ess=history.ess,
            resampled=history.resampled,
        )

    @property
    def log_evidence(self) -> Tensor:
        """The estimate of log p(y) in nats, `trials`; its exponential is without bias."""
        return self.log_evidence_increments.sum(0)

    @property
    def num_particles(self) -> int:
        """The number of particles."""
        return self.log_weights.shape[1]

    def mean(self, name: str = "z") -> Tensor:
        """Return the filtering means, `trials x time x ...`."""
        return (self._weights(name) * self.particles[name]).sum(0)

    def variance(self, name: str = "z") -> Tensor:
        """Return the filtering variances, `trials x time x ...`."""
        deviation = self.particles[name] - self.mean(name)
        return (self._weights(name) * deviation.square()).sum(0)

    def _weights(self, name: str) -> Tensor:
        if name not in self.particles:
            raise KeyError(f"No state {name!r}; there are {sorted(map(str, self.particles))}.")
        # time x particles x trials -> particles x trials x time, then the state's own dims.
        weights = self.log_weights.exp().movedim(0, -1)
        return weights.reshape(*weights.shape, *(1,) * (self.particles[name].dim() - weights.dim()))

    def __str__(self) -> str:
        num_steps, num_particles = self.log_weights.shape[:2]
        trials = self.ess.shape[1] if self.ess.dim() > 1 else 1
        per_bin = self.log_evidence_increments.mean().item()
        return (
            f"SMCPosterior: {trials} trials x {num_steps} time bins, {num_particles} particles\n"
            f"  log evidence    {self.log_evidence.sum().item():.2f} nats, {per_bin:.4f} per bin and trial\n"
            f"  effective size  {self.ess.mean().item():.1f} on average, {self.ess.min().item():.1f} at worst\n"
            f"  resampled       {100 * self.resampled.float().mean().item():.0f} % of time bins"
        )
