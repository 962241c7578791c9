"""The state-space model: latent dynamics seen through an observation model."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import check_positive_int, check_same_type, check_trackable
from pyro_lowrank.generators import RNG, drawn_from
from pyro_lowrank.handlers import check_plates, observe, surroundings, trials_plate
from pyro_lowrank.modules import Module, effectful, warn_of_shadowed
from pyro_lowrank.observations.base import AffineGaussian, Emission, Observation, mean_if_any
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.memory import Lags, Memory, RememberedBin, recording_of, roll
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.parameters import copy_module
from pyro_lowrank.shapes import time_in_front

ProgramState = MutableMapping[Any, Tensor]


class Simulation(NamedTuple):
    """A draw from a model.

    Attributes:
        z: latents, `trials x time x rank`.
        y: observations, `trials x time x features`.
        mean: of the observations given the latents, `trials x time x features`; None where there is none.
    """

    z: Tensor
    y: Tensor
    mean: Tensor | None


@dataclass(frozen=True)
class BoundModel:
    """A model with every parameter read once: what the filter's inner loop runs on."""

    transition: Transition
    emission: Emission
    affine_gaussian: AffineGaussian | None
    memory: Memory | None = None


class StateSpaceModel(Module):
    r"""A network's latent dynamics, seen through an observation model.

    .. math:: p(z_{1:T}, y_{1:T}) = p(z_{1:T} \mid u_{1:T}) \prod_t p(y_t \mid z_t, u_t)

    The same object is

    - a Pyro program, `model(y, u)`, with one site `"z"` (`trials x time x rank`) and one site `"y"`
      (`trials x time x features`) in a plate `"trials"`, for `SVI` with any ELBO, autoguides, `NUTS`, `Predictive`;
    - a model for particle filters, `model.init(state, y_t, u_t)` and `model.step(state, y_t, u_t)`, with sites
      `"z"` and `"y"` at each step, for `pyro_lowrank.SMCFilter`, `SMC_ELBO` and `pyro.infer.SMCFilter`.

    Args:
        dynamics: the network, or dynamics of your own (a subclass of `Dynamics`), with its noise.
        observation: the observation model, built in or a subclass of `Observation`.

    Raises:
        TypeError: if either is not one.
        ValueError: if the numbers of latents, units or inputs of the two do not fit.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = StateSpaceModel(plr.LowRankRNN(rank=3, units=100), plr.GaussianObservation(rank=3, features=64))
        >>> model.simulate(num_trials=10, num_steps=200).y.shape
        torch.Size([10, 200, 64])

    References:
        Pals et al. (2024), NeurIPS.
    """

    def __init__(self, dynamics: Dynamics, observation: Observation) -> None:
        super().__init__()
        if not isinstance(dynamics, Dynamics):
            raise TypeError(
                f"`dynamics` must be a LowRankRNN or FullRankRNN, got {type(dynamics).__name__}; dynamics of your own "
                "are a subclass of Dynamics that defines `mean`."
            )
        if not isinstance(observation, Observation):
            raise TypeError(f"`observation` must be an Observation, got {type(observation).__name__}.")
        observation.attach(dynamics)
        self.dynamics = dynamics
        self.observation = observation

    def check_data(self, y: Tensor, u: Tensor | None = None) -> None:
        """Raise, saying what was expected and how to mend it, unless the model can be run on this data."""
        self.observation.check_data(y)
        self.dynamics.check_inputs(u, num_steps=y.shape[-2], num_trials=y.shape[0])
        like = next(self.parameters(), None)
        for name, value in (("y", y), ("u", u)):
            if value is not None and like is not None:
                check_same_type(name, value, like)
            if value is not None and torch.is_grad_enabled():
                check_trackable(f"`{name}`", value)

    def _check_bin(self, y_t: Tensor | None, u_t: Tensor | None) -> None:
        if y_t is not None and y_t.shape[-1:] != (self.observation.features,):
            raise ValueError(
                f"A time bin `y_t` must have shape trials x {self.observation.features} features, got "
                f"{tuple(y_t.shape)}."
            )
        if (u_t is None) == (self.dynamics.num_inputs > 0):
            came = "none came" if u_t is None else f"`u_t` came, of shape {tuple(u_t.shape)}"
            raise ValueError(f"The dynamics were built with inputs={self.dynamics.num_inputs}, but {came}.")
        if u_t is None:
            return
        trials = u_t.shape[:-1] if y_t is None else y_t.shape[:-1]
        if u_t.shape != (*trials, self.dynamics.num_inputs):
            raise ValueError(
                f"The inputs of a time bin, `u_t`, must have shape trials x inputs, "
                f"{(*trials, self.dynamics.num_inputs)}, got {tuple(u_t.shape)}."
            )

    @effectful
    def bind(self) -> BoundModel:
        """Return the model with every parameter read once, as Pyro parameters."""
        transition = self.dynamics.transition()
        drift = transition.drift
        observation = self.observation
        return BoundModel(
            transition, observation.bind(drift), observation.affine_gaussian(drift), observation.bind_memory()
        )

    def forward(
        self,
        y: Tensor | None = None,
        u: Tensor | None = None,
        *,
        num_trials: int | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Run as a Pyro program: sample the latents "z", sample or observe "y"; return y.

        Args:
            y: recording, `trials x time x features`, NaN where missing; None to sample it. In further plates, at dims
                -2, -3, ..., it has their dims in front.
            u: inputs, `trials x time x inputs`, likewise.
            num_trials: number of trials to sample, where neither `y` nor `u` tells.
            num_steps: number of time bins to sample, where neither `y` nor `u` tells.
        """
        warn_of_shadowed(self)
        self._check_program(y, u)
        num_trials, num_steps = self._extent(y if y is not None else u, num_trials, num_steps)
        trajectory = self.dynamics.trajectory(num_steps, u)
        plate = trials_plate(num_trials)
        with plate:
            z = pyro.sample("z", trajectory)
        # Outside the plate: a parameter of the observation model that has a prior is the same for all trials.
        emission, memory = self.observation.bind(trajectory.transition.drift), self.observation.bind_memory()
        recording = _recording(emission, memory, z, trajectory.effective_inputs)
        with plate:
            return observe("y", recording, y)

    def _check_program(self, y: Tensor | None, u: Tensor | None) -> None:
        """Check data whose dims before the trials are further plates."""
        if y is None:
            return
        if not isinstance(y, Tensor) or not any(frame.dim < -1 for frame in surroundings().vectorised):
            self.check_data(y, u)
            return
        for name, value in (("y", y), ("u", u)):
            if isinstance(value, Tensor) and value.dim() > 3:
                check_plates(name, value.shape[:-2])
        if isinstance(u, Tensor) and max(y.dim(), u.dim()) > 3 and u.dim() >= 3:
            batch = torch.broadcast_shapes(y.shape[:-3], u.shape[:-3])
            y, u = (value.expand(*batch, *value.shape[-3:]) for value in (y, u))
        y = y.flatten(0, -3) if y.dim() > 3 else y
        self.check_data(y, u.flatten(0, -3) if isinstance(u, Tensor) and u.dim() > 3 else u)

    @staticmethod
    def _extent(like: Tensor | None, num_trials: int | None, num_steps: int | None) -> tuple[int | None, int]:
        if like is not None:
            # Under `torch.jit.trace` sizes are tensors.
            return int(like.shape[-3]), int(like.shape[-2])
        if num_steps is None:
            raise ValueError("Nothing tells how much to sample: pass `y`, `u`, or `num_steps` (and `num_trials`).")
        if num_trials is not None:
            check_positive_int("num_trials", num_trials)
        return num_trials, check_positive_int("num_steps", num_steps)

    @effectful
    def init(self, state: ProgramState, y_t: Tensor | None = None, u_t: Tensor | None = None) -> Tensor:
        """Sample the first latents and sample or observe the first time bin; the protocol of `pyro.infer.SMCFilter`.

        Args:
            state: where the latents are kept, under `"z"`.
            y_t: the time bin, `trials x features`, NaN where missing; None to sample it.
            u_t: its inputs, `trials x inputs`.
        """
        self._check_bin(y_t, u_t)
        bound = self.bind()
        v = None if u_t is None else bound.transition.drift.first_input(u_t)
        transition = bound.transition
        return self._sample(state, bound, transition.initial_noise.around(transition.first_mean(v)), v, y_t, u_t)

    @effectful
    def step(self, state: ProgramState, y_t: Tensor | None = None, u_t: Tensor | None = None) -> Tensor:
        """Move the latents on by one time bin and sample or observe it; arguments as of `init`."""
        self._check_bin(y_t, u_t)
        bound = self.bind()
        transition = bound.transition
        mean, v = mean_of_next(transition, state, u_t)
        return self._sample(state, bound, transition.noise.around(mean), v, y_t, u_t)

    def _sample(
        self,
        state: ProgramState,
        bound: BoundModel,
        latents: dist.TorchDistribution,
        v: Tensor | None,
        y_t: Tensor | None,
        u_t: Tensor | None,
    ) -> Tensor:
        plate = trials_plate(_num_trials(state, y_t, u_t))
        with plate:
            state["z"] = pyro.sample("z", latents)
        self._remember(state, v, u_t)
        if isinstance(bound.emission, DrivenEmission):
            seen_bin = bound.emission.recalled(state, state["z"].shape[:-1])
            with plate:
                y = observe("y", seen_bin.distribution(state["z"], v), y_t)
            state.update(bound.emission.remembered(state, seen_bin.past, v, Observed.of(y)))
            return y
        distribution = bound.emission.distribution(state["z"], v)
        if bound.memory is None:
            with plate:
                return observe("y", distribution, y_t)
        lags = recalled(bound.memory, state)
        with plate:
            y = observe("y", RememberedBin(distribution, bound.memory.center, bound.memory.outlook(lags)), y_t)
        seen = Observed.of(y)
        lags = bound.memory.advance(lags, seen.y, seen.missing)
        batch = state["z"].shape[:-1]
        state["lags"] = lags.mean.expand(*batch, *lags.mean.shape[-2:])
        state["lags_covariance"] = lags.covariance.expand(*batch, *lags.covariance.shape[-3:])
        return y

    def _remember(self, state: ProgramState, v: Tensor | None, u_t: Tensor | None) -> None:
        if v is None or u_t is None:
            return
        # Expanded to one copy per particle, as a filter's state has to be.
        batch = state["z"].shape[:-1]
        state["input"] = v.expand(*batch, -1)
        if self.dynamics.input_filter:
            state["raw_input"] = u_t.expand(*batch, -1)

    @torch.no_grad()
    @effectful
    def simulate(
        self,
        num_trials: int = 1,
        num_steps: int = 100,
        u: Tensor | None = None,
        *,
        generator: RNG = None,
    ) -> Simulation:
        """Draw latents and observations from the model, with both noises.

        Args:
            num_trials: number of trials; those of `u` if it is given.
            num_steps: number of time bins; those of `u` if it is given.
            u: inputs, `trials x time x inputs`.
            generator: of the random numbers; torch's global one if None.

        Returns:
            A named tuple `(z, y, mean)`.
        """
        with drawn_from(generator):
            return self._simulate(num_trials, num_steps, u)

    def _simulate(self, num_trials: int, num_steps: int, u: Tensor | None) -> Simulation:
        trials, num_steps = self._extent(u, num_trials, num_steps)
        trajectory = self.dynamics.trajectory(num_steps, u)
        z = trajectory.sample(() if trajectory.batch_shape or trials is None else (trials,))
        emission, memory = self.observation.bind(trajectory.transition.drift), self.observation.bind_memory()
        v = trajectory.effective_inputs
        recording = _recording(emission, memory, z, v)
        if isinstance(emission, DrivenEmission):
            return Simulation(z, recording.sample(), recording.mean)
        mean = mean_if_any(emission, *_in_front(z, v))
        if mean is not None:
            mean = mean.movedim(0, -2) if memory is None else roll(memory, mean.movedim(0, -2))
        return Simulation(z, recording.sample(), mean)

    def change_basis(self, matrix: Tensor) -> StateSpaceModel:
        """Return a copy with latents z' = `matrix` z and recordings of the same law; see `LowRankRNN.change_basis`."""
        if not isinstance(self.dynamics, LowRankRNN):
            raise TypeError(
                f"Only a LowRankRNN has latents that can change their basis, got {type(self.dynamics).__name__}."
            )
        changed = copy_module(self)
        changed.dynamics.apply_basis(matrix)
        changed.observation.apply_basis(matrix)
        return changed

    def orthogonalise(self, latents: Tensor | None = None) -> StateSpaceModel:
        """Return a copy whose left vectors are orthonormal and whose latents are uncorrelated, largest variance first.

        Args:
            latents: `... x rank`, whose covariance orders them (say, posterior means); simulated if None.
        """
        if not isinstance(self.dynamics, LowRankRNN):
            raise TypeError(f"Only a LowRankRNN can be orthogonalised, got {type(self.dynamics).__name__}.")
        return self.change_basis(self.dynamics.orthogonal_basis(latents))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a model of the same form."""
        return {"dynamics": self.dynamics, "observation": self.observation}


def mean_of_next(transition: Transition, state: ProgramState, u_t: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the mean of the next latents, `particles x trials x rank`, and the effective inputs then."""
    v_before = state.get("input")
    mean = next_mean(transition.drift, state["z"], v_before)
    if u_t is None or v_before is None:
        return mean, None
    return mean, transition.drift.next_input(v_before, state.get("raw_input", v_before), u_t)


def recalled(memory: Memory, state: ProgramState) -> Lags:
    """Return what is known of the last bins of each feature, `... x trials x features x order`."""
    if "lags" not in state:
        return memory.beginning(())
    return Lags(state["lags"], state["lags_covariance"])


def _recording(emission: Emission, memory: Memory | None, z: Tensor, v: Tensor | None) -> dist.TorchDistribution:
    if isinstance(emission, DrivenEmission):
        return emission.recording(z, v)
    return recording_of(emission.distribution(*_in_front(z, v)), memory)


def _in_front(z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
    batch_dims = z.dim() - 2
    return time_in_front(z, batch_dims), None if v is None else time_in_front(v, batch_dims)


def _num_trials(state: ProgramState, y_t: Tensor | None, u_t: Tensor | None) -> int | None:
    for value in (y_t, u_t, state.get("z")):
        if value is not None:
            return value.shape[-2] if value.dim() > 1 else None
    return None
