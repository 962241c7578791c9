"""Resampling schemes: which particles go on, vectorised over trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = dict[Any, Tensor]


class Resampled(NamedTuple):
    """The particles that go on.

    Attributes:
        ancestors: of each particle, `particles x trials`.
        log_weights: that they carry, normalised, `particles x trials`; equal ones if None.
        state: tensors `particles x trials x ...` that they go on with; those of their ancestors if None.
    """

    ancestors: Tensor
    log_weights: Tensor | None = None
    state: State | None = None


class Resampler(ABC):
    """Draws ancestors so that particle k has on average K W_k descendants.

    A scheme of your own says how many random numbers it needs, `draw`, and what it makes of them, `ancestors`, on
    tensors; all the rest of a time bin is compiled as ever. One whose descendants fall to places in [0, 1) is a
    `PositionResampling`, and compiled whole. One that weighs its descendants, or moves them (as optimal transport
    does), overrides `resample`.

    Example::

        >>> class Killing(Resampler):
        ...     '''Particles go on with chance W / max W; draws from all replace the others.'''
        ...     independent = False
        ...     def draw(self, num_steps, num_particles, batch, **factory):
        ...         return torch.rand(num_steps, 2 * num_particles, *batch, **factory)
        ...     def ancestors(self, log_weights, random):
        ...         lives, uniform = random.chunk(2)
        ...         own = torch.arange(len(log_weights)).reshape(-1, *(1,) * (log_weights.dim() - 1))
        ...         drawn = MultinomialResampling().ancestors(log_weights, uniform)
        ...         return torch.where(lives < (log_weights - log_weights.amax(0)).exp(), own, drawn)
        >>> half = torch.tensor([[0.5], [0.5], [0.0], [0.0]]).log()
        >>> Killing().ancestors(half, Killing().draw(1, 4, torch.Size([1]))[0])[:2].flatten()
        tensor([0, 1])
    """

    independent = False
    """Whether the ancestors are drawn independently of each other."""

    @abstractmethod
    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw the random numbers of `num_steps` resamplings, `time x some x trials`."""

    @abstractmethod
    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor | None:
        """Return the ancestor of each particle, `particles x trials`, or None to keep all as they are.

        Args:
            log_weights: normalised, `particles x trials`.
            random: one step's numbers, from `draw`.
        """

    def resample(self, log_weights: Tensor, random: Tensor, state: State) -> Resampled | None:
        """Return the particles that go on, or None to keep all as they are.

        Args:
            log_weights: normalised, `particles x trials`.
            random: one step's numbers, from `draw`.
            state: of the particles, tensors `particles x trials x ...`.
        """
        drawn = self.ancestors(log_weights, random)
        return None if drawn is None else Resampled(drawn)


class PositionResampling(Resampler):
    """Base of the schemes whose descendants fall to places in [0, 1), which particles share by their weights."""

    @abstractmethod
    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        """Return where in [0, 1) the descendants fall, `trials x particles`, from one step's random numbers."""

    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor | None:
        """Return the particle that owns each place."""
        num_particles = log_weights.shape[0]
        cumulative = log_weights.detach().exp().movedim(0, -1).cumsum(-1)
        # Rounding leaves the sum off 1: without this the last particle gains or loses.
        cumulative = cumulative / cumulative[..., -1:]
        found = torch.searchsorted(cumulative, self.positions(random, num_particles).contiguous(), right=True)
        # Weights that are NaN (a trial whose particles are all dead) must not index out of range.
        return found.clamp(max=num_particles - 1).movedim(-1, 0)


class SystematicResampling(PositionResampling):
    """One uniform number per trial, then equal steps: the fewest random numbers, the least variance in practice.

    Example::

        >>> half = torch.tensor([[0.5], [0.5], [0.0], [0.0]]).log()
        >>> SystematicResampling().ancestors(half, torch.tensor([[0.3]])).flatten()
        tensor([0, 0, 1, 1])

    References:
        Kitagawa (1996), J. Comput. Graph. Stat. 5:1; Douc and Cappe (2005), ISPA.
    """

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw one number per step and trial."""
        return torch.rand(num_steps, 1, *batch, **factory)

    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        """Return equally spaced positions."""
        steps = torch.arange(num_particles, dtype=random.dtype, device=random.device)
        return (random.movedim(0, -1) + steps) / num_particles


class StratifiedResampling(PositionResampling):
    """One uniform number in each of K equal strata.

    References:
        Kitagawa (1996), J. Comput. Graph. Stat. 5:1.
    """

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw one number per step, particle and trial."""
        return torch.rand(num_steps, num_particles, *batch, **factory)

    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        """Return one position in each stratum."""
        steps = torch.arange(num_particles, dtype=random.dtype, device=random.device)
        return (random.movedim(0, -1) + steps) / num_particles


class MultinomialResampling(PositionResampling):
    """Independent ancestors: the most variance; what the score-function gradient needs.

    References:
        Gordon, Salmond and Smith (1993), IEE Proceedings F 140:107.
    """

    independent = True

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw one number per step, particle and trial."""
        return torch.rand(num_steps, num_particles, *batch, **factory)

    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        """Return independent positions."""
        return random.movedim(0, -1)


class NoResampling(Resampler):
    """Every particle keeps its own path and its weight: importance sampling of whole trajectories."""

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw nothing."""
        return torch.empty(num_steps, 0, *batch, **factory)

    def ancestors(self, log_weights: Tensor, random: Tensor) -> None:
        """Return None: all particles stay as they are."""
        return None
