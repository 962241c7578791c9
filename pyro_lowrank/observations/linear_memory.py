"""A linear system per feature that latents drive: what it remembers, and how sure one is of it, by a Kalman filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.observed import Observed


class Law(NamedTuple):
    """How a time bin is taken in: what does not depend on the latents, but on the pattern of missing entries alone.

    Attributes:
        gain: by how much what is remembered moves with a surprise, `... x features x order`; zero where missing.
        variance: of the observation given the past and the latents, `... x features`.
        ahead: covariance of what is remembered before the bin is seen, `... x features x order x order`.
        covariance: after it is seen, likewise.
    """

    gain: Tensor
    variance: Tensor
    ahead: Tensor
    covariance: Tensor


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return `matrix @ vector` of small matrices, `... x features x order x order`, without a product per feature."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


@dataclass(frozen=True)
class LinearMemory:
    r"""A linear system of each feature at fixed parameter values.

    .. math::

        s_t = A s_{t-1} + B g_t + w_t, \quad w_t \sim N(0, Q), \qquad
        y_t = b + H s_t + D g_t + e_t, \quad e_t \sim N(0, R)

    where g_t is what latents drive the feature with. Given the latents a Kalman filter of each feature tells the density
    of the recording. Its covariances do not depend on the latents: they are the same for all particles.

    Attributes:
        transition: A, `features x order x order`.
        drive: B, `features x order`.
        noise: Q, `features x order x order`.
        readout: H, `features x order`.
        through: D, `features`.
        variance: R, `features`; zero where the noise is remembered.
        baseline: b, `features`.
        before_mean: mean of s_0, before the first bin, `features x order`.
        before_covariance: its covariance, `features x order x order`.
    """

    transition: Tensor
    drive: Tensor
    noise: Tensor
    readout: Tensor
    through: Tensor
    variance: Tensor
    baseline: Tensor
    before_mean: Tensor
    before_covariance: Tensor

    @property
    def slope(self) -> Tensor:
        """How much an observation grows with what drives it in the same bin, `features`."""
        return (self.readout * self.drive).sum(-1) + self.through

    def law(self, covariance: Tensor, missing: Tensor | None) -> Law:
        """Return how the bin after a covariance `... x features x order x order` is taken in."""
        ahead = self.transition @ covariance @ self.transition.mT + self.noise
        column = apply(ahead, self.readout)
        variance = (column * self.readout).sum(-1) + self.variance
        gain = column / variance.unsqueeze(-1)
        if missing is not None:
            gain = gain.masked_fill(missing.unsqueeze(-1), 0.0)
        after = ahead - gain.unsqueeze(-1) * column.unsqueeze(-2)
        return Law(gain, variance, ahead, 0.5 * (after + after.mT))

    def laws(self, seen: Observed, before: Tensor | None = None) -> list[Law]:
        """Return how each bin of a recording `trials x time x features` is taken in.

        Args:
            seen: the recording.
            before: covariance before its first bin; that of the beginning if None.
        """
        covariance = self.before_covariance if before is None else before
        if seen.missing is not None:
            covariance = covariance.expand(*seen.missing.shape[:-2], *covariance.shape[-3:])
        found = []
        for bin_t in seen.bins():
            found.append(self.law(covariance, bin_t.missing))
            covariance = found[-1].covariance
        return found

    def beginning(self, batch_shape: torch.Size) -> Tensor:
        """Return the mean of what is remembered before the first bin, `... x features x order`."""
        return self.before_mean.expand(*batch_shape, *self.before_mean.shape[-2:])

    def ahead(self, mean: Tensor, driven: Tensor) -> Tensor:
        """Return the expected state of the next bin, `... x features x order`, where it is driven by `... x features`."""
        return apply(self.transition, mean) + self.drive * driven.unsqueeze(-1)

    def expected(self, ahead: Tensor, driven: Tensor) -> Tensor:
        """Return the expected observation at a state, `... x features`."""
        return self.baseline + (self.readout * ahead).sum(-1) + self.through * driven

    def settled(self, driven: Tensor) -> Tensor:
        r"""Return what the observation settles at while it is driven by the same, `... x features`.

        .. math:: y^* = b + (H (I - A)^{-1} B + D)\, g
        """
        return self.baseline + ((self.readout * self.settled_state()).sum(-1) + self.through) * driven

    def settled_state(self) -> Tensor:
        """Return the state that a drive of one leads to, `features x order`."""
        return settled_state(self.transition, self.drive)

    def surprises(self, seen: Observed, driven: Tensor, laws: list[Law]) -> tuple[Tensor, Tensor]:
        """Return what is not expected of each bin, and the states expected, along drives `... x trials x time x features`.

        Returns:
            Surprises `... x trials x time x features`, and means before each bin is seen, `... x features x order`.
        """
        mean = self.beginning(driven.shape[:-2])
        surprises, aheads = [], []
        for y_t, driven_t, law in zip(seen.y.unbind(-2), driven.unbind(-2), laws, strict=True):
            ahead = self.ahead(mean, driven_t)
            surprise = y_t - self.expected(ahead, driven_t)
            mean = ahead + law.gain * surprise.unsqueeze(-1)
            surprises.append(surprise)
            aheads.append(ahead)
        return torch.stack(surprises, -2), torch.stack(aheads, -3)

    def log_densities(self, seen: Observed, driven: Tensor) -> Tensor:
        """Return the log density of each entry given those before and what drives it, zero where missing, in nats.

        Args:
            seen: the recording, `trials x time x features`.
            driven: what drives features, `... x trials x time x features`.
        """
        laws = self.laws(seen)
        surprises, _ = self.surprises(seen, driven, laws)
        variance = torch.stack([law.variance for law in laws], -2)
        found = -0.5 * (surprises.square() / variance + (2 * torch.pi * variance).log())
        return found if seen.missing is None else found.masked_fill(seen.missing, 0.0)


def settled_state(transition: Tensor, drive: Tensor) -> Tensor:
    """Return the state that a drive of one leads to, `features x order`."""
    eye = torch.eye(transition.shape[-1], dtype=transition.dtype, device=transition.device)
    return torch.linalg.solve(eye - transition, drive.unsqueeze(-1)).squeeze(-1)


def stationary_covariance(transition: Tensor, noise: Tensor) -> Tensor:
    """Return the covariance P = A P A^T + Q that a stable system has, `features x order x order`."""
    order = transition.shape[-1]
    squared = torch.einsum("...ij,...kl->...ikjl", transition, transition).flatten(-2).flatten(-3, -2)
    eye = torch.eye(order * order, dtype=transition.dtype, device=transition.device)
    found = torch.linalg.solve(eye - squared, noise.flatten(-2).unsqueeze(-1)).squeeze(-1)
    found = found.unflatten(-1, (order, order))
    return 0.5 * (found + found.mT)
