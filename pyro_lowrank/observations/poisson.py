"""Poisson observations: spike counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_lowrank.observations.counts import LARGEST_LOG_RATE, CountEmission, CountObservation, log_of_softplus
from pyro_lowrank.observations.readout import Readout


class LogRatePoisson(dist.TorchDistribution):
    r"""Poisson distribution given by its log rate, finite for any: log p(y) = y log(rate) - rate - log y!.

    Args:
        log_rate: any real number, in log counts per bin.
        rate: its exponential, where that is known and finite; else log rates are held where it would overflow.

    Example::

        >>> LogRatePoisson(torch.tensor([-1000.0, 0.0])).log_prob(torch.tensor([1.0, 1.0]))
        tensor([-1000.,    -1.])
    """

    arg_constraints = {"log_rate": constraints.real}  # noqa: RUF012 (torch declares it so)
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, *, rate: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate if rate is not None else log_rate.clamp(max=LARGEST_LOG_RATE)
        self._rate = rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: LogRatePoisson | None = None
    ) -> LogRatePoisson:
        """Return the same distribution for a larger batch."""
        new = self._get_checked_instance(LogRatePoisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        new._rate = None if self._rate is None else self._rate.expand(batch_shape)
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        return new

    @property
    def rate(self) -> Tensor:
        """The rate, in counts per bin."""
        return self.log_rate.exp() if self._rate is None else self._rate

    @property
    def mean(self) -> Tensor:
        """The mean, in counts per bin."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """The variance, equal to the rate."""
        return self.rate

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            return torch.poisson(self.rate.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of counts, in nats."""
        return value * self.log_rate - self.rate - torch.lgamma(value + 1)


@dataclass(frozen=True)
class PoissonEmission(CountEmission):
    """Poisson observations at fixed parameter values."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the counts, with event shape `features`."""
        x = self.readout(z, v)
        if self.link == "exp":
            return LogRatePoisson(x, validate_args=False).to_event(1)
        rate = functional.softplus(x)
        return LogRatePoisson(log_of_softplus(x, rate), rate=rate, validate_args=False).to_event(1)

    def _curvature_in_log_rate(self, log_rate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        rate = log_rate.exp()
        return y - rate, rate


class PoissonObservation(CountObservation):
    r"""Poisson spike counts, at rates that are a link function of a readout of the latents.

    .. math:: y_t \sim \mathrm{Poisson}(\mathrm{link}(C z_t + b))

    or of another readout: of latents and inputs, or of the units' currents or rates. Rates are in counts per bin.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        link: `"softplus"` or `"exp"`.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> PoissonObservation(rank=3, features=40, link="exp").mean(torch.zeros(10, 3))[0, 0]
        tensor(1., grad_fn=<SelectBackward0>)

    References:
        Pals et al. (2024), NeurIPS.
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        link: str = "softplus",
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            rank=rank, features=features, inputs=inputs, link=link, readout=readout, dtype=dtype, device=device
        )

    def bind(self, units: Any) -> PoissonEmission:
        """Return the observation model at the present parameter values."""
        return PoissonEmission(self.readout.bind(units), self.link)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout, "link": self.link}
