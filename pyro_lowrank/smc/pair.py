"""A model and a guide bound once, and the sequences they are run on: what the plain and the compiled loops share."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.base import Guide, Proposal
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.observations.base import AffineGaussian, Emission
from pyro_lowrank.observations.memory import Memory, Past, read
from pyro_lowrank.observations.observed import Observed


@dataclass(frozen=True)
class Pair:
    """A built-in model and guide at fixed parameter values: parameters are read once, then only tensors are touched.

    Attributes:
        transition: how the latents move.
        emission: how they are seen.
        affine_gaussian: the emission as an affine-Gaussian one, or None if it is none.
        proposal: how particles are proposed.
        learns: whether the guide has parameters of its own to train.
        memory: what features remember of their own past, or None.
    """

    transition: Transition
    emission: Emission
    affine_gaussian: AffineGaussian | None
    proposal: Proposal
    learns: bool
    memory: Memory | None = None

    @classmethod
    def of(cls, model: StateSpaceModel, guide: Guide, *, through_proposal: bool = True) -> Pair:
        """Bind a model and a guide.

        Args:
            model: the model.
            guide: its guide.
            through_proposal: whether gradients of the model's parameters pass through the proposal.
        """
        bound = model.bind()
        learns = any(parameter.requires_grad for parameter in guide.parameters())
        # A guide that learns nothing is run without gradients, or with those that pass through it.
        proposal = guide.bind(detached(bound) if learns and not through_proposal else bound)
        return cls(bound.transition, bound.emission, bound.affine_gaussian, proposal, learns, bound.memory)

    def read(self, y: Tensor, u: Tensor | None = None) -> Sequences:
        """Return whole sequences, `trials x time x ...`, as they are run on."""
        return Sequences.of(self, y, u)


def detached(value: Any) -> Any:
    """Return nested dataclasses with tensors that gradients do not pass through; modules are left as they are."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        return tuple(map(detached, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: detached(getattr(value, each.name)) for each in fields(value) if each.init})
    return value


@dataclass(frozen=True)
class Sequences:
    """A recording and its inputs.

    Attributes:
        seen: the recording, `trials x time x features`; its innovations where features remember their own past.
        v: effective inputs, `trials x time x inputs`, or None.
        u: raw inputs, likewise.
        past: the recording of features that remember, or None.
    """

    seen: Observed
    v: Tensor | None
    u: Tensor | None
    past: Past | None = None

    @classmethod
    def of(cls, model: Pair | BoundModel, y: Tensor, u: Tensor | None) -> Sequences:
        """Return a recording as a model sees it, and its inputs, `trials x time x ...`."""
        seen, past = read(model.memory, y)
        return cls(seen, None if u is None else model.transition.drift.effective_inputs(u), u, past)

    @property
    def recording(self) -> Observed:
        """The recording as it came."""
        return self.seen if self.past is None else self.past.recording

    @property
    def shape(self) -> torch.Size:
        """The numbers of trials and of time bins."""
        return self.seen.y.shape[:2]

    @cached_property
    def last(self) -> Tensor:
        """The last time bin of each trial in which anything was recorded, `trials`; -1 where there is none."""
        num_trials, num_steps = self.shape
        if self.seen.missing is None:
            return torch.full((num_trials,), num_steps - 1, device=self.seen.y.device)
        bins = torch.arange(num_steps, device=self.seen.y.device)
        return torch.where(self.seen.recorded, bins, -1).amax(-1)

    def v_at(self, time: int) -> Tensor | None:
        """Return the effective inputs of a time bin, `trials x inputs`."""
        return None if self.v is None else self.v[:, time]
