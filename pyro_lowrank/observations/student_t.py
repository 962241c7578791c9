"""Student-t observations: real-valued recordings with outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_positive
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.readout import AffineMap, RatesMap, Readout
from pyro_lowrank.parameters import parameter


@dataclass(frozen=True)
class StudentTEmission:
    """Student-t observations at fixed parameter values: `readout`, `scale` and degrees of `freedom`, `features`."""

    readout: AffineMap | RatesMap
    scale: Tensor
    freedom: Tensor

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the location of the observation, its mean where it has one, `... x features`."""
        return self.readout(z, v)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return dist.StudentT(self.freedom, self.readout(z, v), self.scale, validate_args=False).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""
        error = (y - self.readout(z, v)) / self.scale
        # The weights of the EM algorithm: an outlier has little information.
        information = (self.freedom + 1) / (self.freedom + error.square()) / self.scale.square()
        return Curvature(information * error * self.scale, information, weight_of(self.readout))


class StudentTObservation(GaussianObservation):
    r"""Student-t noise around a readout of the latents: as Gaussian noise, with outliers.

    .. math:: y_t \sim C z_t + b + \sigma\, t_\nu

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        noise: `"diagonal"`, one scale per feature, or `"scalar"`, one for all; or `"autoregressive"`, of features that
            remember their own past, as of `GaussianObservation`.
        order: number of bins that they remember, 1 to 8; 1 if None.
        noise_scale: that scale before training, in the units of the recording.
        freedom: nu, the degrees of freedom before training, shared by all features; few mean many outliers.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> observation = StudentTObservation(rank=3, features=64, freedom=5.0)
        >>> observation.distribution(torch.zeros(10, 3)).batch_shape, observation.freedom.item()
        (torch.Size([10]), 5.0)

    References:
        Lange, Little and Taylor (1989), J. Am. Stat. Assoc. 84:881.
    """

    freedom: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        noise: str = "diagonal",
        order: int | None = None,
        noise_scale: float = 0.1,
        freedom: float = 4.0,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            features=features,
            inputs=inputs,
            noise=noise,
            order=order,
            noise_scale=noise_scale,
            readout=readout,
            dtype=dtype,
            device=device,
        )
        start = torch.full((), check_positive("freedom", freedom), dtype=dtype, device=device)
        self.freedom = parameter(start, constraints.positive)

    def scale_of_variance(self, variance: Tensor) -> Tensor:
        """Return the `noise_scale` at which the noise has a variance; its root, where the noise has none."""
        freedom = self.freedom.detach()
        return (variance * torch.where(freedom > 2, (freedom - 2) / freedom, 1.0)).sqrt()

    @property
    def noise_variance(self) -> Tensor:
        """The variance of the observation noise, `features`; infinite up to two degrees of freedom."""
        infinite = torch.full_like(self.freedom, torch.inf)
        factor = torch.where(self.freedom > 2, self.freedom / (self.freedom - 2), infinite)
        return factor * self._scale().square()

    def bind(self, units: Any) -> Any:
        """Return the observation model at the present parameter values."""
        scale = self._scale()
        return StudentTEmission(self.readout.bind(units), scale, self.freedom.unsqueeze(-1).expand(scale.shape))

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return None: it is not Gaussian."""
        return None
