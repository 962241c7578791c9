"""Gaussian noise of which each feature remembers its own: coloured noise around what latents say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_positive
from pyro_lowrank.observations.autoregressive import Autoregression
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.linear_memory import LinearMemory, stationary_covariance
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.parameters import parameter


class ColouredNoiseObservation(DrivenObservation):
    r"""A readout of the latents with autoregressive noise, independent between features.

    .. math::

        y_t = C z_t + d + n_t, \qquad n_t = \sum_{k=1}^{p} \rho_k n_{t-k} + e_t, \qquad e_t \sim N(0, \sigma^2)

    per feature, the noise stationary from the first bin on. Latents act on the recording at once and alone, and what a
    feature remembers is noise; in `GaussianObservation(noise="autoregressive")` they act on the innovations, and
    features remember what the latents did too. Without coefficients both are `GaussianObservation`.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        order: number of bins p that the noise remembers, 1 to 8.
        inputs: number of input channels that the affine readout sees.
        noise_scale: standard deviation of the innovations e before training, in the units of the recording.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if the order is not from 1 to 8.

    Example::

        >>> import pyro_lowrank as plr
        >>> observation = ColouredNoiseObservation(rank=3, features=10, order=4)
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=50), observation)
        >>> guide = plr.OptimalGuide(model)
        >>> observation.autoregression.coefficients.shape
        torch.Size([10, 4])

    References:
        Harvey (1989), "Forecasting, structural time series models and the Kalman filter", section 2.3.
    """

    in_units_of_data = ("readout.bias", "readout.weight")

    noise_scale: Tensor

    trace_names = ("signal", "noise")

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        order: int = 1,
        inputs: int = 0,
        noise_scale: float = 0.1,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.autoregression = Autoregression(features=self.features, order=order, dtype=dtype, device=device)
        start = torch.full((self.features,), check_positive("noise_scale", noise_scale), dtype=dtype, device=device)
        self.noise_scale = parameter(start, constraints.positive)

    def bind_linear_memory(self) -> LinearMemory:
        """Return the linear system at the present parameter values: the last bins of the noise."""
        coefficients, order = self.autoregression.coefficients, self.autoregression.order
        older = torch.eye(order, dtype=coefficients.dtype, device=coefficients.device)[:-1]
        older = older.expand(*coefficients.shape[:-1], *older.shape)
        transition = torch.cat([coefficients.unsqueeze(-2), older], -2)
        nothing = torch.zeros_like(coefficients)
        first = nothing.index_fill(-1, torch.tensor([0], device=nothing.device), 1.0)
        noise = torch.diag_embed(first * self.noise_scale.square().unsqueeze(-1))
        zero = torch.zeros_like(self.noise_scale)
        return LinearMemory(
            transition=transition,
            drive=nothing,
            noise=noise,
            readout=first,
            through=torch.ones_like(zero),
            variance=zero,
            baseline=zero,
            before_mean=nothing,
            before_covariance=stationary_covariance(transition, noise),
        )

    def noise_of_drive(self) -> Tensor:
        """Return zeros, `features`: the noise does not enter with what drives."""
        return torch.zeros_like(self.noise_scale)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout, "order": self.autoregression.order}
