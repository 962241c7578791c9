"""Gaussian noise with a scalar, diagonal or full covariance: one parametrisation for dynamics and initial state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.parameters import parameter
from pyro_lowrank.shapes import apply_matrix

NOISE_KINDS = ("scalar", "diagonal", "full")


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
    def covariance(self) -> Tensor:
        """The covariance L L^T, `dim x dim`."""
        if self.diagonal:
            return torch.diag_embed(self.scale.square())
        return self.scale @ self.scale.mT

    def colour(self, white: Tensor) -> Tensor:
        """Turn standard normal numbers, `... x dim`, into draws of the noise."""
        return white * self.scale if self.diagonal else apply_matrix(self.scale, white)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Return the log density in nats of residuals `... x dim`, summed over `dim`."""
        if self.diagonal:
            white, log_scale = residual / self.scale, self.scale.log().sum(-1)
        else:
            # The inverse of a small factor, once, is cheaper than a triangular solve per residual.
            eye = torch.eye(self.scale.shape[-1], dtype=self.scale.dtype, device=self.scale.device)
            white = apply_matrix(torch.linalg.solve_triangular(self.scale, eye, upper=False), residual)
            log_scale = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum(-1) - log_scale - 0.5 * residual.shape[-1] * math.log(2 * math.pi)

    def around(self, mean: Tensor) -> dist.TorchDistribution:
        """Return the distribution of `mean + noise`, with event shape `dim`."""
        if self.diagonal:
            return dist.Normal(mean, self.scale, validate_args=False).to_event(1)
        return dist.MultivariateNormal(mean, scale_tril=self.scale, validate_args=False)


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
    return parameter(scale_tril, constraints.lower_cholesky)


def noise_of(kind: str, dim: int, parameter: Tensor) -> GaussianNoise:
    """Return the noise that a parameter made by `noise_parameter` stands for."""
    if kind == "full":
        return GaussianNoise(parameter, diagonal=False)
    if kind == "scalar":
        parameter = parameter.unsqueeze(-1).expand(*parameter.shape, dim)
    return GaussianNoise(parameter, diagonal=True)
