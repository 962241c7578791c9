"""The compiled form of a pair: which functions the loops are handed, and the arrays that these read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.mean import CompiledMean
from pyro_lowrank.dynamics.compiled.network import number_of
from pyro_lowrank.dynamics.drift import OwnDrift
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Encoding
from pyro_lowrank.guides.forward import ForwardProposal
from pyro_lowrank.smc.compiled.lanes import WIDTH
from pyro_lowrank.smc.compiled.likelihoods.base import no_curver, no_features, no_weigher
from pyro_lowrank.smc.compiled.likelihoods.driven import DrivenLikelihood
from pyro_lowrank.smc.compiled.likelihoods.joint import AnyLikelihood, likelihood_of_emission
from pyro_lowrank.smc.compiled.proposals import affine, laplace  # noqa: F401 (they register themselves)
from pyro_lowrank.smc.compiled.proposals.base import compiled_form
from pyro_lowrank.smc.compiled.records import Draws, Features, Tables
from pyro_lowrank.smc.pair import Pair, Sequences

_log = logging.getLogger("pyro_lowrank")


class CompiledPair:
    """The compiled form of a pair.

    Args:
        pair: the model and guide, bound.
        with_inputs: whether inputs will come.

    Raises:
        NoCompiledForm: if it has none.
    """

    def __init__(self, pair: Pair, *, with_inputs: bool) -> None:
        self.pair, transition = pair, pair.transition
        own = isinstance(transition.drift, OwnDrift)
        self.mean = None if own else CompiledMean(transition.drift, with_inputs=with_inputs)
        self.dtype = number_of(transition.initial_mean)
        if transition.batch_shape:
            raise NoCompiledForm("parameters of the dynamics have batch dims")
        if isinstance(transition.noise, StudentTNoise):
            raise NoCompiledForm("Student-t transition noise has no compiled form")
        proposal, self.seeing = pair.proposal, pair.proposal
        if isinstance(proposal, ForwardProposal):
            # Where nothing is seen latents come from the transition; the likelihood is still that of the recording.
            self.seeing = proposal.seeing
        self.likelihood: AnyLikelihood | None = None
        self.proposal = compiled_form(self.seeing, transition, self._likelihood())
        looks = self.proposal.weighs_data or self.proposal.needs_curvature
        if looks and isinstance(proposal, ForwardProposal):
            # The likelihood would show it what is to be hidden.
            raise NoCompiledForm(f"ForwardPrediction of a {type(self.seeing).__name__} has no compiled form")
        if not self.proposal.weighs_data:
            self.likelihood = likelihood_of_emission(pair.emission)

    def _likelihood(self) -> AnyLikelihood | None:
        try:
            return likelihood_of_emission(self.pair.emission)
        except NoCompiledForm:
            return None

    @cached_property
    def functions(self) -> tuple[Any, Any, Any]:
        """What proposes, weighs and curves; compiled when first asked for, if no run before did."""
        with _told(self):
            propose = self.proposal.proposer(self.dtype)
            weigh, curve = no_weigher(self.dtype), no_curver(self.dtype)
            if self.likelihood is not None:
                weigh = self.likelihood.weigher(self.dtype)
                curve = self.likelihood.curver(self.dtype) if self.proposal.needs_curvature else curve
            return propose, weigh, curve

    def arrays(
        self, data: Sequences, *, first: bool = True, encoding: Encoding | None = None
    ) -> tuple[Tables, Features]:
        """Return what the proposal, whose encoding may be known, and the likelihood know of a recording."""
        proposal, seen = self.pair.proposal, data.seen
        if isinstance(proposal, ForwardProposal):
            seen = seen.hidden(proposal.unseen(seen))
        tables = self.proposal.tables(seen, data.v, first=first, encoding=encoding)
        if self.likelihood is None:
            return tables, no_features(data.seen.y)
        constant = tables.constant + array(self.likelihood.constant(data.seen))
        constant = constant if data.seen.log_volume is None else constant + array(data.seen.log_volume)
        return tables._replace(constant=constant), self.likelihood.features(
            data.seen, data.v, with_aims=self.proposal.needs_curvature
        )

    @property
    def remembers(self) -> DrivenLikelihood | None:
        """The likelihood where features remember the latents, so that particles carry more than these."""
        return self.likelihood if isinstance(self.likelihood, DrivenLikelihood) else None

    def num_rows(self, num_particles: int) -> int:
        """Return how much scratch a time bin needs."""
        own = 0 if self.likelihood is None else self.likelihood.num_rows()
        return (self.proposal.num_rows() + own) * max(WIDTH, num_particles)

    def draws(self, white: Tensor, recorded: Tensor, draw_positions: Callable[[], Tensor]) -> Draws:
        """Return random numbers, from standard normal ones `time x particles x trials x rank`.

        In the order of the plain loop, which resamples after the first time bin.
        """
        first, log_density = self.proposal.draw(white[:1], recorded[:1])
        positions = array(draw_positions())
        if log_density is None:
            trials = white.shape[2]
            return Draws(array(white.permute(2, 0, 3, 1)), np.zeros((trials, len(white), 0), self.dtype), positions)
        rest, log_densities = self.proposal.draw(white[1:], recorded[1:])
        assert log_densities is not None
        drawn, densities = torch.cat([first, rest]), torch.cat([log_density, log_densities])
        return Draws(array(drawn.permute(2, 0, 3, 1)), array(densities.permute(2, 0, 1)), positions)

    def inputs(self, data: Sequences) -> Any:
        """Return the effective inputs as the units see them, `trials x time x inputs`."""
        return array(data.seen.y.new_zeros(*data.shape, 0) if data.v is None else data.v)


@contextmanager
def _told(pair: CompiledPair) -> Iterator[None]:
    """Say in the log what is prepared and for how long, where that takes a while."""
    start = time.perf_counter()
    yield
    taken = time.perf_counter() - start
    if taken > 1:
        _log.info(
            "Compiled the loops of %s for %d latents in %.0f s; they are kept on disk.",
            type(pair.seeing).__name__,
            pair.pair.transition.rank,
            taken,
        )
