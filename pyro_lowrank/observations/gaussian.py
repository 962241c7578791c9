"""Gaussian observations: EEG, LFP, calcium, any real-valued recording."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.arrays import varies
from pyro_lowrank.errors import check_choice, check_positive, warn_user
from pyro_lowrank.modules import effectful
from pyro_lowrank.observations.base import AffineGaussian, ReadoutObservation
from pyro_lowrank.observations.family import ScalarEmission, ScalarFamily
from pyro_lowrank.observations.readout import AffineMap, Readout
from pyro_lowrank.parameters import parameter


def _log_density(y: Any, location: Any, scale: Any) -> Any:
    precision = 1 / (scale * scale)
    error = y - location
    return -0.5 * precision * error * error - math.log(scale) - 0.5 * math.log(2 * math.pi)


def _information(y: Any, location: Any, scale: Any) -> Any:
    return 1 / (scale * scale)


def _draw(location: Tensor, scale: Tensor) -> Tensor:
    return location + scale * torch.randn_like(location)


@cache
def _family() -> ScalarFamily:
    return ScalarFamily.of(
        _log_density,
        ("scale",),
        information=_information,
        expected=lambda location, scale: location,
        variance=lambda location, scale: scale * scale,
        sample=_draw,
        reparametrised=True,
        origin=(_family, ()),
    )


class GaussianObservation(ReadoutObservation):
    r"""Gaussian noise around a readout of the latents.

    .. math:: y_t \sim N(C z_t + b,\ \mathrm{diag}(\sigma^2))

    or around another readout: of latents and inputs, or of the units' currents or rates.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        noise: `"diagonal"`, one standard deviation per feature, or `"scalar"`, one for all.
        noise_scale: that standard deviation before training, in the units of the recording.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> observation = GaussianObservation(rank=3, features=64)
        >>> observation.mean(torch.zeros(10, 3)).shape, observation.noise_variance.shape
        (torch.Size([10, 64]), torch.Size([64]))

    References:
        Pals et al. (2024), NeurIPS.
    """

    noise_scale: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        noise: str = "diagonal",
        noise_scale: float = 0.1,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.noise_kind = check_choice("noise", noise, ("scalar", "diagonal"))
        shape = (self.features,) if noise == "diagonal" else ()
        start = torch.full(shape, check_positive("noise_scale", noise_scale), dtype=dtype, device=device)
        self.noise_scale = parameter(start, constraints.positive)

    def _scale(self) -> Tensor:
        scale = self.noise_scale
        return scale if self.noise_kind == "diagonal" else scale.unsqueeze(-1).expand(*scale.shape, self.features)

    def scale_of_variance(self, variance: Tensor) -> Tensor:
        """Return the `noise_scale` at which the noise has a variance, `features`."""
        return variance.sqrt()

    @property
    def noise_variance(self) -> Tensor:
        """The variance of the observation noise, `features`."""
        return self._scale().square()

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, as that of any `Observation`, without reading the noise."""
        return self.readout.bind(self._units())(z, u)

    def bind(self, units: Any) -> ScalarEmission:
        """Return the observation model at the present parameter values."""
        return ScalarEmission(self.readout.bind(units), _family(), (self._scale(),))

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return the observation model as an affine-Gaussian one, or None if it reads rates."""
        readout = self.readout.bind(units)
        return AffineGaussian(readout, self._scale().square()) if isinstance(readout, AffineMap) else None

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
        return {"readout": self.readout, "noise": self.noise_kind}
