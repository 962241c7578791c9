"""What a filter finds in a batch, summed so that parts of one can be put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.training.batches import Batch, observed_bins


@dataclass(frozen=True)
class Totals:
    """Sums over the time bins of all trials, of no dims each.

    Attributes:
        evidence: log evidence, in nats.
        bins: observed time bins.
        ess: effective sample size, over those bins for which there is one.
        weight: number of these.
    """

    evidence: Tensor
    bins: Tensor
    ess: Tensor
    weight: Tensor

    @classmethod
    def of(cls, batch: Batch, history: Any) -> Totals:
        """Return those of the run of a filter."""
        observed = observed_bins(batch.y).mT.to(history.ess.dtype)
        weight = observed if history.ess.dim() == 2 else torch.ones_like(history.ess)
        return cls(
            history.increments.detach().sum(), observed.sum(), (history.ess.detach() * weight).sum(), weight.sum()
        )

    @classmethod
    def of_all(cls, parts: Sequence[Totals]) -> Totals:
        """Return those of several parts together."""
        names = ("evidence", "bins", "ess", "weight")
        return cls(**{name: torch.stack([getattr(part, name) for part in parts]).sum() for name in names})

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.evidence, self.bins, self.ess, self.weight)

    @property
    def evidence_per_bin(self) -> float:
        """Log evidence in nats per observed time bin."""
        return float(self.evidence / self.bins.clamp(min=1))

    def share_of_particles(self, number: int) -> float:
        """Return the mean effective sample size as a share of the number of particles."""
        return float(self.ess / self.weight.clamp(min=1) / number)
