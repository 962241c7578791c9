"""What every network has in common: decay, noise, initial state, inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.analysis import analyzer_arguments
from pyro_lowrank.dynamics.initial_weights import uniform
from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.dynamics.noise import NOISE_KINDS, GaussianNoise, noise_of, noise_parameter
from pyro_lowrank.dynamics.trajectory import Trajectory
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import check_choice, check_no_infinities, check_positive, check_positive_int, check_sequence
from pyro_lowrank.modules import Module, effectful
from pyro_lowrank.parameters import parameter
from pyro_lowrank.piecewise import PiecewiseLinear

if TYPE_CHECKING:
    from pyro_lowrank.fixed_points.options import Progress
    from pyro_lowrank.fixed_points.result import FixedPoints


class RNNDynamics(Module):
    """Base of the networks: owns decay, noise, initial state and inputs; a subclass adds its weights.

    Every parameter is a Pyro parameter, so that it can be replaced by a `PyroSample` prior.
    """

    decay: Tensor
    bias: Tensor
    right: Tensor
    input_weights: Tensor
    noise_scale: Tensor
    noise_freedom: Tensor
    initial_mean: Tensor
    initial_noise_scale: Tensor

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
        super().__init__()
        self.rank = check_positive_int("rank", rank)
        self.units = check_positive_int("units", units)
        self.num_inputs = check_positive_int("inputs", inputs, minimum=0)
        self.activation = activation(activation_function)
        self.noise_kind = check_choice("noise", noise, NOISE_KINDS)
        self.initial_noise_kind = check_choice("initial_noise", initial_noise, NOISE_KINDS)
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
        self.decay = parameter(decay_value, constraints.unit_interval)
        self.noise_scale = noise_parameter(noise, rank, check_positive("noise_scale", noise_scale), **factory)
        self.heavy_tailed = noise_freedom is not None
        if noise_freedom is not None:
            freedom = torch.full((), check_positive("noise_freedom", noise_freedom), **factory)
            self.noise_freedom = parameter(freedom, constraints.positive)
        self.initial_mean = parameter(torch.zeros(rank, **factory))
        self.initial_noise_scale = noise_parameter(
            initial_noise, rank, check_positive("initial_scale", initial_scale), **factory
        )
        # Under clipped_relu the bias is a unit's range: at zero the unit would be silent and stay so.
        clipped = self.activation.name == "clipped_relu"
        self.bias = parameter(uniform(1, units, **factory)[0] if clipped else torch.zeros(units, **factory))
        if self.num_inputs:
            self.input_weights = parameter(uniform(units, inputs, **factory))
        else:
            self.register_buffer("input_weights", torch.zeros(units, 0, **factory))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a network of the same form (its parameter values are its state)."""
        return {
            "units": self.units,
            "activation": self.activation,
            "inputs": self.num_inputs,
            "noise": self.noise_kind,
            "noise_freedom": 4.0 if self.heavy_tailed else None,
            "input_filter": self.input_filter,
            "decay": [0.5] * self.rank if self.decay_per_latent else 0.5,
            "initial_noise": self.initial_noise_kind,
        }

    @abstractmethod
    def _left(self) -> Tensor | None:
        """Return M, or None for the identity."""

    @effectful
    def transition(self) -> Transition:
        """Return the transition density with the present parameter values, each read once."""
        return Transition(
            **vars(self._network()),
            noise=self._noise(),
            initial_mean=self.initial_mean,
            initial_noise=noise_of(self.initial_noise_kind, self.rank, self.initial_noise_scale),
        )

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

    def _noise(self) -> GaussianNoise:
        freedom = self.noise_freedom if self.heavy_tailed else None
        return noise_of(self.noise_kind, self.rank, self.noise_scale, freedom)

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, from latents `... x rank` and effective inputs `... x inputs`."""
        return next_mean(self._network(), z, u)

    @effectful
    def trajectory(self, num_steps: int, u: Tensor | None = None) -> Trajectory:
        """Return the distribution of whole latent trajectories, for `pyro.sample("z", ...)`.

        Args:
            num_steps: number of time bins.
            u: raw inputs, `... x trials x time x inputs`.

        Example::

            >>> import pyro_lowrank as plr
            >>> plr.LowRankRNN(rank=2, units=20).trajectory(50).event_shape
            torch.Size([50, 2])
        """
        self.check_inputs(u if u is None or u.dim() < 4 else u.flatten(0, -3), num_steps=num_steps)
        return Trajectory(self.transition(), check_positive_int("num_steps", num_steps), u)

    @effectful
    def fixed_points(
        self,
        u: Any = None,
        *,
        method: str = "certified",
        max_boxes: int | None = None,
        max_seconds: float | None = None,
        threads: int | None = None,
        num_starts: int = 10_000,
        constrained: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FixedPoints:
        """Return every fixed point of the noiseless dynamics under a constant input, with stability and a certificate.

        Args:
            u: the input, `inputs`, held for ever; zero if None.
            method: `"certified"`, `"enumerate"` or `"search"`; it and the others as of
                `pyro_lowrank.fixed_points.find_fixed_points`.
            max_boxes: most boxes, regions or starts.
            max_seconds: most time.
            threads: of the certified method.
            num_starts: of a search.
            constrained: whether a search starts only in regions that exist.
            seed: of a search.
            progress: called now and then.

        Raises:
            ValueError: if the input does not fit, the parameters have batch dims, or the activation's shape is unknown.

        Example::

            >>> import pyro_lowrank as plr
            >>> dynamics = plr.LowRankRNN(rank=2, units=20, activation="tanh")
            >>> dynamics.fixed_points(method="search", num_starts=10).points.shape[1]
            2
        """
        from pyro_lowrank.fixed_points.find import find_fixed_points

        return find_fixed_points(
            **analyzer_arguments(self.transition(), u),
            method=method,
            max_boxes=max_boxes,
            max_seconds=max_seconds,
            threads=threads,
            num_starts=num_starts,
            constrained=constrained,
            seed=seed,
            progress=progress,
        )

    @property
    def noise_covariance(self) -> Tensor:
        """The covariance of the transition noise, `rank x rank`."""
        return self._noise().covariance

    @property
    def initial_covariance(self) -> Tensor:
        """The covariance of the first latent, `rank x rank`."""
        return noise_of(self.initial_noise_kind, self.rank, self.initial_noise_scale).covariance

    def check_inputs(self, u: Tensor | None, *, num_steps: int | None = None, num_trials: int | None = None) -> None:
        """Raise unless the inputs are what the network was built for and as long as the data."""
        if u is None:
            if self.num_inputs:
                raise ValueError(
                    f"The dynamics were built with inputs={self.num_inputs}, but no inputs came; pass `u`, "
                    "trials x time x inputs."
                )
            return
        if not self.num_inputs:
            raise ValueError("Inputs `u` came, but the dynamics were built with inputs=0; build them with inputs=...")
        check_sequence("u", u, last=self.num_inputs, last_name="inputs")
        check_no_infinities("u", u)
        if u.isnan().any():
            raise ValueError("`u` holds NaN: inputs cannot be missing; fill them in before the fit.")
        if num_steps is not None and u.shape[-2] != num_steps:
            raise ValueError(f"`u` must be as long as the data, {num_steps} time bins, got {u.shape[-2]}.")
        if num_trials is not None and u.shape[0] != num_trials:
            raise ValueError(f"`u` must have as many trials as the data, {num_trials}, got {u.shape[0]}.")
