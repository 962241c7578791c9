"""What every network has in common: decay, units and their biases, weights of inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.analysis import analyzer_arguments
from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.initial_weights import uniform
from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.modules import effectful
from pyro_lowrank.parameters import parameter, remember_drawn
from pyro_lowrank.piecewise import PiecewiseLinear


class RNNDynamics(Dynamics):
    """Base of the networks: owns decay, biases and the weights of inputs; a subclass adds its own.

    Every parameter is a Pyro parameter, so that it can be replaced by a `PyroSample` prior.
    """

    decay: Tensor
    bias: Tensor
    right: Tensor
    input_weights: Tensor

    def __init__(
        self,
        *,
        rank: int,
        units: int,
        activation_function: str | PiecewiseLinear | Activation,
        inputs: int,
        input_filter: bool,
        decay: float | Sequence[float],
        noise: str,
        noise_scale: float,
        noise_freedom: float | None,
        initial_noise: str,
        initial_scale: float,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(
            rank=rank,
            inputs=inputs,
            noise=noise,
            noise_scale=noise_scale,
            noise_freedom=noise_freedom,
            initial_noise=initial_noise,
            initial_scale=initial_scale,
            dtype=dtype,
            device=device,
        )
        self.units = check_positive_int("units", units)
        self.activation = activation(activation_function)
        decay_value = torch.as_tensor(decay, dtype=dtype or torch.get_default_dtype(), device=device)
        if decay_value.dim() > 1 or (decay_value.dim() == 1 and len(decay_value) != self.rank):
            raise ValueError(f"`decay` must be a number or one per latent ({self.rank}), got {decay}.")
        if not ((decay_value > 0) & (decay_value < 1)).all():
            raise ValueError(
                f"`decay` must lie strictly between 0 and 1 (a leak of dt / tau = 1 - decay), got {decay}."
            )
        self.decay_per_latent = decay_value.dim() == 1
        if input_filter and (self.decay_per_latent or not inputs):
            raise ValueError(
                "`input_filter` needs `inputs` and one decay for all latents (inputs leak with it), got "
                f"inputs={inputs}, decay={decay}."
            )
        self.input_filter = bool(input_filter)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        others = dict(self._parameters)
        self._parameters.clear()
        self.decay = parameter(decay_value, constraints.unit_interval)
        # Decay in front, as in the states of optimisers that checkpoints hold: these go by number.
        self._parameters.update(others)
        # Under clipped_relu the bias is a unit's range: at zero the unit would be silent and stay so.
        clipped = self.activation.name == "clipped_relu"
        self.bias = parameter(uniform(1, units, **factory)[0] if clipped else torch.zeros(units, **factory))
        if self.num_inputs:
            self.input_weights = parameter(uniform(units, inputs, **factory))
            remember_drawn(self, "input_weights")
        else:
            self.register_buffer("input_weights", torch.zeros(units, 0, **factory))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a network of the same form (its parameter values are its state)."""
        return {
            **super().settings(),
            "units": self.units,
            "activation": self.activation,
            "input_filter": self.input_filter,
            "decay": [0.5] * self.rank if self.decay_per_latent else 0.5,
        }

    @abstractmethod
    def _left(self) -> Tensor | None:
        """Return M, or None for the identity."""

    def _network(self) -> Network:
        return Network(
            decay=self.decay if self.decay_per_latent else self.decay.unsqueeze(-1),
            left=self._left(),
            right=self.right,
            bias=self.bias,
            input_weights=self.input_weights,
            activation=self.activation,
            input_filter=self.input_filter,
        )

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, from latents `... x rank` and effective inputs `... x inputs`."""
        return next_mean(self._network(), z, v)

    def _drift(self) -> Drift:
        # A subclass may move its latents in another way.
        return self._network() if type(self).mean is RNNDynamics.mean else super()._drift()

    @effectful
    def as_network(self, u: Any = None) -> dict[str, Any] | None:
        """Return the network as `find_fixed_points` knows it, under a constant input, `inputs`, zero if None.

        None in a subclass with a `mean` of its own, which may return another one in its place.

        Raises:
            ValueError: if the input does not fit, the parameters have batch dims, or the activation's shape is unknown.
        """
        drift = self._drift()
        return analyzer_arguments(drift, u) if isinstance(drift, Network) else None
