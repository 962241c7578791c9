"""Rolling the last time bins of each trial forward without looking at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.guides.base import Bin, Encoding, Guide, Proposal, through
from pyro_lowrank.guides.bootstrap import BootstrapProposal
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.observed import Observed


@dataclass(frozen=True)
class ForwardProposal:
    """Another proposal, shown all but the last `horizon` bins of each trial; in these the transition."""

    seeing: Proposal
    blind: BootstrapProposal
    horizon: int

    def unseen(self, seen: Observed) -> Tensor:
        """Return which bins of a recording, `trials x time x 1`, are the last ones of their trial, or come later."""
        num_steps = seen.y.shape[-2]
        if num_steps <= self.horizon:
            raise ValueError(
                f"`horizon` must be less than the number of time bins, {num_steps}, got {self.horizon}. Online, where "
                "none is known to be the last, use the guide inside."
            )
        bins = torch.arange(num_steps, device=seen.y.device)
        last = torch.where(seen.recorded, bins, -1).amax(-1, keepdim=True)
        return (bins > last - self.horizon).unsqueeze(-1)

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Return what the other proposal makes of the earlier bins, and which bins are the last ones."""
        blind = self.unseen(seen)
        return {**self.seeing.encode(seen.hidden(blind), v, first=first), "blind": blind.to(seen.y.dtype)}

    def through(self, emission: Emission) -> ForwardProposal:
        """Return the same of proposals that see latents through another emission."""
        return replace(self, seeing=through(self.seeing, emission), blind=through(self.blind, emission))

    @staticmethod
    def _blind(encoding: Encoding) -> Tensor:
        return encoding["blind"].squeeze(-1) > 0

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return the distribution that latents are proposed from."""
        seeing = self.seeing.distribution(noise, mean, encoding)
        blind = self._blind(encoding).expand(seeing.batch_shape)
        return dist.MaskedMixture(blind, seeing, self.blind.distribution(noise, mean, encoding), validate_args=False)

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return proposed latents and the log of their incremental weights."""
        blind = self._blind(bin_t.encoding)
        if not blind.any():
            return self.seeing.propose(noise, mean, white, bin_t)
        z, log_weights = self.blind.propose(noise, mean, white, bin_t)
        if blind.all():
            return z, log_weights
        # Trials end at different bins.
        seen_z, seen_log_weights = self.seeing.propose(noise, mean, white, bin_t)
        return torch.where(blind.unsqueeze(-1), z, seen_z), torch.where(blind, log_weights, seen_log_weights)


class ForwardPrediction(Guide):
    r"""Proposes as another guide does, but for the last L time bins of each trial, of which it sees nothing.

    .. math:: q(z_t) = p(z_t \mid z_{t-1}), \qquad t > T - L

    Their likelihood still enters the weights, so that the evidence estimate stays unbiased, and the objective asks the
    dynamics alone to lead to where the recording goes. For training; to infer latents use the guide inside, whose
    parameters are the same.

    Args:
        guide: the guide of the earlier bins. An encoder takes the last bins for missing ones.
        horizon: number of time bins at the end of each trial, L, whatever its length.

    Raises:
        TypeError: if the guide is not a built-in one.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=40))
        >>> guide = plr.EncoderGuide(model, plr.ConvEncoder(features=40, rank=2))
        >>> y = model.simulate(num_trials=4, num_steps=30).y
        >>> rolled = ForwardPrediction(guide, horizon=10)
        >>> result = plr.fit(model, rolled, y, num_steps=2, num_particles=8, progress=False)
    """

    serves_heavy_tails = True

    def __init__(self, guide: Guide, *, horizon: int) -> None:
        if not isinstance(guide, Guide):
            raise TypeError(f"`guide` must be a guide of this library, got {type(guide).__name__}.")
        super().__init__(guide.model)
        self.guide = guide
        self.horizon = check_positive_int("horizon", horizon)

    def bind(self, bound: BoundModel) -> ForwardProposal:
        """Return the proposal at the present parameter values."""
        return ForwardProposal(self.guide.bind(bound), BootstrapProposal(bound.emission), self.horizon)

    @classmethod
    def of_settings(cls, model: Any, settings: dict[str, Any]) -> ForwardPrediction:
        """Return a guide of the same form; the model is that of the guide inside."""
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a guide of the same form."""
        return {"guide": self.guide, "horizon": self.horizon}
