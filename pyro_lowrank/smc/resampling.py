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


class NoConditionalForm(ValueError):
    """A resampling scheme whose law, given that a certain particle survives, is not known."""


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

    def conditional(self, log_weights: Tensor, random: Tensor, pinned: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Return ancestors among which a pinned particle is, and where it went on to; None to keep all as they are.

        With r(a) the law of `ancestors` and W the weights, ancestors and place k are drawn by

        .. math:: P(a_{1:K}, k \mid i) = r(a_{1:K})\, [a_k = i] / (K W_i)

        which sums to one because a particle has K W descendants on average. So the place is random, too.

        Shapes: ancestors `particles x trials`, place `trials`.

        Args:
            log_weights: normalised, `particles x trials`.
            random: one step's numbers, from `draw`.
            pinned: the index of the particle that goes on, `trials`.

        Raises:
            NoConditionalForm: if the scheme does not define it; a ValueError.

        References:
            Andrieu, Doucet and Holenstein (2010), J. R. Stat. Soc. B 72:269; Chopin and Singh (2015), Bernoulli
            21:1855.
        """
        raise NoConditionalForm(
            f"{type(self).__name__} has no conditional form, which a filter with a reference path needs: define its "
            "method `conditional`, or pass resampler=SystematicResampling()."
        )


class PositionResampling(Resampler):
    """Base of the schemes whose descendants fall to places in [0, 1), which particles share by their weights."""

    @abstractmethod
    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        """Return where in [0, 1) the descendants fall, `trials x particles`, from one step's random numbers."""

    def through(self, position: Tensor, random: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """Return random numbers by which a descendant falls to a given position, and which descendant it is.

        Given that position, uniform in [0, 1), both have the law that they have where one of the descendants,
        picked at random, was found there.

        Args:
            position: of the descendant, `trials`.
            random: one step's numbers, from `draw`; what the position does not tell is taken from them.
            num_particles: number of particles.

        Raises:
            NoConditionalForm: if the scheme does not define it; a ValueError.
        """
        raise NoConditionalForm(
            f"{type(self).__name__} has no conditional form, which a filter with a reference path needs: define its "
            "method `through`, or pass resampler=SystematicResampling()."
        )

    def conditional(self, log_weights: Tensor, random: Tensor, pinned: Tensor) -> tuple[Tensor, Tensor] | None:
        """Let one descendant fall to a place drawn evenly from the pinned particle's share, the others as they must."""
        upper = self._cumulative(log_weights)
        lower = torch.cat([torch.zeros_like(upper[..., :1]), upper[..., :-1]], -1)
        index = pinned.unsqueeze(-1)
        low, high = (bound.gather(-1, index).squeeze(-1) for bound in (lower, upper))
        position = low + (high - low) * torch.rand_like(low)
        num_particles = log_weights.shape[0]
        random, place = self.through(position, random, num_particles)
        drawn = self.ancestors(log_weights, random)
        assert drawn is not None
        # It is there but for rounding, at the edges of its share.
        return drawn.scatter(0, place.unsqueeze(0), pinned.unsqueeze(0)), place

    @staticmethod
    def _cumulative(log_weights: Tensor) -> Tensor:
        cumulative = log_weights.detach().exp().movedim(0, -1).cumsum(-1)
        # Rounding leaves the sum off 1: without this the last particle gains or loses.
        return cumulative / cumulative[..., -1:]

    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor | None:
        """Return the particle that owns each place."""
        num_particles = log_weights.shape[0]
        cumulative = self._cumulative(log_weights)
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

    def through(self, position: Tensor, random: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """Return the number that one position tells, and whose it is."""
        within, place = _stratum(position, num_particles)
        return within.unsqueeze(0), place


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

    def through(self, position: Tensor, random: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """Return the numbers with that of the position's stratum set by it, and which stratum that is."""
        within, place = _stratum(position, num_particles)
        return random.scatter(0, place.unsqueeze(0), within.unsqueeze(0)), place


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

    def through(self, position: Tensor, random: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """Return the numbers with any one of them set to the position, and which one."""
        place = torch.randint(num_particles, position.shape, device=position.device)
        return random.scatter(0, place.unsqueeze(0), position.unsqueeze(0)), place


def _stratum(position: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
    """Return where in its stratum, of K equal ones, a position in [0, 1) lies, from 0 to 1, and which it is."""
    scaled = position * num_particles
    place = scaled.long().clamp(max=num_particles - 1)
    return scaled - place, place


class NoResampling(Resampler):
    """Every particle keeps its own path and its weight: importance sampling of whole trajectories."""

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw nothing."""
        return torch.empty(num_steps, 0, *batch, **factory)

    def ancestors(self, log_weights: Tensor, random: Tensor) -> None:
        """Return None: all particles stay as they are."""
        return None

    def conditional(self, log_weights: Tensor, random: Tensor, pinned: Tensor) -> None:
        """Return None: all particles stay as they are."""
        return None
