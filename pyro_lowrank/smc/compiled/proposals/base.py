"""What the compiled loops need of a proposal, and which proposals have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Encoding, Proposal
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.compiled.likelihoods.joint import AnyLikelihood
from pyro_lowrank.smc.compiled.records import Tables


class CompiledProposal(ABC):
    """A proposal for the loops, at fixed parameter values.

    Args:
        proposal: the proposal.
        transition: how the latents move.
        likelihood: of the observations; None if they have no compiled form.
    """

    weighs_data = False
    """Whether its weights hold the likelihood already."""

    needs_curvature = False
    """Whether it asks the likelihood for scores and curvature."""

    def __init__(self, proposal: Any, transition: Transition, likelihood: AnyLikelihood | None) -> None:
        self.proposal, self.transition, self.likelihood = proposal, transition, likelihood

    @abstractmethod
    def proposer(self, dtype: Any) -> Any:
        """Compile what writes the latents of a time bin and adds to their log weights, see `records.Signatures`."""

    @abstractmethod
    def tables(self, seen: Observed, v: Tensor | None, *, first: bool, encoding: Encoding | None = None) -> Tables:
        """Return what it knows of a recording.

        `first` tells whether that starts at the first time bin of a trial; `encoding` is the proposal's, if known.
        """

    def draw(self, white: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn standard normal numbers, `time x particles x trials x rank`, into the draws.

        Return their log densities, too, or None if it does not ask for them. `recorded` tells where there are data,
        `time x trials`.
        """
        return white, None

    def tails(self, recorded: Tensor) -> Tensor:
        r"""Return the log density of a draw e, if it asks for it, `trials x time x 3`: a, p and nu of

        .. math:: a - p \log(1 + e^2 / \nu), \quad \text{or, where } \nu = 0, \quad a - e^2 / 2

        `recorded` tells where there are data, `trials x time`.
        """
        return torch.zeros(*recorded.shape, 0, dtype=self.transition.initial_mean.dtype)

    def num_rows(self) -> int:
        """Return how many rows of scratch it needs, of `lanes.WIDTH` numbers or as many as there are particles."""
        return 2


_REGISTERED: dict[type, Callable[..., CompiledProposal]] = {}


def register(proposal: type) -> Callable[[type[CompiledProposal]], type[CompiledProposal]]:
    """Return a decorator of the compiled form of a type of proposals."""

    def decorate(form: type[CompiledProposal]) -> type[CompiledProposal]:
        _REGISTERED[proposal] = form
        return form

    return decorate


def compiled_form(proposal: Proposal, transition: Transition, likelihood: AnyLikelihood | None) -> CompiledProposal:
    """Return the compiled form of a proposal.

    Raises:
        NoCompiledForm: if it has none.
    """
    if type(proposal) not in _REGISTERED:
        raise NoCompiledForm(f"{type(proposal).__name__} has no compiled form")
    return _REGISTERED[type(proposal)](proposal, transition, likelihood)


def first_or_rest(seen: Observed, *, first: bool) -> Tensor:
    """Return 0 in the first time bins of trials and 1 in the others, `trials x time`."""
    time = torch.arange(seen.y.shape[1]) + (0 if first else 1)
    return (time > 0).long().expand(seen.y.shape[:2])
