"""Poisson observations: spike counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.observations.counts import CountObservation
from pyro_lowrank.observations.readout import Readout


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

    @staticmethod
    def log_density(count: Any, log_rate: Any) -> Any:
        """Return the log probability of a count."""
        return count * log_rate - math.exp(log_rate) - math.lgamma(count + 1)

    @staticmethod
    def information(count: Any, log_rate: Any) -> Any:
        """Return that of the log rate."""
        return math.exp(log_rate)

    @staticmethod
    def expected(log_rate: Any) -> Any:
        """Return the rate."""
        return math.exp(log_rate)

    variance = expected

    @staticmethod
    def sample(log_rate: Tensor) -> Tensor:
        """Draw counts."""
        return torch.poisson(log_rate.exp())

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
