"""What observation models of counts share: a link from a readout to rates, and the check of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from pyro_lowrank.errors import check_choice
from pyro_lowrank.observations.base import ReadoutObservation
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.observations.readout import AffineMap, RatesMap, Readout

LINKS = ("softplus", "exp")

# exp(60) is far beyond any count and far below the largest float32, so products with it stay finite.
LARGEST_LOG_RATE = 60.0
# Below this, softplus(x) and exp(x) agree to float64 precision in the log.
_SMALLEST_SOFTPLUS = -40.0
# A unit that never fires starts at a rate of one count in 10,000 bins.
_SMALLEST_MEAN = 1e-4
# So near to the data the mean curvature on the way there is the one here, and rounding would spoil it.
_NEAR = 1e-2
# So far above the data, in the log, an exponential rate counts as no larger: a particle there has no weight beside
# nearer ones, but its information would exceed that of the transition by more than float32 can add to it.
_FARTHEST = 8.0


def log_softplus(x: Tensor) -> Tensor:
    """Return log(softplus(x)) without underflow: x itself where softplus(x) would vanish.

    Example::

        >>> log_softplus(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([-1.0000e+03, -3.6651e-01,  6.9078e+00])
    """
    return log_of_softplus(x, functional.softplus(x))


def log_of_softplus(x: Tensor, softplus: Tensor) -> Tensor:
    """Return log(softplus(x)) from softplus(x), where that is needed too."""
    # Where softplus(x) vanishes its log, which is not taken, would have a NaN gradient.
    smallest = torch.finfo(x.dtype).tiny
    return torch.where(x < _SMALLEST_SOFTPLUS, x, softplus.clamp(min=smallest).log())


def predictor_of_rate(link: str, rate: Tensor) -> Tensor:
    """Return the readout at which a link gives a rate above zero.

    Example::

        >>> predictor_of_rate("exp", torch.tensor(1.0))
        tensor(0.)
    """
    return rate.log() if link == "exp" else rate + (-torch.expm1(-rate)).log()


@dataclass(frozen=True)
class CountEmission:
    """Counts at fixed parameter values: `readout`, and the `link` from it to rates. A subclass has their density."""

    mean_name: ClassVar[str] = "rates"

    readout: AffineMap | RatesMap
    link: str

    def log_rate(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the log of the expected counts per bin, `... x features`."""
        return self._log_rate(self.readout(z, v))

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the expected counts per bin, `... x features`."""
        return self.distribution(z, v).mean

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the counts, with event shape `features`."""
        raise NotImplementedError

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for counts `... x features`.

        Exponential rates above `e**8` times what the data ask for are taken to be that.
        """
        x = self.readout(z, v)
        log_rate = self._log_rate(x)
        # The data would have the rate at the count; zero counts as one half, for its log.
        target = y.clamp(min=0.5)
        if self.link == "exp":
            log_rate = torch.minimum(log_rate, target.log() + _FARTHEST)
        score, information = self._curvature_in_log_rate(log_rate, y)
        pull, way = self._curvature_in_log_rate(log_rate, target)[0], predictor_of_rate(self.link, target) - x
        if self.link == "softplus":
            slope = (functional.logsigmoid(x) - log_rate).exp()
            score, information, pull = score * slope, information * slope.square(), pull * slope
        near = way.abs() < _NEAR
        stiffness = torch.where(near, information, pull / torch.where(near, 1.0, way))
        return Curvature(score, information, weight_of(self.readout), stiffness)

    def _log_rate(self, x: Tensor) -> Tensor:
        return (log_softplus(x) if self.link == "softplus" else x).clamp(max=LARGEST_LOG_RATE)

    def _curvature_in_log_rate(self, log_rate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return score and information with respect to the log rate."""
        raise NotImplementedError


class CountObservation(ReadoutObservation):
    """Base of the observation models of counts."""

    def __init__(
        self,
        *,
        rank: int | None,
        features: int | None,
        inputs: int,
        link: str,
        readout: Readout | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.link = check_choice("link", link, LINKS)

    def predictor_of_mean(self, mean: Tensor) -> Tensor:
        """Return the readout at which the expected counts are `mean`, `features`."""
        return predictor_of_rate(self.link, mean.clamp(min=_SMALLEST_MEAN))

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Return how much the expected counts change with the readout where they are `mean`, `features`."""
        rate = mean.clamp(min=_SMALLEST_MEAN)
        return rate if self.link == "exp" else -torch.expm1(-rate)

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` holds counts."""
        super().check_data(y)
        bad = (y < 0) | ((y != y.round()) & ~y.isnan())
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{type(self).__name__} takes counts, 0, 1, 2, ...: `y` holds {int(bad.sum())} negative or fractional "
                f"values, the first at index {where}, {y[where].item():g}; bin the spikes, or use GaussianObservation."
            )
