"""Student-t observations: real-valued recordings with outliers."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_positive
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.family import ScalarEmission, ScalarFamily
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.parameters import parameter
from pyro_lowrank.scalars.trace import log_rising


def _log_density(y: Any, location: Any, scale: Any, freedom: Any) -> Any:
    error = (y - location) / scale
    constant = log_rising(freedom / 2, 0.5) - math.log(math.pi * freedom) / 2 - math.log(scale)
    return constant - (freedom + 1) / 2 * math.log1p(error * error / freedom)


def _information(y: Any, location: Any, scale: Any, freedom: Any) -> Any:
    # The weights of the EM algorithm: an outlier has little information.
    error = (y - location) / scale
    return (freedom + 1) / (freedom + error * error) / (scale * scale)


def _draw(location: Tensor, scale: Tensor, freedom: Tensor) -> Tensor:
    return torch.distributions.StudentT(freedom, location, scale, validate_args=False).rsample()


def _variance(location: Any, scale: Any, freedom: Any) -> Any:
    infinite = math.inf if freedom > 1 else math.nan
    return scale * scale * freedom / (freedom - 2) if freedom > 2 else infinite


@cache
def _family() -> ScalarFamily:
    return ScalarFamily.of(
        _log_density,
        ("scale", "freedom"),
        information=_information,
        # The location, its mean where it has one.
        expected=lambda location, scale, freedom: location,
        variance=_variance,
        sample=_draw,
        reparametrised=True,
        origin=(_family, ()),
    )


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
        return ScalarEmission(self.readout.bind(units), _family(), (self._scale(), self.freedom.unsqueeze(-1)))

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return None: it is not Gaussian."""
        return None
