"""Noise with a scalar, diagonal or full scale, Gaussian or with heavier tails, for dynamics and initial state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import transform_to
from torch.distributions.transforms import LowerCholeskyTransform

from pyro_lowrank.parameters import parameter
from pyro_lowrank.shapes import apply_matrix

NOISE_KINDS = ("scalar", "diagonal", "full")


class _LowerCholesky(constraints.Constraint):
    """`constraints.lower_cholesky`, reached without `torch.tril`.

    Even for the smallest matrix that wakes torch's other threads, which then go on spinning for milliseconds on the
    cores that the compiled loops are about to use.
    """

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return constraints.lower_cholesky.check(value)


class _ToLowerCholesky(LowerCholeskyTransform):
    def _call(self, x: Tensor) -> Tensor:
        index = torch.arange(x.shape[-1], device=x.device)
        below = torch.where(index[:, None] > index, x, x.new_zeros(()))
        return below + x.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


@transform_to.register(_LowerCholesky)
def _to_lower_cholesky(constraint: constraints.Constraint) -> LowerCholeskyTransform:
    return _ToLowerCholesky()


@dataclass(frozen=True)
class GaussianNoise:
    r"""Zero-mean Gaussian noise :math:`\varepsilon = L \eta,\ \eta \sim N(0, I)`.

    Args:
        scale: the standard deviations `dim` where `diagonal`, else the lower Cholesky factor L `dim x dim`.
        diagonal: which of the two `scale` is.
    """

    scale: Tensor
    diagonal: bool

    @property
    def batch_shape(self) -> torch.Size:
        """The batch dims of the parameter: those of a sampled one."""
        return self.scale.shape[:-1] if self.diagonal else self.scale.shape[:-2]

    @property
    def scale_tril(self) -> Tensor:
        """The lower Cholesky factor L of the covariance, `dim x dim`."""
        return torch.diag_embed(self.scale) if self.diagonal else self.scale

    @property
    def spread(self) -> Tensor:
        """L L^T, `dim x dim`."""
        if self.diagonal:
            return torch.diag_embed(self.scale.square())
        return self.scale @ self.scale.mT

    @property
    def covariance(self) -> Tensor:
        """The covariance, `dim x dim`: L L^T."""
        return self.spread

    def standard(self, white: Tensor) -> Tensor:
        """Turn standard normal numbers, `... x dim`, into draws of the noise in units of its scale, eta."""
        return white

    def log_kernel(self, squared: Tensor, dim: int) -> Tensor:
        """Return the log density of eta, up to a constant, from its squared length; `squared` may be overwritten."""
        return squared.mul_(-0.5)

    def standard_log_prob(self, eta: Tensor) -> Tensor:
        """Return the log density in nats of eta, `... x dim`, summed over `dim`."""
        return -0.5 * eta.square().sum(-1) - 0.5 * eta.shape[-1] * math.log(2 * math.pi)

    def with_scale(self, scale_tril: Tensor) -> GaussianNoise:
        """Return noise of the same law with another Cholesky factor, `... x dim x dim`."""
        return replace(self, scale=scale_tril, diagonal=False)

    def colour(self, white: Tensor) -> Tensor:
        """Turn standard normal numbers, `... x dim`, into draws of the noise."""
        eta = self.standard(white)
        return eta * self.scale if self.diagonal else apply_matrix(self.scale, eta)

    def whiten(self, residual: Tensor) -> Tensor:
        """Return eta of residuals `... x dim`, in units of the scale."""
        if self.diagonal:
            return residual / self.scale
        # The inverse of a small factor, once, is cheaper than a triangular solve per residual.
        eye = torch.eye(self.scale.shape[-1], dtype=self.scale.dtype, device=self.scale.device)
        return apply_matrix(torch.linalg.solve_triangular(self.scale, eye, upper=False), residual)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Return the log density in nats of residuals `... x dim`, summed over `dim`."""
        scale = self.scale if self.diagonal else self.scale.diagonal(dim1=-2, dim2=-1)
        return self.standard_log_prob(self.whiten(residual)) - scale.log().sum(-1)

    def around(self, mean: Tensor) -> dist.TorchDistribution:
        """Return the distribution of `mean + noise`, with event shape `dim`."""
        if self.diagonal:
            return dist.Normal(mean, self.scale, validate_args=False).to_event(1)
        return dist.MultivariateNormal(mean, scale_tril=self.scale, validate_args=False)


@dataclass(frozen=True)
class StudentTNoise(GaussianNoise):
    r"""Zero-mean noise with heavy tails, which moves all latents far at times: a multivariate Student t.

    .. math:: \varepsilon = L \eta, \qquad \eta = w^{-1/2}\, \eta', \quad
        \eta' \sim N(0, I), \quad w \sim \mathrm{Gamma}(\nu / 2, \nu / 2)

    Args:
        freedom: nu, the degrees of freedom; few mean many jumps.

    References:
        Kotz and Nadarajah (2004), Multivariate t Distributions and Their Applications.
    """

    freedom: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """The batch dims of the parameters: those of sampled ones."""
        return torch.broadcast_shapes(super().batch_shape, self.freedom.shape)

    @property
    def covariance(self) -> Tensor:
        """The covariance, `dim x dim`: L L^T nu / (nu - 2), infinite up to two degrees of freedom."""
        infinite = torch.full_like(self.freedom, torch.inf)
        factor = torch.where(self.freedom > 2, self.freedom / (self.freedom - 2), infinite)
        # Zeros stay zeros.
        return torch.where(self.spread == 0, 0.0, factor[..., None, None] * self.spread)

    def standard(self, white: Tensor) -> Tensor:
        """Turn standard normal numbers, `... x dim`, into draws of the noise in units of its scale."""
        half = (0.5 * self.freedom).expand(white.shape[:-1])
        weight = torch.distributions.Gamma(half, half, validate_args=False).rsample()
        return white / weight.sqrt().unsqueeze(-1)

    def log_kernel(self, squared: Tensor, dim: int) -> Tensor:
        """Return the log density of eta, up to a constant, from its squared length; `squared` may be overwritten."""
        return squared.div_(self.freedom).log1p_().mul_(-0.5 * (self.freedom + dim))

    def standard_log_prob(self, eta: Tensor) -> Tensor:
        """Return the log density in nats of eta, `... x dim`, summed over `dim`."""
        nu, dim = self.freedom, eta.shape[-1]
        # The difference of large numbers, for many degrees of freedom.
        fine = nu.double()
        constant = torch.lgamma(0.5 * (fine + dim)) - torch.lgamma(0.5 * fine) - 0.5 * dim * (fine * math.pi).log()
        return constant.to(eta.dtype) - 0.5 * (nu + dim) * (eta.square().sum(-1) / nu).log1p()

    def around(self, mean: Tensor) -> dist.TorchDistribution:
        """Return the distribution of `mean + noise`, with event shape `dim`."""
        return dist.MultivariateStudentT(self.freedom, mean, self.scale_tril, validate_args=False)


def noise_parameter(
    kind: str, dim: int, scale: float, *, dtype: torch.dtype | None, device: torch.device | str | None
) -> Any:
    """Declare the parameter of a Gaussian noise that starts isotropic with standard deviation `scale`."""
    if kind == "full":
        return full_noise_parameter(torch.eye(dim, dtype=dtype, device=device) * scale)
    shape = (dim,) if kind == "diagonal" else ()
    return parameter(torch.full(shape, scale, dtype=dtype, device=device), constraints.positive)


def full_noise_parameter(scale_tril: Tensor) -> Any:
    """Declare the parameter of a Gaussian noise of kind `"full"` that starts with this Cholesky factor."""
    return parameter(scale_tril, _LowerCholesky())


def noise_of(kind: str, dim: int, parameter: Tensor, freedom: Tensor | None = None) -> GaussianNoise:
    """Return the noise that a parameter made by `noise_parameter` stands for, heavy-tailed if `freedom` is given."""
    if kind == "scalar":
        parameter = parameter.unsqueeze(-1).expand(*parameter.shape, dim)
    diagonal = kind != "full"
    return GaussianNoise(parameter, diagonal) if freedom is None else StudentTNoise(parameter, diagonal, freedom)
