"""Negative binomial observations: spike counts that vary more than Poisson ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_lowrank.errors import check_choice, check_positive
from pyro_lowrank.observations.counts import LARGEST_LOG_RATE, CountEmission, CountObservation
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.parameters import parameter

DISPERSIONS = ("shared", "per_feature")


class LogRateNegativeBinomial(dist.TorchDistribution):
    r"""Negative binomial distribution given by its log rate and dispersion, finite for any rate.

    .. math:: E[y] = \lambda, \qquad \mathrm{Var}[y] = \lambda + \alpha \lambda^2

    Args:
        log_rate: any real number, in log counts per bin.
        dispersion: alpha, above zero; near zero it is a Poisson distribution.

    Example::

        >>> LogRateNegativeBinomial(torch.tensor(0.0), torch.tensor(1.0)).log_prob(torch.tensor([0.0, 1.0])).exp()
        tensor([0.5000, 0.2500])
    """

    arg_constraints = {"log_rate": constraints.real, "dispersion": constraints.positive}  # noqa: RUF012 (as torch)
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, dispersion: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate.clamp(max=LARGEST_LOG_RATE)
        # Not broadcast: what depends on the dispersion alone is computed once for all particles.
        self.dispersion = dispersion
        super().__init__(torch.broadcast_shapes(log_rate.shape, dispersion.shape), validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: LogRateNegativeBinomial | None = None
    ) -> LogRateNegativeBinomial:
        """Return the same distribution for a larger batch."""
        new = self._get_checked_instance(LogRateNegativeBinomial, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        new.dispersion = self.dispersion.expand(batch_shape)
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        return new

    @property
    def rate(self) -> Tensor:
        """The rate, in counts per bin."""
        return self.log_rate.exp()

    @property
    def mean(self) -> Tensor:
        """The mean, in counts per bin."""
        return self.rate.expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self.rate + self.dispersion * self.rate.square()

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw counts: Poisson ones at rates that vary."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            size = self.dispersion.reciprocal().expand(shape)
            gain = torch.distributions.Gamma(size, size, validate_args=False).sample()
            return torch.poisson(self.rate * gain)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of counts, in nats."""
        log_size = -self.dispersion.log()
        # The difference of two large numbers where the dispersion is small; its shape lacks the particles.
        size = log_size.double().exp()
        count = value.double()
        ways = (torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)).to(value.dtype)
        # log(1 + rate / size) keeps the digits that log(size) - log(size + rate) would lose.
        excess = functional.softplus(self.log_rate - log_size)
        return ways + value * (self.log_rate - log_size - excess) - log_size.exp() * excess


@dataclass(frozen=True)
class NegativeBinomialEmission(CountEmission):
    """Negative binomial observations at fixed parameter values, with a `dispersion` for each feature."""

    dispersion: Tensor

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the counts, with event shape `features`."""
        return LogRateNegativeBinomial(self.log_rate(z, v), self.dispersion, validate_args=False).to_event(1)

    def _curvature_in_log_rate(self, log_rate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # 1 / (1 + alpha rate), in logs: the rate alone may be too large to square.
        shrink = torch.sigmoid(-log_rate - self.dispersion.log())
        rate = log_rate.exp()
        return (y - rate) * shrink, rate * shrink


class NegativeBinomialObservation(CountObservation):
    r"""Negative binomial spike counts, at rates that are a link function of a readout of the latents.

    .. math::

        y_t \sim \mathrm{NegBin}(\lambda_t, \alpha), \quad \lambda_t = \mathrm{link}(C z_t + b), \quad
        \mathrm{Var}[y_t] = \lambda_t + \alpha \lambda_t^2

    Rates are in counts per bin; the dispersion alpha is 0 for Poisson counts.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        link: `"softplus"` or `"exp"`.
        dispersion_kind: `"per_feature"` or `"shared"`.
        dispersion: alpha before training.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> observation = NegativeBinomialObservation(rank=3, features=40, dispersion_kind="shared")
        >>> observation.dispersion.shape, observation.mean(torch.zeros(10, 3)).shape
        (torch.Size([]), torch.Size([10, 40]))

    References:
        Goris, Movshon and Simoncelli (2014), Nat. Neurosci. 17:858.
    """

    dispersion: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        link: str = "softplus",
        dispersion_kind: str = "per_feature",
        dispersion: float = 0.1,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            rank=rank, features=features, inputs=inputs, link=link, readout=readout, dtype=dtype, device=device
        )
        self.dispersion_kind = check_choice("dispersion_kind", dispersion_kind, DISPERSIONS)
        shape = (self.features,) if dispersion_kind == "per_feature" else ()
        start = torch.full(shape, check_positive("dispersion", dispersion), dtype=dtype, device=device)
        self.dispersion = parameter(start, constraints.positive)

    def bind(self, units: Any) -> NegativeBinomialEmission:
        """Return the observation model at the present parameter values."""
        dispersion = self.dispersion
        if self.dispersion_kind == "shared":
            dispersion = dispersion.unsqueeze(-1).expand(*dispersion.shape, self.features)
        return NegativeBinomialEmission(self.readout.bind(units), self.link, dispersion)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout, "link": self.link, "dispersion_kind": self.dispersion_kind}
