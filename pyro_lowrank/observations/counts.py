"""What observation models of counts share: a link from a readout to rates."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_choice
from pyro_lowrank.observations.density import Link
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.observations.scalar import ScalarObservation

LINKS = ("softplus", "exp")

# exp(60) is far beyond any count and far below the largest float32, so products with it stay finite.
LARGEST_LOG_RATE = 60.0
# A unit that never fires starts at a rate of one count in 10,000 bins.
_SMALLEST_MEAN = 1e-4


def softplus_link(eta: Any) -> Any:
    """Return the log rate log(softplus(eta))."""
    return math.log(math.log1p(math.exp(eta)))


def exp_link(eta: Any) -> Any:
    """Return the log rate eta, held where products with the rate would overflow."""
    return min(eta, LARGEST_LOG_RATE)


def _target(count: Any) -> Any:
    # The data would have the rate at the count; zero counts as one half, for its log.
    return max(count, 0.5)


def _softplus_aim(count: Any, *parameters: Any) -> Any:
    target = _target(count)
    return target + math.log(-math.expm1(-target))


def _exp_aim(count: Any, *parameters: Any) -> Any:
    return math.log(_target(count))


# So far above the data, in the log, an exponential rate counts as no larger, or its pull would end where it is held.
_LINKS = {"softplus": Link(softplus_link, _softplus_aim), "exp": Link(exp_link, _exp_aim, reach=8.0)}


def predictor_of_rate(link: str, rate: Tensor) -> Tensor:
    """Return the readout at which a link gives a rate above zero.

    Example::

        >>> predictor_of_rate("exp", torch.tensor(1.0))
        tensor(0.)
    """
    return rate.log() if link == "exp" else rate + (-torch.expm1(-rate)).log()


class CountObservation(ScalarObservation):
    """Base of the observation models of counts: in their functions of numbers `eta` is the log rate."""

    support = constraints.nonnegative_integer
    mean_name: ClassVar[str] = "rates"

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
        self._set_link(_LINKS[self.link])

    def predictor_of_mean(self, mean: Tensor) -> Tensor:
        """Return the readout at which the expected counts are `mean`, `features`."""
        return predictor_of_rate(self.link, mean.clamp(min=_SMALLEST_MEAN))

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Return how much the expected counts change with the readout where they are `mean`, `features`."""
        rate = mean.clamp(min=_SMALLEST_MEAN)
        return rate if self.link == "exp" else -torch.expm1(-rate)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout, "link": self.link}
