"""Gaussian noise that features share: a diagonal covariance plus one of low rank, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.shapes import apply_matrix


@dataclass(frozen=True)
class Precision:
    r"""The inverse of :math:`S = \mathrm{diag}(\sigma^2) + F F^T` over the features that are there.

    With :math:`G = (I + F^T D F)^{-1} F^T D` and D the inverse of the diagonal part, zero where a feature is missing,
    f = G e are the likeliest factors of a residual e, and

    .. math:: S^{-1} e = D (e - F f), \qquad e^T S^{-1} e = (e - F f)^T D (e - F f) + f^T f

    which are sums of what is positive: no digits are lost where the factors explain nearly all of the noise.

    Attributes:
        diagonal: D, `... x features`.
        factors: F, `... x features x factors`, or None if there are none.
        gain: G, `... x factors x features`, or None.
        log_normaliser: log det(2 pi S), `...`.

    Example::

        >>> precision = Precision.of(torch.ones(3), torch.ones(3, 1), None)
        >>> precision.weigh(torch.ones(5, 3))[1]
        tensor([0.7500, 0.7500, 0.7500, 0.7500, 0.7500])
    """

    diagonal: Tensor
    factors: Tensor | None
    gain: Tensor | None
    log_normaliser: Tensor

    @classmethod
    def of(cls, variance: Tensor, factors: Tensor | None, missing: Tensor | None) -> Precision:
        """Return the precision for each pattern of missing features, `... x features`; for one if None are missing."""
        diagonal, log_noise = variance.reciprocal(), (2 * math.pi * variance).log()
        if missing is not None:
            diagonal, log_noise = torch.where(missing, 0.0, diagonal), torch.where(missing, 0.0, log_noise)
        log_normaliser = log_noise.sum(-1)
        if factors is None:
            return cls(diagonal, None, None, log_normaliser)
        weighed = (diagonal.unsqueeze(-1) * factors).mT
        eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        # No eigenvalue is below 1, so that the Cholesky factor exists even in float32.
        root = torch.linalg.cholesky(eye + weighed @ factors)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(diagonal, factors, torch.cholesky_solve(weighed, root), log_normaliser + log_det)

    def picked(self, index: Tensor | None) -> Precision:
        """Return each time bin's entry of `patterns x ...`, by index `trials x time`; the only one if None."""

        def pick(by_pattern: Tensor) -> Tensor:
            return by_pattern[0] if index is None else by_pattern[index]

        gain = None if self.gain is None else pick(self.gain)
        return Precision(pick(self.diagonal), self.factors, gain, pick(self.log_normaliser))

    def weigh(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return S^-1 e, `... x features`, and e^T S^-1 e, `...`, of residuals, zero where features are missing."""
        if self.factors is None or self.gain is None:
            scaled = self.diagonal * residual
            return scaled, (scaled * residual).sum(-1)
        likeliest = apply_matrix(self.gain, residual)
        rest = residual - apply_matrix(self.factors, likeliest)
        scaled = self.diagonal * rest
        return scaled, (scaled * rest).sum(-1) + likeliest.square().sum(-1)

    def gram(self, weight: Tensor) -> Tensor:
        """Return C^T S^-1 C, `... x rank x rank`, for a weight C, `features x rank`."""
        if self.factors is None or self.gain is None:
            # One matrix product with the outer products of all features: no tensor of features x rank^2 per bin.
            outer = (weight.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(-2)
            return (self.diagonal @ outer).unflatten(-1, (weight.shape[-1],) * 2)
        likeliest = self.gain @ weight
        rest = weight - self.factors @ likeliest
        return rest.mT @ (self.diagonal.unsqueeze(-1) * rest) + likeliest.mT @ likeliest


class SharedNormal(TorchDistribution):
    r"""A normal distribution whose covariance is diagonal plus low rank, with missing entries integrated out exactly.

    .. math:: y \sim N(\mu,\ \mathrm{diag}(\sigma^2) + F F^T)

    Shapes: batch `...`, event `features`.

    Args:
        loc: the mean, `... x features`.
        scale: sigma, `features`, or with batch dims of its own.
        factors: F, `features x factors`, likewise.
        missing: which entries of the value are left out, of the value's shape; None for none.

    Example::

        >>> normal = SharedNormal(torch.zeros(5, 3), torch.ones(3), torch.ones(3, 1))
        >>> normal.log_prob(torch.zeros(3)).shape, normal.variance[0]
        (torch.Size([5]), tensor([2., 2., 2.]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, factors: Tensor, missing: Tensor | None = None) -> None:
        self.scale, self.factors, self.missing = scale, factors, missing
        shape = torch.broadcast_shapes(loc.shape, scale.shape, factors.shape[:-1])
        self.loc = loc.expand(shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @cached_property
    def _precision(self) -> Precision:
        return Precision.of(self.scale.square(), self.factors, self.missing)

    def leave_out(self, missing: Tensor, marginal: Any = None) -> SharedNormal:
        """Return the distribution of the entries that are not missing; it has no parts to be asked."""
        return SharedNormal(self.loc, self.scale, self.factors, missing)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: SharedNormal | None = None
    ) -> SharedNormal:
        """Return the same distribution for a larger batch."""
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return SharedNormal(loc, self.scale, self.factors, self.missing)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x features`."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each feature, `... x features`."""
        return (self.scale.square() + self.factors.square().sum(-1)).expand(self.loc.shape)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins, `sample_shape x ... x features`, of missing entries too."""
        shape = torch.Size(sample_shape) + self.loc.shape
        own = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        shared = own.new_empty(*shape[:-1], self.factors.shape[-1]).normal_()
        return self.loc + self.scale * own + apply_matrix(self.factors, shared)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of time bins `... x features` in nats, `...`."""
        residual = value - self.loc
        if self.missing is not None:
            residual = residual.masked_fill(self.missing, 0.0)
        return -0.5 * (self._precision.weigh(residual)[1] + self._precision.log_normaliser)


@dataclass(frozen=True)
class SharedNoiseEmission:
    """Gaussian observations with shared noise at fixed parameter values.

    Attributes:
        readout: what the noise is around.
        scale: standard deviations of each feature's own noise, `features`.
        factors: how the shared noise enters, `features x factors`.
    """

    readout: AffineMap | RatesMap
    scale: Tensor
    factors: Tensor

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""
        return self.readout(z, v)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        found: Any = SharedNormal(self.readout(z, v), self.scale, self.factors)
        return found
