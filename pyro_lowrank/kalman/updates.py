"""Taking in one time bin: what a Gaussian prediction becomes given the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_lowrank.kalman.roots import apply, cholesky, solve
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.observed import Observed


@dataclass(frozen=True)
class Conditioned:
    r"""A Gaussian given the data of a time bin.

    With the prediction :math:`N(m, L L^T)` and the precision P of eta, where z = m + L eta:

    Attributes:
        mean: of the latents, m + L eta, `trials x rank`.
        root: of their covariance, :math:`L P^{-T/2}`, `trials x rank x rank`.
        eta: how far the mean has moved, in units of the prediction, `trials x rank`.
        log_root: :math:`\tfrac{1}{2} \log \det P`, `trials`.
    """

    mean: Tensor
    root: Tensor
    eta: Tensor
    log_root: Tensor

    @classmethod
    def of(cls, mean: Tensor, root: Tensor, eta: Tensor, factor: Tensor) -> Conditioned:
        """Return the Gaussian from the prediction's mean and root, eta, and the Cholesky factor of its precision."""
        conditioned = torch.linalg.solve_triangular(factor, root.mT, upper=False).mT
        return cls(mean + apply(root, eta), conditioned, eta, factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))


class Update(Protocol):
    r"""How a prediction takes in a time bin.

    The evidence of the bin is Laplace's, which is exact where the likelihood is Gaussian:

    .. math:: \log p(y_t \mid y_{<t}) = \log p(y_t \mid z) - \tfrac{1}{2} \eta^T \eta - \tfrac{1}{2} \log \det P
    """

    def bins(self) -> Sequence[Any]:
        """Return what is needed of each time bin."""

    def condition(self, mean: Tensor, root: Tensor, bin_t: Any) -> Conditioned:
        """Return the Gaussian given the data of a bin, from the prediction's mean and a root of its covariance."""

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return the log likelihood of all time bins, `trials x time`, at latents `trials x time x rank`."""


@dataclass(frozen=True)
class AffineBin:
    """One time bin of `AffineUpdate`: the information G, the reference and the score there."""

    gram: Tensor
    reference: Tensor
    score: Tensor


class AffineUpdate:
    r"""Conditioning on affine-Gaussian observations, :math:`y \sim N(C z + d, S)`, in information form.

    All features are reduced to rank-sized tensors once, at all time bins: with a reference latent :math:`\hat z` of
    each bin, :math:`e = y - d - C \hat z`, :math:`G = C^T S^{-1} C` and :math:`s = C^T S^{-1} e` over the features that
    are there,

    .. math::

        P = I + L^T G L, \qquad \eta = P^{-1} L^T (s - G (m - \hat z)), \qquad
        \log p(y \mid z) = -\tfrac{1}{2} (e^T S^{-1} e - 2 s^T \delta + \delta^T G \delta + \log \det 2 \pi S),
        \quad \delta = z - \hat z

    The reference, a least-squares latent, keeps the terms small, so that float32 suffices for small noise.

    Args:
        observation: the observation model.
        seen: the recording, `trials x time x features`.
        v: effective inputs, `trials x time x inputs`, or None.
    """

    def __init__(self, observation: AffineGaussian, seen: Observed, v: Tensor | None) -> None:
        weight, variance = observation.readout.weight, observation.variance
        rank = weight.shape[-1]
        precision = variance.reciprocal()
        # One matrix product with the outer products of all features: no tensor of features x rank x rank per bin.
        outer = (weight.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(-2)
        log_noise = (2 * math.pi * variance).log()
        if seen.missing is None:
            shares, self.log_normaliser = precision, log_noise.sum(-1)
        else:
            shares, self.log_normaliser = seen.present * precision, seen.present @ log_noise
        self.gram = (shares @ outer).unflatten(-1, (rank, rank)).expand(*seen.y.shape[:2], rank, rank)
        residual = seen.y - observation.readout.offset(v)
        self.reference = _least_squares(self.gram, (shares * residual) @ weight)
        remainder = residual - self.reference @ weight.mT
        scaled = shares * remainder
        self.score = scaled @ weight
        self.quadratic = (scaled * remainder).sum(-1)
        self.identity = torch.eye(rank, dtype=weight.dtype, device=weight.device)

    def bins(self) -> Sequence[AffineBin]:
        """Return what is needed of each time bin."""
        parts = (self.gram.unbind(1), self.reference.unbind(1), self.score.unbind(1))
        return [AffineBin(*part) for part in zip(*parts, strict=True)]

    def condition(self, mean: Tensor, root: Tensor, bin_t: AffineBin) -> Conditioned:
        """Return the Gaussian given the data of a bin."""
        weighed = bin_t.gram @ root
        factor = cholesky(self.identity + root.mT @ weighed)
        uphill = apply(root.mT, bin_t.score) - apply(weighed.mT, mean - bin_t.reference)
        return Conditioned.of(mean, root, solve(factor, uphill), factor)

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return the log likelihood of all time bins, `trials x time`."""
        delta = z - self.reference
        explained = ((2 * self.score - apply(self.gram, delta)) * delta).sum(-1)
        return -0.5 * (self.quadratic - explained + self.log_normaliser)


@torch.no_grad()
def _least_squares(gram: Tensor, score: Tensor) -> Tensor:
    """Return latents, `trials x time x rank`, near those of least squares, whatever features are missing."""
    rank = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(scale > 0, 1e-4 * scale, 1.0)
    eye = torch.eye(rank, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_ex(gram + ridge[..., None, None] * eye, score.unsqueeze(-1)).result.squeeze(-1)
