"""Weights that the next latents are linear in, integrated out: the right vectors of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.infer.mcmc.sampled import Sampled

# A matrix of this size is factorised for every gradient: a millisecond.
_MOST_WEIGHTS = 300


@dataclass(frozen=True)
class GaussianBlock:
    r"""Weights w of which the log density is :math:`c + b^T w - \frac12 w^T K w`, in double precision.

    Attributes:
        factor: lower Cholesky factor of K, `weights x weights`.
        linear: b, `weights`.
        constant: c, in nats.
    """

    factor: Tensor
    linear: Tensor
    constant: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the weights, `weights`."""
        return torch.cholesky_solve(self.linear.unsqueeze(-1), self.factor).squeeze(-1)

    def log_integral(self) -> Tensor:
        """Return the logarithm of the integral of the density over the weights, in nats."""
        white = torch.linalg.solve_triangular(self.factor, self.linear.unsqueeze(-1), upper=False)
        volume = 0.5 * len(self.linear) * math.log(2 * math.pi) - self.factor.diagonal().log().sum()
        return self.constant + 0.5 * white.square().sum() + volume

    def draw(self) -> Tensor:
        """Draw the weights."""
        white = torch.randn_like(self.linear).unsqueeze(-1)
        return self.mean + torch.linalg.solve_triangular(self.factor.mT, white, upper=True).squeeze(-1)


class RightVectors:
    r"""The right vectors V of a network whose prior is normal, given latents and all else.

    .. math:: z_t - a z_{t-1} = V \phi(M z_{t-1} + W_u v_{t-1}; h) + \varepsilon_t

    is a linear regression, so that the density of the latents without V is known, and V given all else is normal:
    of precision :math:`\Sigma_z^{-1} \otimes \sum_t \phi_t \phi_t^T` plus that of the prior.

    Args:
        name: of the site.
        mean: of the prior, `rank x units`.
        scale: of the prior, `rank x units`.

    References:
        Liu (1994), J. Am. Stat. Assoc. 89:958, on collapsing.
    """

    def __init__(self, name: str, mean: Tensor, scale: Tensor) -> None:
        self.name, self.shape, self.dtype = name, mean.shape, mean.dtype
        self._mean, self._scale = mean.double().flatten(), scale.double().flatten()

    @classmethod
    def of(cls, sampled: Sampled) -> RightVectors | None:
        """Return those of a model, or None where there are none, they are too many, or others depend on them."""
        transition = sampled.model.bind().transition
        if not isinstance(transition.drift, Network) or type(transition.noise) is not GaussianNoise:
            return None
        name = sampled.site_of(sampled.model.dynamics, "right")
        moments = None if name is None else sampled.gaussian(name)
        if name is None or moments is None or moments[0].numel() > _MOST_WEIGHTS or sampled.others_follow(name):
            return None
        return cls(name, *moments)

    def block(self, transition: Transition, before: Tensor, after: Tensor, v: Tensor | None) -> GaussianBlock:
        """Return the density of latents and V, as a function of V.

        Args:
            transition: how the latents move; its V is not looked at.
            before: latents, `... x rank`.
            after: the next ones, likewise.
            v: effective inputs with them, `... x inputs`, or None.
        """
        network = transition.drift
        assert isinstance(network, Network)
        rates = network.rates(before, v).flatten(0, -2).double()
        shifts = (after - network.decay * before).flatten(0, -2).double()
        factor = transition.noise.scale_tril.double()
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
        precision, own = inverse.mT @ inverse, self._scale.square().reciprocal()
        curvature = torch.kron(precision, rates.mT @ rates) + own.diag_embed()
        linear = (precision @ (shifts.mT @ rates)).flatten() + own * self._mean
        constant = -0.5 * (shifts @ inverse.mT).square().sum() - len(shifts) * factor.diagonal().log().sum()
        constant = constant - 0.5 * (own * self._mean.square()).sum() - self._scale.log().sum()
        constant = constant - 0.5 * math.log(2 * math.pi) * (shifts.numel() + len(self._mean))
        return GaussianBlock(torch.linalg.cholesky(curvature), linear, constant)

    def drawn(self, block: GaussianBlock) -> Tensor:
        """Draw V, `rank x units`."""
        return block.draw().reshape(self.shape).to(self.dtype)


def without(values: Mapping[str, Tensor], block: RightVectors | None) -> dict[str, Tensor]:
    """Return the values of all sites but that of a block."""
    return {name: value for name, value in values.items() if block is None or name != block.name}
