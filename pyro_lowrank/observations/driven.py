"""Observations that remember the latents: fluorescence, blood flow, coloured noise; a Kalman filter per feature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from pyro_lowrank.modules import effectful
from pyro_lowrank.observations.base import ReadoutObservation
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.observations.driven_recording import DrivenRecording
from pyro_lowrank.observations.linear_memory import Law, LinearMemory, dot
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.shapes import time_in_front

REMEMBERED = "memory"
"""What the means of a linear system are called in a filter's state, `particles x trials x features x order`."""

COVARIANCE = "memory_covariance"
"""What their covariance is called, `... x features x order x order`."""


@dataclass(frozen=True)
class LinearDrive:
    """A feature is driven by a readout of the latents itself, which may be negative."""

    readout: AffineMap | RatesMap

    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return what features are driven by, `... x features`."""
        return self.readout(z, v)

    def with_slope(self, z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return that, and how it grows with the readout."""
        driven = self.readout(z, v)
        return driven, torch.ones_like(driven)


@dataclass(frozen=True)
class RateDrive:
    """A feature is driven by a rate that is not negative, the softplus of a readout of the latents."""

    readout: AffineMap | RatesMap

    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the rates, `... x features`."""
        return functional.softplus(self.readout(z, v))

    def with_slope(self, z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the rates, and how they grow with the readout."""
        read = self.readout(z, v)
        return functional.softplus(read), read.sigmoid()


@dataclass(frozen=True)
class DrivenBin:
    """How the latents of one time bin are seen by particles that remember.

    Attributes:
        drive: what latents drive features with.
        memory: the linear system.
        law: how the bin is taken in.
        past: what each particle remembers of the bin before, `particles x trials x features x order`.
    """

    drive: LinearDrive | RateDrive
    memory: LinearMemory
    law: Law
    past: Tensor

    @property
    def readout(self) -> AffineMap | RatesMap:
        """What is read from the latents."""
        return self.drive.readout

    def _offset(self) -> Tensor:
        """Return what is expected where nothing drives, `... x features`."""
        return self.memory.baseline + dot(self.memory.weight, self.past)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""
        return self._offset() + self.memory.slope * self.drive(z, v)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return dist.Normal(self.mean(z, v), self.law.variance.sqrt(), validate_args=False).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""
        driven, growth = self.drive.with_slope(z, v)
        slope = self.memory.slope * growth
        surprise = y - self._offset() - self.memory.slope * driven
        precision = 1 / self.law.variance
        return Curvature(slope * precision * surprise, slope.square() * precision, weight_of(self.readout))

    def after(self, z: Tensor, v: Tensor | None, y: Tensor) -> Tensor:
        """Return what is remembered of latents and observations, `... x features x order`."""
        return self.law.after(self.past, self.drive(z, v), y - self.memory.baseline)


@dataclass(frozen=True)
class DrivenEmission:
    """Observations that remember the latents, at fixed parameter values.

    Attributes:
        drive: what latents drive features with.
        memory: the linear system of each feature.
        private_noise: standard deviation of the noise that enters with the drive, `features`.
        response: what of the observation is the response to the drive, or the noise, in the states, `features x order`.
        trace_names: what the drive, with its noise, and the response are called.
    """

    drive: LinearDrive | RateDrive
    memory: LinearMemory
    private_noise: Tensor
    response: Tensor
    trace_names: tuple[str, str]

    @property
    def readout(self) -> AffineMap | RatesMap:
        """What is read from the latents."""
        return self.drive.readout

    @property
    def affine(self) -> bool:
        """Whether each bin is affine in its latents, given the past."""
        return isinstance(self.drive, LinearDrive) and isinstance(self.readout, AffineMap)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return what the observation settles at while the latents stay, `... x features`."""
        return self.memory.settled(self.drive(z, v))

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Raise: latents of one bin alone do not tell it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Observations that remember (calcium, BOLD, coloured noise) have no distribution given the latents of one "
            "time bin: it depends on those before. Ask the model: `model.simulate`, `posterior.replicate(z)`, "
            "`posterior.forecast(...)`."
        )

    def along(self, z: Tensor, v: Tensor | None) -> Tensor:
        """Return what paths `... x trials x time x rank` drive features with, `... x trials x time x features`."""
        batch_dims = z.dim() - 2
        v = None if v is None else time_in_front(v, batch_dims)
        return self.drive(time_in_front(z, batch_dims), v).movedim(0, -2)

    def recording(self, z: Tensor, v: Tensor | None) -> DrivenRecording:
        """Return the distribution of recordings given paths `... x trials x time x rank`."""
        return DrivenRecording(self.memory, self.along(z, v))

    def at(self, past: Tensor, law: Law) -> DrivenBin:
        """Return how the latents of one bin are seen by particles that remember."""
        return DrivenBin(self.drive, self.memory, law, past)

    def recalled(self, state: Mapping[Any, Tensor], batch_shape: torch.Size) -> DrivenBin:
        """Return how the latents of the next bin are seen, by what a filter's state remembers, or nothing yet."""
        memory = self.memory
        past = state[REMEMBERED] if REMEMBERED in state else memory.beginning(batch_shape)
        return self.at(past, memory.law(state.get(COVARIANCE, memory.before_covariance), None))

    def remembered(
        self, state: Mapping[Any, Tensor], past: Tensor, v: Tensor | None, seen: Observed
    ) -> dict[str, Tensor]:
        """Return what a filter's state is to remember of a bin, one copy per particle."""
        law = self.memory.law(state.get(COVARIANCE, self.memory.before_covariance), seen.missing)
        mean = self.at(past, law).after(state["z"], v, seen.y)
        return {REMEMBERED: mean, COVARIANCE: law.covariance.expand(*mean.shape[:-2], *law.covariance.shape[-3:])}

    def entries(self, seen: Observed, v: Tensor | None, z: Tensor) -> Tensor:
        """Return the log density of each entry given the path and the feature's own past, zero where missing.

        Args:
            seen: the recording, `trials x time x features`.
            v: effective inputs, or None.
            z: paths, `paths x trials x time x rank`.

        Returns:
            `paths x trials x time x features`, in nats.
        """
        return self.memory.log_densities(seen, self.along(z, v))


class DrivenObservation(ReadoutObservation):
    """Base of the observation models that remember the latents: a subclass says which linear system does."""

    in_units_of_data: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that have the units of the recording and any sign."""

    trace_names: ClassVar[tuple[str, str]] = ("drive", "response")
    """What is called in exports what drives a feature, and what follows of it."""

    @abstractmethod
    def bind_linear_memory(self) -> LinearMemory:
        """Return the linear system at the present parameter values."""

    def priors(self) -> dict[str, Any]:
        """Return distributions of parameters of which more is known than their sign, by name, each of its shape."""
        return {}

    @abstractmethod
    def noise_of_drive(self) -> Tensor:
        """Return the standard deviation of the noise that enters with what drives a feature, `features`."""

    def response_of(self, memory: LinearMemory) -> Tensor:
        """Return what of the observation follows from what drives it, in the states, `features x order`."""
        return memory.readout

    def _drive(self, readout: AffineMap | RatesMap) -> LinearDrive | RateDrive:
        return LinearDrive(readout)

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return what the observation settles at while latents `... x rank` and effective inputs stay."""
        return self.bind(self._units()).mean(z, u)

    @effectful
    def driven_by(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return what latents `... x rank` drive each feature with, `... x features`."""
        return self.bind(self._units()).drive(z, u)

    def bind(self, units: Any) -> DrivenEmission:
        """Return the observation model at the present parameter values."""
        drive = self._drive(self.readout.bind(units))
        memory = self.bind_linear_memory()
        return DrivenEmission(drive, memory, self.noise_of_drive(), self.response_of(memory), self.trace_names)
