"""The encoder guide: the transition times what an encoder reads from the recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.encoders.calls import call_encoder, reach_of
from pyro_lowrank.guides.base import Bin, Encoding, Guide
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.shapes import apply_per_trial

_LARGEST_LOG_VARIANCE = 20.0


@dataclass(frozen=True)
class EncoderProposal:
    r"""The transition N(m, Q) times the encoder's N(mu, S), normalised: N(m + G (mu - m), P).

    With :math:`G = Q (Q + S)^{-1}` and :math:`P = (I - G) Q`. Under Student-t noise, of scale Q, the product has no
    closed form: a Student t of the same place, scale and degrees of freedom stands in, weighed as what it is.
    """

    transition: Transition
    emission: Emission
    encoder: nn.Module

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Run the encoder on the recording, `trials x time x features`; return mu, G and the factor of P per bin."""
        if not first and reach_of(self.encoder) != (0, 0):
            raise ValueError(
                "The encoder reads more than one time bin at a time: run the filter over whole sequences "
                "(`SMCFilter.run`), or pass `step` its slice of `guide.encode(y, u)` as `encoding`."
            )
        (mean, variance), recorded = self.read(seen), seen.recorded.unsqueeze(-1)
        if not first:
            return {"mean": mean, **_combine(self.transition.noise, variance, recorded)}
        parts = [
            _combine(self.transition.initial_noise, variance[:, :1], recorded[:, :1]),
            _combine(self.transition.noise, variance[:, 1:], recorded[:, 1:]),
        ]
        return {"mean": mean, **{name: torch.cat([part[name] for part in parts], -2) for name in parts[0]}}

    def online_lookback(self) -> int:
        """Return how many time bins before a bin the encoder reads.

        Raises:
            ValueError: if the encoder looks ahead, or does not say how far back it looks.
        """
        back, ahead = reach_of(self.encoder)
        if back is None or ahead is None:
            raise ValueError(
                f"{type(self.encoder).__name__} cannot be used online: it does not say how many time bins it reads. "
                "Give it attributes `lookback` and `lookahead`, or run the filter over whole sequences."
            )
        if ahead:
            raise ValueError(
                f"The encoder looks {ahead} time bins ahead, which online are still to come: use a causal one "
                '(`ConvEncoder(..., padding="causal")`), or run the filter over whole sequences.'
            )
        return back

    def encode_last(self, seen: Observed, *, first: bool) -> Encoding:
        """Return what `encode` would for the last bin of a recording, given `online_lookback` bins before it, or all.

        `first` tells whether that bin is the first of a trial.
        """
        mean, variance = (part[:, -1] for part in self.read(seen))
        noise = self.transition.initial_noise if first else self.transition.noise
        return {"mean": mean, **_combine(noise, variance, seen.recorded[:, -1:])}

    def read(self, seen: Observed) -> tuple[Tensor, Tensor]:
        """Return the encoder's mean and variance of every bin."""
        output = call_encoder(self.encoder, seen.y, seen.present)
        shape = (*seen.y.shape[:2], self.transition.rank)
        shapes = [tuple(part.shape) for part in output] if isinstance(output, tuple) else type(output).__name__
        if shapes != [shape, shape]:
            raise ValueError(f"The encoder must return (mean, log_variance), each of shape {shape}, got {shapes}.")
        mean, log_variance = output
        return mean, log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE).exp()

    def _square(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.transition.rank, self.transition.rank))

    def _mean_shift(self, mean: Tensor, encoding: Encoding) -> Tensor:
        return apply_per_trial(self._square(encoding["gain"]), encoding["mean"] - mean)

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return the normalised product."""
        factor = self._square(encoding["scale_tril"])
        return noise.with_scale(factor).around(mean + self._mean_shift(mean, encoding))

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return latents drawn from the product, and the log of their incremental weights."""
        encoding = bin_t.encoding
        # Kept apart from the mean, so that a far mean does not round away the small difference.
        factor = self._square(encoding["scale_tril"])
        eta = noise.standard(white)
        shift = self._mean_shift(mean, encoding) + apply_per_trial(factor, eta)
        log_proposal = noise.standard_log_prob(eta) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        z = mean + shift
        return z, bin_t.log_likelihood(self.emission, z) + noise.log_prob(shift) - log_proposal


def _combine(noise: GaussianNoise, variance: Tensor, recorded: Tensor) -> Encoding:
    """Return G and the Cholesky factor of P for encoder variances `... x rank`, matrices flattened.

    Where nothing was recorded they are those of the transition, so that padding adds nothing, not even noise.
    """
    gain, factor = _product(noise, variance)
    return {
        "gain": torch.where(recorded, gain, 0.0),
        "scale_tril": torch.where(recorded, factor, noise.scale_tril.flatten(-2)),
    }


def _product(noise: GaussianNoise, variance: Tensor) -> tuple[Tensor, Tensor]:
    if noise.diagonal:
        q = noise.scale.square()
        gain, factor = q / (q + variance), (q * variance / (q + variance)).sqrt()
        return torch.diag_embed(gain).flatten(-2), torch.diag_embed(factor).flatten(-2)
    covariance = noise.spread
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance + torch.diag_embed(variance)))
    # I - G = S (Q + S)^-1, without cancellation; off its diagonal G is minus that.
    remain = variance.unsqueeze(-1) * inverse
    own = torch.diag_embed((covariance @ inverse + remain).diagonal(dim1=-2, dim2=-1))
    gain = own - remain
    # Joseph's form stays positive definite under rounding.
    posterior = remain @ covariance @ remain.mT + (gain * variance.unsqueeze(-2)) @ gain.mT
    return gain.flatten(-2), torch.linalg.cholesky(posterior).flatten(-2)


class EncoderGuide(Guide):
    r"""Proposes from :math:`q(z_t) \propto p(z_t \mid z_{t-1})\, N(z_t; \mu_t, \mathrm{diag}(s_t^2))`, normalised.

    Mean and variance come from an encoder of the whole recording, run once per call. In bins of which nothing was
    recorded, latents are proposed from the transition.

    Args:
        model: the model that the guide is for.
        encoder: from `trials x time x features` (zero where missing; and from a mask, one where recorded, if its
            `forward` takes a second argument) to mean and log variance, each `trials x time x rank`. Online it must be
            causal and say, by attributes `lookback` and `lookahead` (0), how many time bins it reads.

    Example::

        >>> import pyro_lowrank as plr
        >>> from pyro_lowrank.encoders.convolutional import ConvEncoder
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=40))
        >>> guide = EncoderGuide(model, ConvEncoder(features=40, rank=2))

    References:
        Pals et al. (2024), NeurIPS.
    """

    serves_heavy_tails = True

    def __init__(self, model: StateSpaceModel, encoder: nn.Module) -> None:
        super().__init__(model)
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"`encoder` must be a torch.nn.Module, got {type(encoder).__name__}.")
        for name, expected in (("features", model.observation.features), ("rank", model.dynamics.rank)):
            if getattr(encoder, name, expected) != expected:
                raise ValueError(f"The encoder has {name}={getattr(encoder, name)}, the model {name}={expected}.")
        self.encoder = encoder

    def bind(self, bound: BoundModel) -> EncoderProposal:
        """Return the proposal at the present parameter values."""
        return EncoderProposal(bound.transition, bound.emission, self.encoder)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, beside the model, that build a guide of the same form."""
        return {"encoder": self.encoder}
