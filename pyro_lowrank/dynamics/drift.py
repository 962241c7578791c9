"""How latents move without noise, at fixed parameter values: what the rest of the library asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.dynamics.recurrence import Workspace
from pyro_lowrank.shapes import expand_together


class Drift(ABC):
    r"""The deterministic part of the dynamics, :math:`E[z_t \mid z_{t-1}, v_{t-1}]`, with every parameter read once."""

    rank: int
    num_inputs: int

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """The batch dims of the parameters: none, unless some of them are sampled."""

    @abstractmethod
    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, `... x rank`, from latents and effective inputs `... x inputs`."""

    def mean_of_particles(self, z: Tensor, v: Tensor | None, workspace: Workspace) -> Tensor:
        """Return `mean` for latents `particles x trials x rank`, inputs `trials x inputs`, for first derivatives."""
        return self.mean(z, v)

    def start(self, v: Tensor | None) -> Tensor | None:
        """Return what the first input adds to the first latent, `... x rank`, or None for nothing."""
        return None

    def first_input(self, u: Tensor) -> Tensor:
        """Return the effective input of the first time bin."""
        return u

    def next_input(self, v: Tensor, u_before: Tensor, u: Tensor) -> Tensor:
        """Return the effective input of a time bin from that of the bin before, the raw input then and now."""
        return u

    def effective_inputs(self, u: Tensor) -> Tensor:
        """Return the inputs as the dynamics see them, `... x time x inputs`, from raw ones of the same shape."""
        return u


@dataclass(frozen=True)
class OwnDrift(Drift):
    """A function of the user's own.

    Args:
        function: of latents and inputs with the same leading dims, or None where there are none.
        rank: number of latents.
        num_inputs: number of input channels.
        like: a tensor of the dtype and device that the function takes.
    """

    function: Callable[[Tensor, Tensor | None], Tensor]
    rank: int
    num_inputs: int
    like: Tensor

    @cached_property
    def batch_shape(self) -> torch.Size:
        """The leading dims that the function gives to a single latent."""
        v = self.like.new_zeros(self.num_inputs) if self.num_inputs else None
        with torch.no_grad():
            return self.mean(self.like.new_zeros(self.rank), v).shape[:-1]

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, `... x rank`."""
        if v is not None:
            z, v = expand_together(z, v)
        found = self.function(z, v)
        if not isinstance(found, Tensor) or found.shape[-1:] != (self.rank,) or found.dim() < z.dim():
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"`mean` must return the next latents, of the shape of those that it is given, {tuple(z.shape)}, got "
                f"{came}."
            )
        return found
