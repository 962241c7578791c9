"""What the Gaussian filter needs of the data: the log likelihood of all time bins, its gradient and its Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_lowrank.guides.base import Bin
from pyro_lowrank.kalman.roots import apply
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.curvature import Curvature, Curved, Expanded, Expansion
from pyro_lowrank.observations.observed import Observed


@dataclass(frozen=True)
class Pulls:
    r"""A quadratic for the log likelihood: :math:`s^T \delta - \delta^T G \delta / 2`, where :math:`\delta = z - r`.

    Attributes:
        reference: r, `trials x time x rank`.
        score: s, `trials x time x rank`.
        information: G, `trials x time x rank x rank`.
        fallback: taken in place of G, which may be no information, where the posterior would have no peak; or None.
    """

    reference: Tensor
    score: Tensor
    information: Tensor
    fallback: Tensor | None = None


class Likelihood(Protocol):
    """The log likelihood of a recording at latents `trials x time x rank`; differentiable in the parameters and z."""

    is_quadratic: bool
    """Whether `pulls` are the same at any latents."""

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return it, `trials x time`, missing entries left out."""

    def pulls(self, z: Tensor) -> Pulls:
        """Return its expansion at z to second order."""

    def careful_pulls(self, z: Tensor) -> Pulls:
        """Return an expansion by which a step neither overshoots nor creeps."""

    def third(self, z: Tensor) -> Tensor | None:
        """Return the change of the information with z, `trials x time x rank^2 x rank`, or None where it is zero."""

    def bins(self) -> Sequence[Likelihood]:
        """Return that of each time bin, `trials x 1`."""


class AffineLikelihood:
    r"""Affine-Gaussian observations, :math:`y \sim N(C z + d, S)`, reduced to rank-sized tensors at all time bins.

    With a reference latent r of each bin, :math:`e = y - d - C r`, :math:`G = C^T S^{-1} C` and
    :math:`s = C^T S^{-1} e` over the features that are there,

    .. math:: \log p(y \mid z) = -\tfrac{1}{2} (e^T S^{-1} e - 2 s^T \delta + \delta^T G \delta + \log \det 2 \pi S)

    The reference, a least-squares latent, keeps the terms small, so that float32 suffices for small noise.

    Args:
        observation: the observation model.
        seen: the recording, `trials x time x features`.
        v: effective inputs, `trials x time x inputs`, or None.
    """

    is_quadratic = True

    def __init__(self, observation: AffineGaussian, seen: Observed, v: Tensor | None) -> None:
        weight, rank = observation.readout.weight, observation.readout.weight.shape[-1]
        precision = observation.precision(seen.missing)
        gram = precision.gram(weight).expand(*seen.y.shape[:2], rank, rank)
        residual = seen.y - observation.readout.offset(v)
        reference = _least_squares(gram, precision.weigh(_there(residual, seen))[0] @ weight)
        scaled, self._quadratic = precision.weigh(_there(residual - reference @ weight.mT, seen))
        self._log_normaliser = precision.log_normaliser
        if seen.log_volume is not None:
            self._log_normaliser = self._log_normaliser - 2 * seen.log_volume
        self._pulls = Pulls(reference, scaled @ weight, gram)

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return the log likelihood, `trials x time`."""
        delta = z - self._pulls.reference
        explained = ((2 * self._pulls.score - apply(self._pulls.information, delta)) * delta).sum(-1)
        return -0.5 * (self._quadratic - explained + self._log_normaliser)

    def pulls(self, z: Tensor | None = None) -> Pulls:
        """Return the terms of the quadratic, whatever the latents."""
        return self._pulls

    careful_pulls = pulls

    def third(self, z: Tensor) -> None:
        """Return None: the information is the same at any latents."""

    def bins(self) -> Sequence[Likelihood]:
        """Raise: a quadratic needs no search bin by bin."""
        raise NotImplementedError


def _there(residual: Tensor, seen: Observed) -> Tensor:
    """Return residuals, zero where nothing was recorded."""
    return residual if seen.missing is None else residual.masked_fill(seen.missing, 0.0)


@torch.no_grad()
def _least_squares(gram: Tensor, score: Tensor) -> Tensor:
    """Return latents, `trials x time x rank`, near those of least squares, whatever features are missing."""
    rank = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(scale > 0, 1e-4 * scale, 1.0)
    eye = torch.eye(rank, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_ex(gram + ridge[..., None, None] * eye, score.unsqueeze(-1)).result.squeeze(-1)


class CurvedLikelihood:
    """Any observations with a curvature.

    Args:
        emission: the observation model.
        seen: the recording, `trials x time x features`.
        v: effective inputs, `trials x time x inputs`, or None.
    """

    is_quadratic = False

    def __init__(self, emission: Curved, seen: Observed, v: Tensor | None) -> None:
        self._emission, self._seen, self._v = emission, seen, v

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return the log likelihood, `trials x time`."""
        return Bin(self._seen, self._v, {}).log_likelihood(self._emission, z)

    def _curvature(self, z: Tensor) -> Curvature:
        return self._emission.curvature(z, self._v, self._seen.y)

    def _expansion(self, z: Tensor) -> Expansion | None:
        return self._emission.expansion(z, self._v, self._seen.y) if isinstance(self._emission, Expanded) else None

    def pulls(self, z: Tensor) -> Pulls:
        """Return score and Hessian at z; the expected information is the fallback."""
        rank, present = z.shape[-1], self._seen.present
        own = self._expansion(z)
        if own is not None:
            expected = _gram(own.information * present, own.weight).detach()
            own_hessian = _gram(own.observed * present, own.weight)
            return Pulls(z, (own.score * present) @ own.weight, own_hessian, expected)
        # All directions at once, as `rank` particles: one pass over the features.
        ways = torch.eye(rank, dtype=z.dtype, device=z.device)[:, None, None].expand(rank, *z.shape).contiguous()

        def score(points: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            seen = self._curvature(points)
            scores = seen.score * present
            return scores, (scores[0], (seen.information * present).expand_as(scores)[0], seen.weight)

        found: Any = torch.func.jvp(score, (z.repeat(rank, 1, 1, 1),), (ways,), has_aux=True)
        _, change, (value, information, weight) = found
        # change: of each feature's score, by direction.
        hessian = -(change @ weight).movedim(0, -1)
        return Pulls(z, value @ weight, 0.5 * (hessian + hessian.mT), _gram(information, weight).detach())

    @torch.no_grad()
    def third(self, z: Tensor) -> Tensor:
        """Return the change of the Hessian with z."""
        rank, own = z.shape[-1], self._expansion(z)
        if own is not None:
            weight = own.weight
            outer = weight[:, :, None, None] * weight[:, None, :, None] * weight[:, None, None, :]
            return ((own.change * self._seen.present) @ outer.flatten(1)).unflatten(-1, (rank * rank, rank))
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            information = self.pulls(point).information
            if not information.requires_grad:
                return z.new_zeros(*z.shape[:-1], rank * rank, rank)
            found: dict[tuple[int, int], Tensor] = {}
            for i in range(rank):
                for j in range(i + 1):
                    total = information[..., i, j].sum()
                    (grad,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
                    found[i, j] = found[j, i] = torch.zeros_like(z) if grad is None else grad
        return torch.stack([found[i, j] for i in range(rank) for j in range(rank)], -2)

    @torch.no_grad()
    def careful_pulls(self, z: Tensor) -> Pulls:
        """Return score and stiffness at z."""
        seen, present = self._curvature(z), self._seen.present
        stiffness = seen.information if seen.stiffness is None else seen.stiffness
        return Pulls(z, (seen.score * present) @ seen.weight, _gram(stiffness * present, seen.weight))

    def bins(self) -> Sequence[Likelihood]:
        """Return that of each time bin, `trials x 1`."""
        inputs: Sequence[Any] = (None,) * self._seen.y.shape[1] if self._v is None else self._v.split(1, 1)
        cut = zip(self._seen.bins(), inputs, strict=True)
        return [CurvedLikelihood(self._emission, seen.as_sequence(), v) for seen, v in cut]


def _gram(information: Tensor, weight: Tensor) -> Tensor:
    """Return C^T diag(w) C, `... x rank x rank`, for w `... x features`."""
    outer = (weight.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(-2)
    return (information @ outer).unflatten(-1, (weight.shape[-1],) * 2)
