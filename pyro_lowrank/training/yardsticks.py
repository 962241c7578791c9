"""Models of a recording without latent dynamics, fitted in closed form and in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_lowrank.observations.autoregressive import AutoregressiveMemory
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.memory import Memory, read
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.shared_noise import Precision
from pyro_lowrank.training.factors import factor_analysis
from pyro_lowrank.training.standardise import Standardisation

# Time bins whose missing entries are integrated out at once: each needs a matrix of features x factors.
_AT_ONCE = 5000
# Of the variances of features: the evidence is at its maximum in these, and changes with the square.
_TOLERANCE = 1e-4


class Law(Protocol):
    """What a standardised recording may look like."""

    def log_density(self, y: Tensor) -> Tensor:
        """Return the log density of trials `trials x time x features`, `trials`; NaN where it cannot be had."""


@dataclass(frozen=True)
class Yardstick:
    """A fitted model without latent dynamics.

    Attributes:
        name: what it is.
        parameters: how many numbers were fitted.
        law: of standardised data; None where there were too few to fit it to.
        units: how data are standardised.
        needs: what it needs, said where it cannot be had.
    """

    name: str
    parameters: int
    law: Law | None
    units: Standardisation
    needs: str = ""

    def log_evidence(self, y: Tensor) -> Tensor:
        """Return log evidence in nats, `trials`, of `trials x time x features`; NaN where it cannot be had."""
        y = y.to(self.units.mean)
        if self.law is None:
            return y.new_full((len(y),), torch.nan)
        volume = (~y.isnan() * self.units.scale.log()).sum((1, 2))
        return self.law.log_density(self.units.apply(y)) - volume


def fitted_without_dynamics(train: Tensor, *, order: int, factors: Sequence[int]) -> tuple[Yardstick, ...]:
    """Return the yardsticks, from the least to the most that is known.

    Args:
        train: recording to fit to, `trials x time x features`, NaN where missing.
        order: number of bins that features remember.
        factors: numbers of static factors among the innovations, one yardstick each; 0 is there in any case.
    """
    # In units of the training data, so that no threshold depends on these; on the CPU, as not all devices have doubles.
    train = train.to("cpu", torch.float64)
    units = Standardisation.of(train)
    train = units.apply(train)
    features, seen = train.shape[-1], Observed.of(train)
    center = seen.y.new_zeros(features)
    memory = AutoregressiveMemory(center, partials_of_data(seen.y, seen.missing, order))
    innovations = _Innovations.of(memory, train)
    alone, size = _Innovations.of(None, train).with_factors(0), (2 + order) * features
    found = [Yardstick("independent features", 2 * features, alone, units)]
    found.append(Yardstick(f"AR({order}) features", size, innovations.with_factors(0), units))
    for number in sorted(set(factors) - {0}):
        name = f"AR({order}), {number} static factor{'s' if number > 1 else ''}"
        found.append(Yardstick(name, size + number * features, innovations.with_factors(number), units))
    return (*found, _vector_autoregression(train, units))


@dataclass(frozen=True)
class _Innovations:
    """Innovations of a recording, and their covariance."""

    memory: Memory | None
    center: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, memory: Memory | None, train: Tensor) -> _Innovations:
        seen, _ = read(memory, train)
        center = seen.y.new_zeros(train.shape[-1])
        rows, there = _there(seen, seen.y).flatten(0, 1), seen.present.flatten(0, 1)
        return cls(memory, center, rows.mT @ rows / (there.mT @ there).clamp(min=1.0))

    def with_factors(self, number: int) -> _Static:
        found = factor_analysis(self.covariance, number, tolerance=_TOLERANCE)
        return _Static(self.memory, found.variance.clamp(min=1e-12), found.loadings if number else None)


@dataclass(frozen=True)
class _Static:
    """Innovations that are independent in time, and of each other but for static factors."""

    memory: Memory | None
    variance: Tensor
    loadings: Tensor | None

    def log_density(self, y: Tensor) -> Tensor:
        seen, _ = read(self.memory, y)
        rows = _there(seen, seen.y).flatten(0, 1).split(_AT_ONCE)
        gaps = (None,) * len(rows) if seen.missing is None else seen.missing.flatten(0, 1).split(_AT_ONCE)
        found = torch.cat([self._of_bins(*each) for each in zip(rows, gaps, strict=True)]).reshape(y.shape[:2])
        return (found if seen.log_volume is None else found + seen.log_volume).sum(-1)

    def _of_bins(self, innovations: Tensor, missing: Tensor | None) -> Tensor:
        precision = Precision.of(self.variance, self.loadings, missing)
        return -0.5 * (precision.weigh(innovations)[1] + precision.log_normaliser)


def _there(seen: Observed, residual: Tensor) -> Tensor:
    return residual if seen.missing is None else residual.masked_fill(seen.missing, 0.0)


@dataclass(frozen=True)
class _Vector:
    """VAR(1), whose first bin has mean and covariance of the training data."""

    weights: Tensor
    first: torch.distributions.MultivariateNormal
    left: torch.distributions.MultivariateNormal

    def log_density(self, y: Tensor) -> Tensor:
        whole, gone = ~y.isnan().any(-1), y.isnan().all(-1)
        known = y.nan_to_num(nan=0.0)
        moved = known[:, 1:] - (known[:, :-1] @ self.weights[:-1] + self.weights[-1])
        found = self.first.log_prob(known[:, 0]) * whole[:, 0] + (self.left.log_prob(moved) * whole[:, 1:]).sum(-1)
        # What is padded behind the end of a trial is no gap.
        complete = (whole | gone).all(-1) & ~(gone[:, :-1] & whole[:, 1:]).any(-1)
        return torch.where(complete, found, torch.nan)


def _vector_autoregression(train: Tensor, units: Standardisation) -> Yardstick:
    """Return VAR(1), by least squares on what is complete."""
    features = train.shape[-1]
    size = features * (features + 1) + features * (features + 1) // 2
    before, after = train[:, :-1].flatten(0, 1), train[:, 1:].flatten(0, 1)
    complete = ~(before.isnan() | after.isnan()).any(-1)
    before, after = before[complete], after[complete]
    if len(before) < 3 * features:
        return Yardstick("VAR(1)", size, None, units, f"needs {3 * features} bins to fit to, got {len(before)}")
    design = torch.cat([before, torch.ones_like(before[:, :1])], -1)
    weights = torch.linalg.lstsq(design, after).solution
    rows = train.flatten(0, 1)
    law = _Vector(weights, _normal(rows[~rows.isnan().any(-1)]), _normal(after - design @ weights))
    return Yardstick("VAR(1)", size, law, units, "needs complete held-out data")


def _normal(sample: Tensor) -> torch.distributions.MultivariateNormal:
    """Return a normal with mean and covariance of a sample."""
    mean = sample.mean(0)
    covariance = (sample - mean).mT @ (sample - mean) / len(sample)
    # Channels after an average reference, say, have no full rank.
    covariance = covariance + 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=sample.dtype)
    return torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
