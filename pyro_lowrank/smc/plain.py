"""Moving and weighing particles of a built-in model under a built-in guide, with plain tensor operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean
from pyro_lowrank.dynamics.recurrence import Workspace
from pyro_lowrank.guides.base import Bin, Encoding, LooksBack
from pyro_lowrank.models.state_space import recalled
from pyro_lowrank.observations.memory import Memory, innovations
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.draws import drawn
from pyro_lowrank.smc.loop import State
from pyro_lowrank.smc.pair import Pair, Sequences


class Propose(Protocol):
    """Proposes and weighs one time bin."""

    def __call__(self, mean: Tensor, white: Tensor, bin_t: Bin, *, first: bool) -> tuple[Tensor, Tensor]:
        """Return latents and log weights from the means of the transition; `first` in the first bin of trials."""


@dataclass(frozen=True)
class Slice:
    """One time bin: what the guide sees, the inputs before it, and the random numbers used there."""

    bin: Bin
    v_before: Tensor | None
    white: Tensor


class PlainKernel:
    """Moves and weighs particles without Pyro's effects.

    Args:
        pair: the model and guide, bound.
        num_particles: number of particles.
        mean: of the next latents, `particles x trials x rank`, from latents and inputs `trials x inputs`; that of the
            transition if None.
        propose: latents and log weights of a time bin; that of the proposal if None.
    """

    batch_dims = 2

    def __init__(
        self, pair: Pair, num_particles: int, *, mean: Mean | None = None, propose: Propose | None = None
    ) -> None:
        self.pair, self.num_particles = pair, num_particles
        by_tensors = partial(pair.transition.drift.mean_of_particles, workspace=Workspace())
        self.mean: Mean = by_tensors if mean is None else mean
        self.propose: Propose = self._by_tensors if propose is None else propose

    def _by_tensors(self, mean: Tensor, white: Tensor, bin_t: Bin, *, first: bool) -> tuple[Tensor, Tensor]:
        noise = self.pair.transition.initial_noise if first else self.pair.transition.noise
        return self.pair.proposal.propose(noise, mean, white, bin_t)

    def draw_white(self, num_steps: int, num_trials: int) -> Tensor:
        """Draw the standard normal numbers of a run, `time x particles x trials x rank`."""
        like = self.pair.transition.initial_mean
        particles, rank = self.num_particles, self.pair.transition.rank

        def draw(trials: int) -> Tensor:
            return torch.randn(num_steps, particles, trials, rank, dtype=like.dtype, device=like.device)

        return drawn(draw, num_trials, 2)

    def slices(self, data: Sequences, encoding: Encoding | None = None) -> list[Slice]:
        """Cut whole sequences, whose encoding by the proposal may be known, into time bins."""
        if encoding is None:
            encoding = self.pair.proposal.encode(data.seen, data.v, first=True)
        return self._slices(data.seen, data.v, None, encoding)

    def next_slice(self, y_t: Tensor, u_t: Tensor | None, memory: State, *, first: bool) -> tuple[Slice, State]:
        """Return the slice of one more time bin, `trials x ...`, and what to remember of the recording and its inputs.

        Args:
            y_t: the time bin.
            u_t: its inputs.
            memory: what to remember of the time bins before; empty for the first.
            first: whether it is the first of a trial.
        """
        transition, proposal = self.pair.transition, self.pair.proposal
        v: Tensor | None = None
        remembered: State = {}
        if u_t is not None:
            v_before = memory.get("input")
            if v_before is None:
                v = transition.drift.first_input(u_t)
            else:
                v = transition.drift.next_input(v_before, memory["raw_input"], u_t)
            remembered = {"input": v, "raw_input": u_t}
        sequence = None if v is None else v.unsqueeze(-2)
        seen, lags = _innovations(self.pair.memory, Observed.of(y_t), memory)
        now = seen.as_sequence()
        y = now.with_gaps
        if isinstance(proposal, LooksBack):
            lookback = proposal.online_lookback()
            recording = torch.cat([memory["recording"], y], -2) if "recording" in memory else y
            last = proposal.encode_last(Observed.of(recording), first=first)
            encoding = {name: value.unsqueeze(-2) for name, value in last.items()}
            if lookback:
                remembered["recording"] = recording[..., -lookback:, :]
        else:
            encoding = proposal.encode(now, sequence, first=first)
        (slice_t,) = self._slices(now, sequence, memory.get("input"), encoding)
        return slice_t, remembered | lags

    def _slices(self, seen: Observed, v: Tensor | None, v_before: Tensor | None, encoding: Encoding) -> list[Slice]:
        bins = seen.bins()
        # `unbind` once: indexing time bin by time bin costs a backward pass as long as the data for each of them.
        encodings = {name: value.unbind(-2) for name, value in encoding.items()}
        inputs: tuple[Tensor | None, ...] = (None,) * len(bins) if v is None else v.unbind(-2)
        white = self.draw_white(len(bins), seen.y.shape[0])
        return [
            Slice(
                Bin(seen_t, inputs[t], {name: value[t] for name, value in encodings.items()}),
                inputs[t - 1] if t else v_before,
                white_t,
            )
            for t, (seen_t, white_t) in enumerate(zip(bins, white.unbind(0), strict=True))
        ]

    def init(self, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the first latents."""
        mean = self.pair.transition.first_mean(slice_t.bin.v)
        z, log_weights = self.propose(mean, slice_t.white, slice_t.bin, first=True)
        return {"z": z}, log_weights

    def step(self, state: State, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the next latents."""
        mean = self.mean(state["z"], slice_t.v_before)
        z, log_weights = self.propose(mean, slice_t.white, slice_t.bin, first=False)
        return {"z": z}, log_weights


def _innovations(memory: Memory | None, seen: Observed, state: State) -> tuple[Observed, State]:
    """Return the innovations of a time bin, `trials x features`, and what to remember of it."""
    if memory is None:
        return seen, {}
    lags = recalled(memory, state)
    after = memory.advance(lags, seen.y, seen.missing)
    return innovations(memory, memory.outlook(lags), seen), {"lags": after.mean, "lags_covariance": after.covariance}
