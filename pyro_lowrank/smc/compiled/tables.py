"""Built-in proposals in one form, for the compiled loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.bootstrap import BootstrapProposal
from pyro_lowrank.guides.encoder import EncoderProposal
from pyro_lowrank.guides.forward import ForwardProposal
from pyro_lowrank.guides.laplace import LaplaceProposal
from pyro_lowrank.guides.optimal import OptimalProposal
from pyro_lowrank.observations.poisson import PoissonEmission
from pyro_lowrank.observations.readout import AffineMap
from pyro_lowrank.smc.compiled import laplace, proposals
from pyro_lowrank.smc.compiled.products import EncoderProducts
from pyro_lowrank.smc.compiled.reduction import Bins, ReducedRecording

Draw = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tables:
    r"""How latents are proposed and weighed, at every time bin, in the letters of `proposals`.

    For the steps of a Laplace proposal, `gain` is B^T, `sets x rank x features`, and `scale` L, see `laplace`.

    Attributes:
        reference: r, `trials x time x rank`.
        shift: g, `trials x time x rank`.
        linear: c, `trials x time x rank`.
        constant: `trials x time`.
        gain: G, `sets x rank x rank`.
        scale: S, lower triangular, `sets x rank x rank`.
        metric: A, symmetric, `sets x rank x rank`.
        index: which of the sets each time bin uses, `trials x time`.
        weighing: which of the weights.
        needs_likelihood: whether the likelihood is still to be added.
        draw: turns standard normal numbers, `time x particles x trials x rank` from a time bin on, into the draws of
            the proposal and their log densities; None where they are the draws.
    """

    reference: Tensor
    shift: Tensor
    linear: Tensor
    constant: Tensor
    gain: Tensor
    scale: Tensor
    metric: Tensor
    index: Tensor
    weighing: tuple[int, ...]
    needs_likelihood: bool
    draw: Draw | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, those that time bins share last."""
        return self.reference, self.shift, self.linear, self.constant, self.gain, self.scale, self.metric

    def with_constant(self, constant: Tensor) -> Tables:
        """Return the tables with another term, `trials x time`, that does not depend on the latents."""
        return replace(self, constant=self.constant + constant)


@singledispatch
def tables_of(proposal: Any, transition: Transition, y: Tensor, v: Tensor | None) -> Tables | None:
    """Return the tables of a proposal for recordings `trials x time x features`, or None where there are none."""
    return None


def _first_or_rest(y: Tensor) -> Tensor:
    """Return 0 in the first time bins and 1 in the others, `trials x time`."""
    return (torch.arange(y.shape[1]) > 0).long().expand(y.shape[:2])


@tables_of.register
def _optimal(proposal: OptimalProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables | None:
    readout, bins = proposal.observation.readout, Bins.of(y)
    if readout.weight.dim() > 2:
        return None
    noises = transition.initial_noise.scale_tril, transition.noise.scale_tril
    reference, shift, linear, constant, gain, scale, metric = ReducedRecording.apply(
        bins, readout.weight, proposal.observation.variance, readout.offset(v), *noises
    )
    return Tables(
        reference=reference,
        shift=shift,
        linear=linear,
        constant=constant,
        gain=gain,
        scale=scale,
        metric=metric,
        index=torch.from_numpy(bins.index),
        weighing=proposals.QUADRATIC,
        needs_likelihood=False,
    )


@tables_of.register
def _bootstrap(proposal: BootstrapProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables:
    scale = torch.stack([transition.initial_noise.scale_tril, transition.noise.scale_tril])
    nothing = torch.zeros((), dtype=scale.dtype)
    vectors = nothing.expand(*y.shape[:-1], transition.rank)
    return Tables(
        reference=vectors,
        shift=vectors,
        linear=vectors,
        constant=nothing.expand(y.shape[:-1]),
        gain=nothing.expand(scale.shape),
        scale=scale,
        metric=nothing.expand(scale.shape),
        index=_first_or_rest(y),
        weighing=proposals.NO_WEIGHT,
        needs_likelihood=True,
    )


@tables_of.register
def _encoder(proposal: EncoderProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables:
    (mean, variance), recorded = proposal.read(y), ~y.isnan().all(-1)
    factors = transition.initial_noise.scale_tril, transition.noise.scale_tril
    gain, scale, metric, constant = EncoderProducts.apply(recorded, variance, *factors)
    nothing = torch.zeros((), dtype=scale.dtype).expand(mean.shape)
    return Tables(
        reference=mean,
        shift=nothing,
        linear=nothing,
        constant=constant,
        gain=gain.flatten(0, 1),
        scale=scale.flatten(0, 1),
        metric=metric.flatten(0, 1),
        index=torch.arange(recorded.numel()).reshape(recorded.shape),
        weighing=proposals.RATIO,
        needs_likelihood=True,
    )


@tables_of.register
def _laplace(proposal: LaplaceProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables | None:
    readout = getattr(proposal.emission, "readout", None)
    if not isinstance(proposal.emission, PoissonEmission) or not isinstance(readout, AffineMap):
        return None
    roots = torch.stack([transition.initial_noise.scale_tril, transition.noise.scale_tril])
    nothing = torch.zeros((), dtype=roots.dtype)
    vectors = nothing.expand(*y.shape[:-1], transition.rank)
    informed = ~y.isnan().all(-1).mT.unsqueeze(1)
    # Of the transition's density, which the loops leave out.
    normaliser = 0.5 * transition.rank * math.log(2 * math.pi)

    def draw(white: Tensor, first: int) -> tuple[Tensor, Tensor]:
        x, log_density = proposal.draw(transition.noise, white, informed[first : first + len(white)])
        return x, log_density + normaliser

    return Tables(
        reference=vectors,
        shift=vectors,
        linear=vectors,
        constant=nothing.expand(y.shape[:-1]),
        gain=(readout.weight @ roots).mT,
        scale=roots,
        metric=nothing.expand(roots.shape),
        index=_first_or_rest(y),
        weighing=laplace.weighing_of(proposal.num_iterations),
        needs_likelihood=True,
        draw=draw,
    )


@tables_of.register
def _forward(proposal: ForwardProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables | None:
    seen = y.masked_fill(proposal.unseen(y), torch.nan)
    tables = tables_of(proposal.seeing, transition, seen, v)
    # Where nothing was recorded latents come from the transition; the likelihood must still be that of the recording.
    return tables if tables is not None and tables.needs_likelihood else None
