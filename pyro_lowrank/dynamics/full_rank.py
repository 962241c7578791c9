"""The full-rank recurrent network: the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.rnn import RNNDynamics
from pyro_lowrank.errors import check_positive
from pyro_lowrank.parameters import parameter
from pyro_lowrank.piecewise import PiecewiseLinear


class FullRankRNN(RNNDynamics):
    r"""A recurrent network whose N latents are the currents of its N units: the low-rank one with M the identity.

    .. math::

        z_t = a z_{t-1} + J \phi(z_{t-1} + W_u u_{t-1}; h) + \varepsilon_t, \qquad \varepsilon_t \sim N(0, \Sigma_z)

    Attributes as of `LowRankRNN`, with `left` the identity and `right` J `units x units`.

    Args:
        units: number of units and of latents, N.
        gain: standard deviation of J before training, times sqrt(N) / (1 - decay).
        activation: as in `LowRankRNN`.
        inputs: as in `LowRankRNN`.
        noise: as in `LowRankRNN`.
        input_filter: as in `LowRankRNN`.
        decay: as in `LowRankRNN`.
        noise_scale: as in `LowRankRNN`.
        noise_freedom: as in `LowRankRNN`.
        initial_noise: as in `LowRankRNN`.
        initial_scale: as in `LowRankRNN`.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if `decay` leaves (0, 1), or an option is not one of its choices.

    Example::

        >>> FullRankRNN(units=20)(torch.zeros(10, 20)).shape
        torch.Size([10, 20])

    References:
        Pals et al. (2024), NeurIPS, appendix (full-rank baseline).
    """

    def __init__(
        self,
        *,
        units: int,
        gain: float = 2**0.5,
        activation: str | PiecewiseLinear | Activation = "clipped_relu",
        inputs: int = 0,
        noise: str = "diagonal",
        input_filter: bool = False,
        decay: float | Sequence[float] = 0.9,
        noise_scale: float = 0.1,
        noise_freedom: float | None = None,
        initial_noise: str = "diagonal",
        initial_scale: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            rank=units,
            units=units,
            activation_function=activation,
            inputs=inputs,
            input_filter=input_filter,
            decay=decay,
            noise=noise,
            noise_scale=noise_scale,
            noise_freedom=noise_freedom,
            initial_noise=initial_noise,
            initial_scale=initial_scale,
            dtype=dtype,
            device=device,
        )
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        leak = 1 - torch.as_tensor(decay, **factory).reshape(-1, 1)
        scale = check_positive("gain", gain) / units**0.5
        self.right = parameter(leak * scale * torch.randn(units, units, **factory))

    def _left(self) -> None:
        return None

    @property
    def left(self) -> Tensor:
        """The identity, `units x units`."""
        return torch.eye(self.units, dtype=self.right.dtype, device=self.right.device)

    @property
    def recurrent_weights(self) -> Tensor:
        """J, the recurrent weights, `units x units`."""
        return self.right
