"""Gaussian observations: EEG, LFP, calcium, any real-valued recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.arrays import varies
from pyro_lowrank.errors import check_choice, check_positive, check_positive_int, warn_user
from pyro_lowrank.modules import effectful
from pyro_lowrank.observations.base import AffineGaussian, Emission, ReadoutObservation
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.observations.readout import AffineMap, RatesMap, Readout
from pyro_lowrank.observations.shared_noise import SharedNoiseEmission
from pyro_lowrank.parameters import parameter, remember_drawn


@dataclass(frozen=True)
class GaussianEmission:
    """Gaussian observations at fixed parameter values: `readout`, and the standard deviations `scale`, `features`."""

    readout: AffineMap | RatesMap
    scale: Tensor

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""
        return self.readout(z, v)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return dist.Normal(self.readout(z, v), self.scale, validate_args=False).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""
        precision = self.scale.square().reciprocal()
        score = (y - self.readout(z, v)) * precision
        return Curvature(score, precision.expand(score.shape), weight_of(self.readout))


class GaussianObservation(ReadoutObservation):
    r"""Gaussian noise around a readout of the latents.

    .. math:: y_t \sim N(C z_t + b,\ \mathrm{diag}(\sigma^2) + F F^T)

    or around another readout: of latents and inputs, or of the units' currents or rates. The noise factors F are what
    features share without dynamics: volume conduction, a reference electrode, movement of the tissue. Without them the
    latents have to account for it.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        noise: `"diagonal"`, one standard deviation per feature, or `"scalar"`, one for all.
        noise_scale: that standard deviation before training, in the units of the recording.
        noise_factors: number of columns of F, fewer than features; 0 for noise that is independent.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> observation = GaussianObservation(rank=3, features=64)
        >>> observation.mean(torch.zeros(10, 3)).shape, observation.noise_variance.shape
        (torch.Size([10, 64]), torch.Size([64]))
        >>> shared = GaussianObservation(rank=3, features=64, noise_factors=8)
        >>> shared.noise_factors.shape, shared.noise_covariance.shape
        (torch.Size([64, 8]), torch.Size([64, 64]))

    References:
        Pals et al. (2024), NeurIPS; Woodbury (1950), on the inverse; Rubin and Thayer (1982), Psychometrika 47:69, on
        factor analysis, which is what is left without dynamics.
    """

    noise_scale: Tensor
    noise_factors: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        noise: str = "diagonal",
        noise_scale: float = 0.1,
        noise_factors: int = 0,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.noise_kind = check_choice("noise", noise, ("scalar", "diagonal"))
        shape = (self.features,) if noise == "diagonal" else ()
        start = torch.full(shape, check_positive("noise_scale", noise_scale), dtype=dtype, device=device)
        self.noise_scale = parameter(start, constraints.positive)
        self._add_factors(check_positive_int("noise_factors", noise_factors, minimum=0), noise_scale, start)

    def _add_factors(self, number: int, noise_scale: float, like: Tensor) -> None:
        if number >= self.features:
            raise ValueError(
                f"`noise_factors` must be fewer than the {self.features} features, or the noise would have more "
                f"parameters than its covariance, got noise_factors={number}."
            )
        self.num_noise_factors = number
        if not number:
            # Not in files: those of models without shared noise stay as they were.
            self.register_buffer("noise_factors", like.new_zeros(self.features, 0), persistent=False)
            return
        # Not zero, where the gradient would be.
        drawn = like.new_empty(self.features, number).normal_() * noise_scale / number**0.5
        self.noise_factors = parameter(drawn)
        remember_drawn(self, "noise_factors")

    def _scale(self) -> Tensor:
        scale = self.noise_scale
        return scale if self.noise_kind == "diagonal" else scale.unsqueeze(-1).expand(*scale.shape, self.features)

    def scale_of_variance(self, variance: Tensor) -> Tensor:
        """Return the `noise_scale` at which the noise has a variance, `features`."""
        return variance.sqrt()

    @property
    def noise_variance(self) -> Tensor:
        """The variance of the observation noise, that of its own and what it shares together, `features`."""
        return self._scale().square() + self.noise_factors.square().sum(-1)

    @property
    def noise_covariance(self) -> Tensor:
        """The covariance of the observation noise, `features x features`; own and shared."""
        return torch.diag_embed(self._scale().square()) + self.noise_factors @ self.noise_factors.mT

    def _factors(self) -> Tensor | None:
        return self.noise_factors if self.num_noise_factors else None

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, as that of any `Observation`, without reading the noise."""
        return self.readout.bind(self._units())(z, u)

    def bind(self, units: Any) -> Emission:
        """Return the observation model at the present parameter values."""
        readout, factors = self.readout.bind(units), self._factors()
        if factors is None:
            return GaussianEmission(readout, self._scale())
        return SharedNoiseEmission(readout, self._scale(), factors)

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return the observation model as an affine-Gaussian one, or None if it reads rates."""
        readout = self.readout.bind(units)
        if not isinstance(readout, AffineMap):
            return None
        return AffineGaussian(readout, self._scale().square(), self._factors())

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` can be Gaussian data; warn of features that never change."""
        super().check_data(y)
        seen = ~y.isnan()
        low = y.masked_fill(~seen, torch.inf).amin((0, 1))
        high = y.masked_fill(~seen, -torch.inf).amax((0, 1))
        # One time bin cannot tell a constant feature from any other.
        constant = (~varies(low, high) & (seen.sum(1) > 1).any(0)).nonzero().flatten().tolist()
        if constant:
            warn_user(
                f"Features {constant[:10]}{'...' if len(constant) > 10 else ''} of `y` never change: their noise "
                "will shrink towards zero and their likelihood grow without bound; leave them out."
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        shared = {"noise_factors": self.num_noise_factors} if self.num_noise_factors else {}
        return {"readout": self.readout, "noise": self.noise_kind, **shared}
