"""Bernoulli observations: at most one spike per bin, or any other yes and no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.observations.base import ReadoutObservation
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.observations.readout import AffineMap, RatesMap, Readout

# So near to even odds the bound is one quarter, and rounding would spoil it.
_NEAR = 1e-3
# A feature that is always the same starts at odds of one in 10,000 bins.
_SMALLEST_MEAN = 1e-4


@dataclass(frozen=True)
class BernoulliEmission:
    """Bernoulli observations at fixed parameter values: `readout` of log odds."""

    readout: AffineMap | RatesMap

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the probability of a one, `... x features`."""
        return self.readout(z, v).sigmoid()

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return dist.Bernoulli(logits=self.readout(z, v), validate_args=False).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`.

        References:
            Jaakkola and Jordan (2000), Statistics and Computing 10:25, for the bound.
        """
        x = self.readout(z, v)
        probability = x.sigmoid()
        information = probability * (1 - probability)
        # Towards even odds the curvature grows: there, that of the quadratic which bounds the likelihood.
        away = torch.where(x.abs() < _NEAR, 1.0, x)
        bound = torch.where(x.abs() < _NEAR, 0.25, (away.sigmoid() - 0.5) / away)
        stiffness = torch.where((y > 0.5) == (x > 0), information, bound)
        return Curvature(y - probability, information, weight_of(self.readout), stiffness)


class BernoulliObservation(ReadoutObservation):
    r"""Zeros and ones, with log odds that are a readout of the latents.

    .. math:: P(y_t = 1) = 1 / (1 + e^{-(C z_t + b)})

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> BernoulliObservation(rank=3, features=40).mean(torch.zeros(10, 3))[0, 0].item()
        0.5
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)

    def bind(self, units: Any) -> BernoulliEmission:
        """Return the observation model at the present parameter values."""
        return BernoulliEmission(self.readout.bind(units))

    def predictor_of_mean(self, mean: Tensor) -> Tensor:
        """Return the readout at which the probability of a one is `mean`, `features`."""
        return mean.clamp(_SMALLEST_MEAN, 1 - _SMALLEST_MEAN).logit()

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Return how much the probability of a one changes with the log odds where it is `mean`, `features`."""
        mean = mean.clamp(_SMALLEST_MEAN, 1 - _SMALLEST_MEAN)
        return mean * (1 - mean)

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` holds zeros and ones."""
        super().check_data(y)
        bad = (y != 0) & (y != 1) & ~y.isnan()
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"BernoulliObservation takes zeros and ones: `y` holds {int(bad.sum())} other values, the first at "
                f"index {where}, {y[where].item():g}; use shorter bins, or PoissonObservation for counts."
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout}
