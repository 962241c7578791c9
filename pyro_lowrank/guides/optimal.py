"""The locally optimal guide for affine-Gaussian observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.base import Bin, Encoding, Guide
from pyro_lowrank.guides.conditioning import Conditioning, apply_pattern, condition, pick
from pyro_lowrank.guides.laplace import LaplaceProposal
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.shapes import apply_per_trial


@dataclass(frozen=True)
class Reduced:
    """A recording as `OptimalProposal` sees it, in the letters used there.

    Attributes:
        reference: the reference latents, `trials x time x rank`.
        linear: c, `trials x time x rank`.
        constant: const(e), `trials x time`.
        conditioning: what time bins share.
        index: which pattern of missing features each time bin has, `trials x time`, or None if nothing is missing.
    """

    reference: Tensor
    linear: Tensor
    constant: Tensor
    conditioning: Conditioning
    index: Tensor | None


@dataclass(frozen=True)
class OptimalProposal:
    r"""The posterior of z_t given z_{t-1} and y_t, in terms of rank-sized tensors.

    With m the mean of the transition, Q its covariance, :math:`\Lambda = (C Q C^T + S)^{-1}`, any reference latent
    :math:`\hat z`, :math:`e = y - d - C \hat z`, :math:`\delta = m - \hat z`, :math:`c = C^T \Lambda e` and
    :math:`A = C^T \Lambda C`:

    .. math::

        E[z_t \mid z_{t-1}, y_t] &= m + Q (c - A \delta) \\
        \log p(y_t \mid z_{t-1}) &= \mathrm{const}(e) + c^T \delta - \tfrac{1}{2} \delta^T A \delta

    The reference, a least-squares latent, keeps the terms small, so that float32 suffices for small noise.
    """

    transition: Transition
    observation: AffineGaussian
    _remembered: dict[int, Conditioning] = field(default_factory=dict, compare=False, repr=False)

    def reduce(self, seen: Observed, v: Tensor | None, noises: Sequence[GaussianNoise]) -> Reduced:
        """Reduce the recording, `trials x time x features`, to rank-sized tensors.

        The first of the noises leads into the first time bin, the last into all others.
        """
        y, missing, index = seen.y, seen.missing, None
        residual = y - self.observation.readout.offset(v)
        if missing is not None:
            patterns, index = torch.unique(missing.reshape(-1, y.shape[-1]), dim=0, return_inverse=True)
            index = index.reshape(y.shape[:-1])
            residual = residual.masked_fill(missing, 0.0)
        conditioning = self._condition(noises, None if index is None else patterns)
        reference = conditioning.reference(residual, index)
        remainder = residual - apply_pattern(conditioning.weight, reference, index)
        linear, quadratic = conditioning.weigh(remainder, index)
        constant = -0.5 * (quadratic + conditioning.log_normalisers(index, y.shape[1]))
        constant = constant if seen.log_volume is None else constant + seen.log_volume
        return Reduced(reference, linear, constant, conditioning, index)

    def _condition(self, noises: Sequence[GaussianNoise], patterns: Tensor | None) -> Conditioning:
        """Condition on patterns of missing features, None if there are none.

        Where nothing is missing and no gradients are asked for, all time bins of a filter share the result.
        """
        remember = patterns is None and not torch.is_grad_enabled()
        if remember and len(noises) in self._remembered:
            return self._remembered[len(noises)]
        weight = self.observation.readout.weight
        if patterns is None:
            patterns = torch.zeros(1, weight.shape[-2], dtype=torch.bool, device=weight.device)
        conditioning = condition(torch.stack([noise.scale_tril for noise in noises]), self.observation, patterns)
        if remember:
            self._remembered[len(noises)] = conditioning
        return conditioning

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Reduce the recording, `trials x time x features`, to rank-sized tensors `trials x time x ...`."""
        noises = (self.transition.initial_noise, self.transition.noise)[0 if first else 1 :]
        reduced = self.reduce(seen, v, noises)
        conditioning, index = reduced.conditioning, reduced.index

        def per_bin(matrices: Tensor) -> Tensor:
            chosen = [
                pick(matrices[number].flatten(-2), None if index is None else index[:, times]).expand(-1, length, -1)
                for number, times, length in conditioning.sections(seen.y.shape[1])
            ]
            return torch.cat(chosen, 1)

        return {
            "reference": reduced.reference,
            "linear": reduced.linear,
            "constant": reduced.constant.unsqueeze(-1),
            "curvature": per_bin(conditioning.curvature),
            "scale_tril": per_bin(conditioning.scale_tril),
        }

    def _square(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.transition.rank, self.transition.rank))

    def _mean_and_weight(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
        delta = mean - encoding["reference"]
        curved = apply_per_trial(self._square(encoding["curvature"]), delta)
        linear = encoding["linear"]
        log_weight = encoding["constant"].squeeze(-1) + ((linear - 0.5 * curved) * delta).sum(-1)
        return mean + (linear - curved) @ noise.covariance, log_weight

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return p(z_t | z_{t-1}, y_t)."""
        loc, _ = self._mean_and_weight(noise, mean, encoding)
        return dist.MultivariateNormal(loc, scale_tril=self._square(encoding["scale_tril"]), validate_args=False)

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return latents drawn from p(z_t | z_{t-1}, y_t) and log p(y_t | z_{t-1}), which does not depend on them."""
        loc, log_weight = self._mean_and_weight(noise, mean, bin_t.encoding)
        z = loc + apply_per_trial(self._square(bin_t.encoding["scale_tril"]), white)
        return z, log_weight.expand(z.shape[:-1])


class OptimalGuide(Guide):
    r"""Proposes from :math:`q(z_t) = p(z_t \mid z_{t-1}, y_t)`, in closed form for affine-Gaussian observations.

    Its weights, :math:`p(y_t \mid z_{t-1})`, vary least of all guides that do not look ahead. The recording is reduced
    to rank-sized tensors once per call: no tensor of `particles x trials x features` is made.

    Args:
        model: the model that the guide is for; its observation model must be affine-Gaussian (a `GaussianObservation`
            that reads latents, inputs or currents).

    Raises:
        ValueError: if the observation model is not affine-Gaussian.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=100), plr.GaussianObservation(rank=3, features=64))
        >>> guide = OptimalGuide(model)

    References:
        Doucet, Godsill and Andrieu (2000), Statistics and Computing 10:197; Pals et al. (2024), NeurIPS, appendix.
    """

    particles_to_train = 32

    def __init__(self, model: StateSpaceModel) -> None:
        super().__init__(model)
        emission = model.bind().emission
        if isinstance(emission, DrivenEmission) and emission.affine:
            return
        if model.observation.affine_gaussian(model.dynamics.transition().drift) is None:
            found = " ".join(repr(model.observation).split())
            raise ValueError(
                "`OptimalGuide` needs affine-Gaussian observations (a GaussianObservation that reads latents, inputs "
                f"or currents), got {found}; use BootstrapGuide."
            )

    def bind(self, bound: BoundModel) -> OptimalProposal | LaplaceProposal:
        """Return the proposal at the present parameter values."""
        if isinstance(bound.emission, DrivenEmission):
            # What particles see of a bin is affine-Gaussian with an offset of each: one Gauss-Newton step is exact.
            emission: Any = bound.emission
            return LaplaceProposal(emission, 1, None)
        assert bound.affine_gaussian is not None
        return OptimalProposal(bound.transition, bound.affine_gaussian)
