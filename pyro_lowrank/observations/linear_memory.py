"""A linear system per feature that latents drive: what it remembers, and how sure one is of it, by a Kalman filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.observed import Observed


class Law(NamedTuple):
    r"""How a time bin is taken in: what does not depend on the latents, but on the pattern of missing entries alone.

    With the state expected of the bin before, m, and what drives features, g, the bin is expected at
    :math:`b + h^T m + d g`, and the state once it is seen is :math:`\Phi m + c\, g + K (y - b)`.

    Attributes:
        gain: K, `... x features x order`; zero where missing.
        variance: of the observation given the past and the latents, `... x features`.
        ahead: covariance of the state before the bin is seen, `... x features x order x order`.
        covariance: after it is seen, likewise.
        kept: Phi, `... x features x order x order`.
        entering: c, `... x features x order`.
    """

    gain: Tensor
    variance: Tensor
    ahead: Tensor
    covariance: Tensor
    kept: Tensor
    entering: Tensor

    def after(self, mean: Tensor, driven: Tensor, deviation: Tensor) -> Tensor:
        """Return the state once a bin is seen, `... x features x order`, that deviates from b by `... x features`."""
        return apply(self.kept, mean) + self.entering * driven.unsqueeze(-1) + self.gain * deviation.unsqueeze(-1)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return `matrix @ vector` of small matrices, `... x features x order x order`, without a product per feature."""
    # Column by column: a sum over a dim of two or four takes several times as long.
    found = matrix[..., 0] * vector[..., :1]
    for column in range(1, vector.shape[-1]):
        found = torch.addcmul(found, matrix[..., column], vector[..., column : column + 1])
    return found


def dot(weight: Tensor, vector: Tensor) -> Tensor:
    """Return the sum of products over the short last dim, `... x features` of `... x features x order`."""
    found = weight[..., 0] * vector[..., 0]
    for place in range(1, vector.shape[-1]):
        found = torch.addcmul(found, weight[..., place], vector[..., place])
    return found


@dataclass(frozen=True)
class LinearMemory:
    r"""A linear system of each feature at fixed parameter values.

    .. math::

        s_t = A s_{t-1} + B g_t + w_t, \quad w_t \sim N(0, Q), \qquad
        y_t = b + H s_t + D g_t + e_t, \quad e_t \sim N(0, R)

    where g_t is what latents drive the feature with. Given the latents a Kalman filter of each feature tells the
    density of the recording. Its covariances do not depend on the latents: they are the same for all particles.

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
        weight: how the next observation grows with the state now, A^T H, `features x order`.
        slope: how an observation grows with what drives it in the same bin, H B + D, `features`.
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
    weight: Tensor = field(init=False)
    slope: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Not when first asked for: that may be where no gradients are recorded.
        weight = apply(self.transition.mT, self.readout)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "slope", (self.readout * self.drive).sum(-1) + self.through)

    def law(self, covariance: Tensor, missing: Tensor | None) -> Law:
        """Return how the bin after a covariance `... x features x order x order` is taken in."""
        ahead = self.transition @ covariance @ self.transition.mT + self.noise
        column = apply(ahead, self.readout)
        variance = (column * self.readout).sum(-1) + self.variance
        gain = column / variance.unsqueeze(-1)
        if missing is not None:
            gain = gain.masked_fill(missing.unsqueeze(-1), 0.0)
        after = ahead - gain.unsqueeze(-1) * column.unsqueeze(-2)
        kept = self.transition - gain.unsqueeze(-1) * self.weight.unsqueeze(-2)
        entering = self.drive - gain * self.slope.unsqueeze(-1)
        return Law(gain, variance, ahead, 0.5 * (after + after.mT), kept, entering)

    def laws(self, seen: Observed, before: Tensor | None = None) -> list[Law]:
        """Return how each bin of a recording `trials x time x features` is taken in.

        Args:
            seen: the recording.
            before: covariance before its first bin; that of the beginning if None.
        """
        covariance = self.before_covariance if before is None else before
        if seen.missing is not None:
            covariance = covariance.expand(*seen.missing.shape[:-2], *covariance.shape[-3:])
        found: list[Law] = []
        for missing in (None,) * seen.y.shape[-2] if seen.missing is None else seen.missing.unbind(-2):
            if missing is None and len(found) > 1 and same(found[-2].covariance, found[-1].covariance):
                # To rounding it stays.
                found.append(found[-1])
                continue
            found.append(self.law(covariance, missing))
            covariance = found[-1].covariance
        return found

    def beginning(self, batch_shape: torch.Size) -> Tensor:
        """Return the mean of what is remembered before the first bin, `... x features x order`."""
        return self.before_mean.expand(*batch_shape, *self.before_mean.shape[-2:])

    def ahead(self, mean: Tensor, driven: Tensor) -> Tensor:
        """Return the expected state of the next bin, `... x features x order`, driven by `... x features`."""
        return apply(self.transition, mean) + self.drive * driven.unsqueeze(-1)

    def expected(self, ahead: Tensor, driven: Tensor) -> Tensor:
        """Return the expected observation at a state, `... x features`."""
        return self.baseline + dot(self.readout, ahead) + self.through * driven

    def settled(self, driven: Tensor) -> Tensor:
        r"""Return what the observation settles at while it is driven by the same, `... x features`.

        .. math:: y^* = b + (H (I - A)^{-1} B + D)\, g
        """
        return self.baseline + ((self.readout * self.settled_state()).sum(-1) + self.through) * driven

    def settled_state(self) -> Tensor:
        """Return the state that a drive of one leads to, `features x order`."""
        return settled_state(self.transition, self.drive)

    def surprises(self, seen: Observed, driven: Tensor, laws: list[Law]) -> tuple[Tensor, Tensor]:
        """Return what is not expected of each bin, and the states expected, given what drives features.

        Returns:
            Surprises `... x trials x time x features`, and means before each bin is seen, `... x features x order`.
        """
        deviation = seen.y - self.baseline
        gain, entering = (torch.stack(each, -3) for each in zip(*((w.gain, w.entering) for w in laws), strict=True))
        # All that does not depend on the state before, of all bins at once; then bin after bin.
        pushes = entering * driven.unsqueeze(-1) + gain * deviation.unsqueeze(-1)
        means = [self.beginning(driven.shape[:-2])]
        for law, push in zip(laws[:-1], pushes.unbind(-3), strict=False):
            means.append(apply(law.kept, means[-1]) + push)
        before = torch.stack(means, -3)
        surprises = deviation - dot(self.weight, before) - self.slope * driven
        return surprises, self.ahead(before, driven)

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


def same(before: Tensor, now: Tensor) -> bool:
    """Return whether covariances, or precisions, of neighbouring bins differ by no more than rounding."""
    with torch.no_grad():
        scale = now.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
        return bool(((now - before).abs() <= 2 * torch.finfo(now.dtype).eps * scale).all())


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
