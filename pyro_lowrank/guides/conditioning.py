"""Gaussian conditioning of latents on a time bin of an affine-Gaussian observation, by pattern of missing features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.shapes import apply_matrix


@dataclass(frozen=True)
class Conditioning(ABC):
    r"""What conditioning on :math:`y \sim N(C z + d, S)` needs under :math:`z \sim N(m, Q)`, for each missing pattern.

    With :math:`\Lambda = (C Q C^T + S)^{-1}` over the features that are there.

    Attributes:
        weight: C, `patterns x features x rank`, zero in the rows of missing features.
        curvature: A = C^T Lambda C, `patterns x rank x rank`.
        scale_tril: lower Cholesky factor of the posterior covariance Q - Q A Q, `patterns x rank x rank`.
        log_normaliser: log det(2 pi Lambda^{-1}), `patterns`.
    """

    weight: Tensor
    curvature: Tensor
    scale_tril: Tensor
    log_normaliser: Tensor

    @abstractmethod
    def weigh(self, residual: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return C^T Lambda e, `... x rank`, and e^T Lambda e, `...`, for residuals e `... x features`."""

    @abstractmethod
    def reference(self, residual: Tensor, index: Tensor | None) -> Tensor:
        """Return latents, `... x rank`, from which residuals `... x features` are small: a ridge regression."""


def pick(by_pattern: Tensor, index: Tensor | None) -> Tensor:
    """Return each time bin's entry of `patterns x ...`: `trials x time x ...`, or `1 x 1 x ...` if all share one."""
    return by_pattern.unsqueeze(0) if index is None else by_pattern[index]


def _apply(by_pattern: Tensor, vector: Tensor, index: Tensor | None) -> Tensor:
    return apply_matrix(by_pattern[0] if index is None else by_pattern[index], vector)


def _ridge(gram: Tensor) -> Tensor:
    """Return the Gram matrices, made invertible whatever features are missing."""
    size = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(scale > 0, 1e-4 * scale, 1.0)
    return gram + ridge[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device)


@dataclass(frozen=True)
class InformationForm(Conditioning):
    """Conditioning through `rank x rank` matrices: cheaper where there are at least as many features as latents."""

    precision: Tensor  # of the noise, zero where missing: patterns x features
    gram: Tensor  # C^T S^-1 C: patterns x rank x rank
    shrink: Tensor  # I - C^T S^-1 C P, with P the posterior covariance: patterns x rank x rank

    @classmethod
    def of(cls, noise: GaussianNoise, observation: AffineGaussian, missing: Tensor) -> InformationForm:
        """Return the conditioning for missing patterns `patterns x features`."""
        variance = observation.variance
        precision = torch.where(missing, 0.0, 1.0 / variance)
        weight = torch.where(missing.unsqueeze(-1), 0.0, observation.readout.weight)
        factor = noise.scale_tril
        gram = weight.mT @ (precision.unsqueeze(-1) * weight)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        # B = I + L^T G L has no eigenvalue below 1, so its Cholesky factor exists even in float32.
        inner = torch.linalg.cholesky(eye + factor.mT @ gram @ factor)
        # P = L B^-1 L^T = F F^T with F = L inner^-T; the QR of F^T makes the factor triangular.
        root = torch.linalg.solve_triangular(inner, factor.mT.expand_as(inner), upper=False)
        upper = torch.linalg.qr(root).R
        scale_tril = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
        # I - G P = L^-T B^-1 L^T, without the cancellation of the left-hand side.
        shrink = torch.linalg.solve_triangular(
            factor.mT, torch.cholesky_solve(factor.mT.expand_as(inner), inner), upper=True
        )
        curvature = shrink @ gram
        log_det = 2 * inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_noise = torch.where(missing, 0.0, (2 * math.pi * variance).log()).sum(-1)
        return cls(
            weight=weight,
            curvature=0.5 * (curvature + curvature.mT),
            scale_tril=scale_tril,
            log_normaliser=log_det + log_noise,
            precision=precision,
            gram=gram,
            shrink=shrink,
        )

    def weigh(self, residual: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return C^T Lambda e and e^T Lambda e, by the Woodbury identity."""
        scaled = pick(self.precision, index) * residual
        projected = _apply(self.weight.mT, scaled, index)
        root = _apply(self.scale_tril.mT, projected, index)
        quadratic = (scaled * residual).sum(-1) - root.square().sum(-1)
        return _apply(self.shrink, projected, index), quadratic

    @torch.no_grad()
    def reference(self, residual: Tensor, index: Tensor | None) -> Tensor:
        """Return weighted least-squares latents."""
        projected = _apply(self.weight.mT, pick(self.precision, index) * residual, index)
        return _apply(torch.linalg.inv(_ridge(self.gram)), projected, index)


@dataclass(frozen=True)
class CovarianceForm(Conditioning):
    """Conditioning through `features x features` matrices: cheaper where there are fewer features than latents."""

    evidence_precision: Tensor  # Lambda, zero where missing: patterns x features x features

    @classmethod
    def of(cls, noise: GaussianNoise, observation: AffineGaussian, missing: Tensor) -> CovarianceForm:
        """Return the conditioning for missing patterns `patterns x features`."""
        covariance = noise.covariance
        weight = torch.where(missing.unsqueeze(-1), 0.0, observation.readout.weight)
        # A missing feature is replaced by one of unit variance that depends on nothing.
        variance = torch.where(missing, 1.0, observation.variance)
        factor = torch.linalg.cholesky(weight @ covariance @ weight.mT + torch.diag_embed(variance))
        present = (~missing).to(weight.dtype)
        precision = torch.cholesky_inverse(factor) * present.unsqueeze(-1) * present.unsqueeze(-2)
        gain = covariance @ weight.mT @ precision
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        remain = eye - gain @ weight
        # Joseph's form stays positive definite under rounding.
        posterior = remain @ covariance @ remain.mT + (gain * variance.unsqueeze(-2)) @ gain.mT
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(
            weight=weight,
            curvature=weight.mT @ precision @ weight,
            scale_tril=torch.linalg.cholesky(posterior),
            log_normaliser=log_det + math.log(2 * math.pi) * present.sum(-1),
            evidence_precision=precision,
        )

    def weigh(self, residual: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return C^T Lambda e and e^T Lambda e."""
        scaled = _apply(self.evidence_precision, residual, index)
        return _apply(self.weight.mT, scaled, index), (scaled * residual).sum(-1)

    @torch.no_grad()
    def reference(self, residual: Tensor, index: Tensor | None) -> Tensor:
        """Return the smallest least-squares latents."""
        dual = _apply(torch.linalg.inv(_ridge(self.weight @ self.weight.mT)), residual, index)
        return _apply(self.weight.mT, dual, index)


def condition(noise: GaussianNoise, observation: AffineGaussian, missing: Tensor) -> Conditioning:
    """Return the conditioning in the cheaper of its two forms.

    Args:
        noise: of the latents, with covariance Q.
        observation: the affine-Gaussian observation model.
        missing: which features are, `patterns x features`.
    """
    features, rank = observation.readout.weight.shape[-2:]
    form = CovarianceForm if features < rank else InformationForm
    return form.of(noise, observation, missing)
