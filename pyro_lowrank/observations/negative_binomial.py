"""Negative binomial observations: spike counts that vary more than Poisson ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_choice, check_positive
from pyro_lowrank.observations.counts import CountObservation
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.parameters import parameter
from pyro_lowrank.scalars.trace import log_rising

DISPERSIONS = ("shared", "per_feature")


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

    @staticmethod
    def log_density(count: Any, log_rate: Any, dispersion: Any) -> Any:
        """Return the log probability of a count."""
        # log(1 + alpha rate) keeps the digits that a difference of logarithms would lose.
        excess = math.log1p(dispersion * math.exp(log_rate))
        ways = log_rising(1 / dispersion, count) - math.lgamma(count + 1)
        return ways + count * (log_rate + math.log(dispersion) - excess) - excess / dispersion

    @staticmethod
    def information(count: Any, log_rate: Any, dispersion: Any) -> Any:
        """Return that of the log rate."""
        return math.exp(log_rate) / (1 + dispersion * math.exp(log_rate))

    @staticmethod
    def expected(log_rate: Any, dispersion: Any) -> Any:
        """Return the rate."""
        return math.exp(log_rate)

    @staticmethod
    def variance(log_rate: Any, dispersion: Any) -> Any:
        """Return the variance."""
        return math.exp(log_rate) + dispersion * math.exp(log_rate) ** 2

    @staticmethod
    def sample(log_rate: Tensor, dispersion: Tensor) -> Tensor:
        """Draw counts: Poisson ones at rates that vary."""
        size = dispersion.reciprocal()
        gain = torch.distributions.Gamma(size, size, validate_args=False).sample()
        return torch.poisson(log_rate.exp() * gain)

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

    def _is_shared(self, called: str) -> bool:
        return self.dispersion_kind == "shared"

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {**super().settings(), "dispersion_kind": self.dispersion_kind}
