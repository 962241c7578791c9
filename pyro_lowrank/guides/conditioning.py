"""Gaussian conditioning of latents on a time bin of an affine-Gaussian observation, by pattern of missing features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.shared_noise import Precision
from pyro_lowrank.shapes import apply_matrix


@dataclass(frozen=True)
class Conditioning(ABC):
    r"""What conditioning on :math:`y \sim N(C z + d, S)` needs under :math:`z \sim N(m, Q)`, for each missing pattern.

    S is diagonal, or that plus what features share, a matrix of low rank.

    With :math:`\Lambda = (C Q C^T + S)^{-1}` over the features that are there. Time bins run through the covariances Q:
    the first bin has the first of them, all others the last.

    Attributes:
        weight: C, `patterns x features x rank`, zero in the rows of missing features.
        curvature: A = C^T Lambda C, `covariances x patterns x rank x rank`.
        scale_tril: lower Cholesky factor of the posterior covariance Q - Q A Q, `covariances x patterns x rank x rank`.
        log_normaliser: log det(2 pi Lambda^{-1}), `covariances x patterns`.
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

    def log_normalisers(self, index: Tensor | None, num_steps: int) -> Tensor:
        """Return the log normaliser of each time bin, `trials x time`, or `1 x time` if all trials share one."""
        return torch.cat(
            [
                pick(self.log_normaliser[number], None if index is None else index[:, times]).expand(-1, length)
                for number, times, length in self.sections(num_steps)
            ],
            1,
        )

    def sections(self, num_steps: int) -> list[tuple[int, slice, int]]:
        """Return each covariance's number, the time bins that have it, and how many these are."""
        if len(self.log_normaliser) == 1:
            return [(0, slice(None), num_steps)]
        return [(0, slice(None, 1), 1), (1, slice(1, None), num_steps - 1)]


def pick(by_pattern: Tensor, index: Tensor | None) -> Tensor:
    """Return each time bin's entry of `patterns x ...`: `trials x time x ...`, or `1 x 1 x ...` if all share one."""
    return by_pattern.unsqueeze(0) if index is None else by_pattern[index]


def apply_pattern(by_pattern: Tensor, vector: Tensor, index: Tensor | None) -> Tensor:
    """Return the product of each time bin's matrix of `patterns x rows x columns` and `trials x time x columns`."""
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

    precision: Precision  # of the noise, for each pattern
    gram: Tensor  # C^T S^-1 C: patterns x rank x rank
    shrink: Tensor  # I - C^T S^-1 C P, with P the posterior covariance: covariances x patterns x rank x rank

    @classmethod
    def of(cls, factors: Tensor, observation: AffineGaussian, missing: Tensor) -> InformationForm:
        """Return the conditioning for missing patterns `patterns x features`."""
        precision = observation.precision(missing)
        weight = torch.where(missing.unsqueeze(-1), 0.0, observation.readout.weight)
        factor = factors.unsqueeze(1)
        gram = precision.gram(observation.readout.weight)
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
        return cls(
            weight=weight,
            curvature=0.5 * (curvature + curvature.mT),
            scale_tril=scale_tril,
            log_normaliser=log_det + precision.log_normaliser,
            precision=precision,
            gram=gram,
            shrink=shrink,
        )

    def weigh(self, residual: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return C^T Lambda e and e^T Lambda e, by the Woodbury identity."""
        scaled, quadratic = self.precision.picked(index).weigh(residual)
        projected = apply_pattern(self.weight.mT, scaled, index)
        linear, explained = [], []
        for number, times, _ in self.sections(residual.shape[1]):
            chosen, part = None if index is None else index[:, times], projected[:, times]
            root = apply_pattern(self.scale_tril[number].mT, part, chosen)
            linear.append(apply_pattern(self.shrink[number], part, chosen))
            explained.append(root.square().sum(-1))
        return torch.cat(linear, 1), quadratic - torch.cat(explained, 1)

    @cached_property
    def _regression(self) -> Tensor:
        with torch.no_grad():
            return torch.linalg.inv(_ridge(self.gram))

    @torch.no_grad()
    def reference(self, residual: Tensor, index: Tensor | None) -> Tensor:
        """Return weighted least-squares latents."""
        scaled, _ = self.precision.picked(index).weigh(residual)
        projected = apply_pattern(self.weight.mT, scaled, index)
        return apply_pattern(self._regression, projected, index)


@dataclass(frozen=True)
class CovarianceForm(Conditioning):
    """Conditioning through `features x features` matrices: cheaper where there are fewer features than latents."""

    evidence_precision: Tensor  # Lambda, zero where missing: covariances x patterns x features x features

    @classmethod
    def of(cls, factors: Tensor, observation: AffineGaussian, missing: Tensor) -> CovarianceForm:
        """Return the conditioning for missing patterns `patterns x features`."""
        covariance = (factors @ factors.mT).unsqueeze(1)
        weight = torch.where(missing.unsqueeze(-1), 0.0, observation.readout.weight)
        # A missing feature is replaced by one of unit variance that depends on nothing.
        noise = torch.diag_embed(torch.where(missing, 1.0, observation.variance))
        if observation.factors is not None:
            shared = torch.where(missing.unsqueeze(-1), 0.0, observation.factors)
            noise = noise + shared @ shared.mT
        factor = torch.linalg.cholesky(weight @ covariance @ weight.mT + noise)
        present = (~missing).to(weight.dtype)
        precision = torch.cholesky_inverse(factor) * present.unsqueeze(-1) * present.unsqueeze(-2)
        gain = covariance @ weight.mT @ precision
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        remain = eye - gain @ weight
        # Joseph's form stays positive definite under rounding.
        posterior = remain @ covariance @ remain.mT + gain @ noise @ gain.mT
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
        scaled = torch.cat(
            [
                apply_pattern(
                    self.evidence_precision[number], residual[:, times], None if index is None else index[:, times]
                )
                for number, times, _ in self.sections(residual.shape[1])
            ],
            1,
        )
        return apply_pattern(self.weight.mT, scaled, index), (scaled * residual).sum(-1)

    @cached_property
    def _regression(self) -> Tensor:
        with torch.no_grad():
            return self.weight.mT @ torch.linalg.inv(_ridge(self.weight @ self.weight.mT))

    @torch.no_grad()
    def reference(self, residual: Tensor, index: Tensor | None) -> Tensor:
        """Return the smallest least-squares latents."""
        return apply_pattern(self._regression, residual, index)


def condition(factors: Tensor, observation: AffineGaussian, missing: Tensor) -> Conditioning:
    """Return the conditioning in the cheaper of its two forms.

    Args:
        factors: Cholesky factors of the covariances Q, `covariances x rank x rank`.
        observation: the affine-Gaussian observation model.
        missing: which features are, `patterns x features`.
    """
    features, rank = observation.readout.weight.shape[-2:]
    form = CovarianceForm if features < rank else InformationForm
    return form.of(factors, observation, missing)
