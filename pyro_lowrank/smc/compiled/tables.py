"""Every built-in proposal in one form, for the compiled loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.bootstrap import BootstrapProposal
from pyro_lowrank.guides.optimal import OptimalProposal


@dataclass(frozen=True)
class Tables:
    r"""How latents are proposed and weighed, at every time bin.

    With m the mean of the transition, r the `reference` and :math:`\delta = m - r`:

    .. math::

        z &= m + g - G \delta + S \varepsilon, \qquad \varepsilon \sim N(0, I) \\
        \log w &= \mathrm{const} + c^T \delta - \tfrac{1}{2} \delta^T A \delta \quad (+ \log p(y \mid z))

    Attributes:
        reference: r, `trials x time x rank`.
        shift: g, `trials x time x rank`.
        linear: c, `trials x time x rank`.
        constant: `trials x time`.
        gain: G, `trials x time x rank x rank`.
        scale: S, lower triangular, `trials x time x rank x rank`.
        curvature: A, symmetric, `trials x time x rank x rank`.
        needs_likelihood: whether the likelihood is still to be added.
    """

    reference: Tensor
    shift: Tensor
    linear: Tensor
    constant: Tensor
    gain: Tensor
    scale: Tensor
    curvature: Tensor
    needs_likelihood: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, the `trials x time x rank x rank` ones last."""
        return self.reference, self.shift, self.linear, self.constant, self.gain, self.scale, self.curvature

    def with_constant(self, constant: Tensor) -> Tables:
        """Return the tables with another term, `trials x time`, that does not depend on the latents."""
        return replace(self, constant=self.constant + constant)


def first_and_rest(transition: Transition, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return covariance and Cholesky factor of the noise into each time bin, `time x rank x rank`."""

    def stack(first: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([first.unsqueeze(0), rest.expand(num_steps - 1, *rest.shape)])

    initial, noise = transition.initial_noise, transition.noise
    return stack(initial.covariance, noise.covariance), stack(initial.scale_tril, noise.scale_tril)


@singledispatch
def tables_of(proposal: Any, transition: Transition, y: Tensor, v: Tensor | None) -> Tables | None:
    """Return the tables of a proposal for recordings `trials x time x features`, or None where there are none."""
    return None


@tables_of.register
def _optimal(proposal: OptimalProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables:
    encoding = proposal.encode(y, v, first=True)
    linear, rank = encoding["linear"], transition.rank
    curvature, scale = (encoding[name].unflatten(-1, (rank, rank)) for name in ("curvature", "scale_tril"))
    covariance, _ = first_and_rest(transition, y.shape[-2])
    trials = y.shape[0]
    return Tables(
        reference=encoding["reference"],
        shift=(linear.unsqueeze(-2) * covariance).sum(-1),
        linear=linear,
        constant=encoding["constant"].squeeze(-1).expand(linear.shape[:-1]),
        # A product of small matrices, without the overhead of a batched one.
        gain=(covariance.unsqueeze(-1) * curvature.expand(trials, *covariance.shape).unsqueeze(-3)).sum(-2),
        scale=scale.expand(trials, *covariance.shape),
        curvature=curvature.expand(trials, *covariance.shape),
        needs_likelihood=False,
    )


@tables_of.register
def _bootstrap(proposal: BootstrapProposal, transition: Transition, y: Tensor, v: Tensor | None) -> Tables:
    _, factor = first_and_rest(transition, y.shape[-2])
    batch, rank = y.shape[:-1], transition.rank
    nothing = torch.zeros((), dtype=factor.dtype)
    vectors, matrices = nothing.expand(*batch, rank), nothing.expand(*batch, rank, rank)
    return Tables(
        reference=vectors,
        shift=vectors,
        linear=vectors,
        constant=nothing.expand(batch),
        gain=matrices,
        scale=factor.expand(*batch, rank, rank),
        curvature=matrices,
        needs_likelihood=True,
    )
