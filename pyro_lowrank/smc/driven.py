"""Particles that remember what the latents drove: moved with the means of each feature's linear system, and smoothed.

Given a path of latents each feature is a linear Gaussian system, whose state is integrated out: a particle is a path
and the means of the states. That pair is a Markov chain, but its second part moves without noise, so that two particles
at one bin cannot exchange their pasts as latents alone can. Paths are drawn backwards all the same: what the later part
of a path, with the recording, says of an earlier particle is not its transition density alone, but also the likelihood
of the later bins as a function of the state, which is Gaussian and in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean
from pyro_lowrank.guides.base import Encoding, through
from pyro_lowrank.observations.driven import COVARIANCE, REMEMBERED, DrivenEmission
from pyro_lowrank.observations.linear_future import Weighing, backwards
from pyro_lowrank.observations.linear_memory import Law
from pyro_lowrank.smc.loop import State, take
from pyro_lowrank.smc.pair import Pair, Sequences
from pyro_lowrank.smc.plain import PlainKernel, Slice


@dataclass(frozen=True)
class DrivenSlice(Slice):
    """One time bin, with how it is taken in."""

    law: Law


class DrivenKernel(PlainKernel):
    """Moves and weighs particles that remember; arguments as of `PlainKernel`."""

    def __init__(self, pair: Pair, num_particles: int, *, mean: Mean | None = None) -> None:
        super().__init__(pair, num_particles, mean=mean)
        emission = pair.emission
        assert isinstance(emission, DrivenEmission)
        self.emission = emission

    def slices(self, data: Sequences, encoding: Encoding | None = None) -> list[Slice]:
        """Cut whole sequences into time bins."""
        laws = self.emission.memory.laws(data.seen)
        found = super().slices(data, encoding)
        return [DrivenSlice(s.bin, s.v_before, s.white, law) for s, law in zip(found, laws, strict=True)]

    def next_slice(self, y_t: Tensor, u_t: Tensor | None, memory: State, *, first: bool) -> tuple[Slice, State]:
        """Return the slice of one more time bin, and what to remember of the recording and its inputs."""
        found, remembered = super().next_slice(y_t, u_t, memory, first=first)
        covariance = memory.get(COVARIANCE, self.emission.memory.before_covariance)
        law = self.emission.memory.law(covariance, found.bin.seen.missing)
        return DrivenSlice(found.bin, found.v_before, found.white, law), remembered | {COVARIANCE: law.covariance}

    def init(self, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the first latents."""
        mean = self.pair.transition.first_mean(slice_t.bin.v)
        batch = torch.Size((self.num_particles, slice_t.bin.seen.y.shape[0]))
        return self._moved(self.emission.memory.beginning(batch), mean, slice_t, first=True)

    def step(self, state: State, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the next latents."""
        return self._moved(state[REMEMBERED], self.mean(state["z"], slice_t.v_before), slice_t, first=False)

    def _moved(self, past: Tensor, mean: Tensor, slice_t: Slice, *, first: bool) -> tuple[State, Tensor]:
        assert isinstance(slice_t, DrivenSlice)
        seen = self.emission.at(past, slice_t.law)
        noise = self.pair.transition.initial_noise if first else self.pair.transition.noise
        z, log_weights = through(self.pair.proposal, seen).propose(noise, mean, slice_t.white, slice_t.bin)
        return {"z": z, REMEMBERED: seen.after(z, slice_t.bin.v, slice_t.bin.seen.y)}, log_weights


def plain_kernel(pair: Pair, num_particles: int, *, mean: Mean | None = None) -> PlainKernel:
    """Return the kernel of a pair on tensor operations."""
    kernel = DrivenKernel if isinstance(pair.emission, DrivenEmission) else PlainKernel
    return kernel(pair, num_particles, mean=mean)


def check_forgets(emission: Any) -> None:
    """Raise if observations remember the latents, where only those of the latents of one bin are served.

    Raises:
        ValueError: if they do.
    """
    if isinstance(emission, DrivenEmission):
        raise ValueError(
            "A conditional filter (a `reference`, ParticleGibbs) pins the latents of one bin at a time, and "
            "observations that remember the latents (calcium, BOLD, coloured noise) depend on those before: use PMMH, "
            "or a filter without `reference`."
        )


class ToCome:
    """What is still to come along paths that are drawn backwards.

    Args:
        emission: what remembers.
        data: the recording and its inputs.
        before: covariance before its first bin; that of the beginning if None.

    References:
        Sarkka, Bunch and Godsill (2012), "A backward-simulation based Rao-Blackwellized particle smoother for
        conditionally linear Gaussian models", SYSID; Lindsten, Bunch, Sarkka, Schon and Godsill (2016), IEEE J. Sel.
        Top. Signal Process. 10:353.
    """

    def __init__(self, emission: DrivenEmission, data: Sequences, before: Tensor | None) -> None:
        self._emission, self._data = emission, data
        self._laws = emission.memory.laws(data.seen, before)
        self._says = backwards(emission.memory, data.seen)
        self._deviations = (data.seen.y - emission.memory.baseline).unbind(-2)
        self._linear: Tensor | None = None
        self._weighing: dict[tuple[int, int], Weighing] = {}

    def score(self, time: int, states: Sequence[State], path: Tensor) -> Callable[[slice], Tensor]:
        """Return the log likelihood of the bins after `time` given its particles, by draws.

        It is to be called for each bin in turn, from the last but one on.

        Args:
            time: of the particles.
            states: of the particles of all bins.
            path: index of the particles that were drawn of the bin after it, `draws x trials`.

        Returns:
            A function of which draws are wanted: `draws x trials x particles`.
        """
        later = time + 1
        z = take(states[later]["z"], path, 2)
        if self._linear is None:
            self._linear = z.new_zeros(*path.shape, *self._emission.memory.drive.shape)
        driven = self._emission.drive(z, self._data.v_at(later))
        linear = self._says[later].linear(self._linear, driven, self._deviations[later])
        self._linear = linear
        weighing, means = self._weighing_at(time), states[time][REMEMBERED]
        return lambda rows: weighing.log_likelihoods(linear[rows], means)

    def _weighing_at(self, time: int) -> Weighing:
        says, law = self._says[time + 1], self._laws[time]
        # Where nothing is missing most bins share what they say, and how they were taken in.
        key = (id(says), id(law))
        if key not in self._weighing:
            self._weighing[key] = Weighing.of(says.precision, law.covariance)
        return self._weighing[key]
