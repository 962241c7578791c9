"""Moving and weighing particles of a built-in model under a built-in guide, with plain tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean
from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.dynamics.recurrence import Workspace
from pyro_lowrank.guides.base import Bin, Encoding, Guide, LooksBack
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.loop import State

Propose = Callable[[GaussianNoise, Tensor, Tensor, Bin], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Slice:
    """One time bin: what the guide sees, the inputs before it, and the random numbers used there."""

    bin: Bin
    v_before: Tensor | None
    white: Tensor


class BuiltInKernel:
    """Moves and weighs particles without Pyro's effects: parameters are read once, then only tensors are touched.

    Args:
        model: a built-in model.
        guide: a built-in guide for it.
        num_particles: number of particles.

    Attributes:
        mean: of the next latents, `particles x trials x rank`, from latents and inputs `trials x inputs`.
        propose: that of the proposal.
    """

    batch_dims = 2

    def __init__(self, model: StateSpaceModel, guide: Guide, num_particles: int) -> None:
        bound = model.bind()
        self.transition, self.emission = bound.transition, bound.emission
        self.proposal = guide.bind(bound)
        self.num_particles = num_particles
        self.propose: Propose = self.proposal.propose
        self.mean: Mean = partial(self.transition.mean_of_particles, workspace=Workspace())

    def draw_white(self, num_steps: int, num_trials: int) -> Tensor:
        """Draw the standard normal numbers of a run, `time x particles x trials x rank`."""
        like = self.transition.initial_mean
        shape = (num_steps, self.num_particles, num_trials, self.transition.rank)
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def slices(self, y: Tensor, u: Tensor | None = None) -> list[Slice]:
        """Cut whole sequences, `trials x time x ...`, into time bins."""
        v = None if u is None else self.transition.effective_inputs(u)
        return self._slices(y, v, None, self.proposal.encode(y, v, first=True))

    def next_slice(self, y_t: Tensor, u_t: Tensor | None, memory: State, *, first: bool) -> tuple[Slice, State]:
        """Return the slice of one more time bin, `trials x ...`, and what to remember of the recording and its inputs.

        Args:
            y_t: the time bin.
            u_t: its inputs.
            memory: what to remember of the time bins before; empty for the first.
            first: whether it is the first of a trial.
        """
        v: Tensor | None = None
        remembered: State = {}
        if u_t is not None:
            v_before = memory.get("input")
            if v_before is None:
                v = self.transition.first_input(u_t)
            else:
                v = self.transition.next_input(v_before, memory["raw_input"], u_t)
            remembered = {"input": v, "raw_input": u_t}
        y, sequence = y_t.unsqueeze(-2), None if v is None else v.unsqueeze(-2)
        if isinstance(self.proposal, LooksBack):
            lookback = self.proposal.online_lookback()
            seen = torch.cat([memory["recording"], y], -2) if "recording" in memory else y
            last = self.proposal.encode_last(seen, first=first)
            encoding = {name: value.unsqueeze(-2) for name, value in last.items()}
            if lookback:
                remembered["recording"] = seen[..., -lookback:, :]
        else:
            encoding = self.proposal.encode(y, sequence, first=first)
        (slice_t,) = self._slices(y, sequence, memory.get("input"), encoding)
        return slice_t, remembered

    def _slices(self, y: Tensor, v: Tensor | None, v_before: Tensor | None, encoding: Encoding) -> list[Slice]:
        num_steps = y.shape[-2]
        # `unbind` once: indexing time bin by time bin costs a backward pass as long as the data for each of them.
        encodings = {name: value.unbind(-2) for name, value in encoding.items()}
        missing = y.isnan()
        filled = y
        missing_bins: tuple[Tensor | None, ...] = (None,) * num_steps
        if missing.any():
            filled, missing_bins = y.nan_to_num(nan=0.0), missing.unbind(-2)
        inputs: tuple[Tensor | None, ...] = (None,) * num_steps if v is None else v.unbind(-2)
        white = self.draw_white(num_steps, y.shape[0])
        return [
            Slice(
                Bin(y_t, missing_bins[t], inputs[t], {name: value[t] for name, value in encodings.items()}),
                inputs[t - 1] if t else v_before,
                white_t,
            )
            for t, (y_t, white_t) in enumerate(zip(filled.unbind(-2), white.unbind(0), strict=True))
        ]

    def init(self, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the first latents."""
        mean = self.transition.first_mean(slice_t.bin.v)
        z, log_weights = self.propose(self.transition.initial_noise, mean, slice_t.white, slice_t.bin)
        return {"z": z}, log_weights

    def step(self, state: State, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the next latents."""
        mean = self.mean(state["z"], slice_t.v_before)
        z, log_weights = self.propose(self.transition.noise, mean, slice_t.white, slice_t.bin)
        return {"z": z}, log_weights
