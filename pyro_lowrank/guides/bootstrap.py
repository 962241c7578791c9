"""The bootstrap guide: propose from the transition."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.guides.base import Bin, Encoding, Guide
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.observed import Observed


@dataclass(frozen=True)
class BootstrapProposal:
    """The transition as a proposal: the incremental weight is the likelihood."""

    emission: Emission

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Return nothing: the transition does not look at the data."""
        return {}

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return the transition density."""
        return noise.around(mean)

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return latents drawn from the transition and the log likelihood of the time bin."""
        z = mean + noise.colour(white)
        return z, bin_t.log_likelihood(self.emission, z)


class BootstrapGuide(Guide):
    r"""Proposes from the transition, :math:`q(z_t) = p(z_t \mid z_{t-1})`, weighted by the likelihood.

    It serves every observation model. Where the data say more than the dynamics, most particles miss and few carry
    all the weight: prefer `OptimalGuide` for affine-Gaussian observations.

    Args:
        model: the model that the guide is for.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=40))
        >>> guide = BootstrapGuide(model)

    References:
        Gordon, Salmond and Smith (1993), IEE Proceedings F 140:107.
    """

    serves_heavy_tails = True

    def bind(self, bound: BoundModel) -> BootstrapProposal:
        """Return the proposal at the present parameter values."""
        return BootstrapProposal(bound.emission)
