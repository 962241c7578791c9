"""The distribution of whole recordings of features that remember what drove them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.linear_memory import LinearMemory
from pyro_lowrank.observations.observed import Observed


class DrivenRecording(TorchDistribution):
    """Distribution over recordings of features whose linear systems are driven by given numbers.

    Shapes: batch `... x trials`, event `time x features`.

    Args:
        memory: the linear system of each feature.
        driven: what drives them, `... x trials x time x features`.
        missing: entries that are integrated out, of the value's shape; None for none.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, memory: LinearMemory, driven: Tensor, missing: Tensor | None = None) -> None:
        self.memory, self.driven, self.missing = memory, driven, missing
        super().__init__(driven.shape[:-2], driven.shape[-2:], validate_args=False)

    def leave_out(self, missing: Tensor, marginal: Any = None) -> DrivenRecording:
        """Return the distribution of the entries that are not missing; it has no parts to be asked."""
        return DrivenRecording(self.memory, self.driven, missing)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: DrivenRecording | None = None
    ) -> DrivenRecording:
        """Return the same distribution for a larger batch."""
        return DrivenRecording(self.memory, self.driven.expand(*batch_shape, *self.event_shape), self.missing)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x trials x time x features`."""
        return expect_on(self.memory, self.memory.beginning(self.batch_shape), self.driven)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, differentiable in the parameters."""
        memory = self.memory
        shape = torch.Size(sample_shape) + self.batch_shape
        state = memory.beginning(shape)
        state = state + colour(memory.before_covariance, torch.randn_like(state))
        return draw_on(memory, state, self.driven.expand(*shape, *self.event_shape))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, `sample_shape x ... x trials x time x features`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of recordings `... x time x features` in nats, `... x trials`."""
        missing = None if self.missing is None else self.missing.expand(value.shape)
        seen = Observed(value if missing is None else value.masked_fill(missing, 0.0), missing)
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        found = self.memory.log_densities(seen, self.driven.expand(*shape, *self.event_shape))
        return found.sum((-2, -1))


def expect_on(memory: LinearMemory, state: Tensor, driven: Tensor) -> Tensor:
    """Return what is expected of recordings after states `... x features x order`, `... x time x features`."""
    found = []
    for driven_t in driven.unbind(-2):
        state = memory.ahead(state, driven_t)
        found.append(memory.expected(state, driven_t))
    return torch.stack(found, -2)


def draw_on(memory: LinearMemory, state: Tensor, driven: Tensor) -> Tensor:
    """Draw recordings after states `... x features x order`, driven by `... x time x features`."""
    found = []
    for driven_t in driven.unbind(-2):
        state = memory.ahead(state, driven_t)
        state = state + colour(memory.noise, torch.randn_like(state))
        noise = memory.variance.sqrt() * torch.randn_like(state[..., 0])
        found.append(memory.expected(state, driven_t) + noise)
    return torch.stack(found, -2)


def colour(covariance: Tensor, white: Tensor) -> Tensor:
    """Return what standard normal numbers `... x order` are turned into, whatever the covariance's rank."""
    return (root(covariance) * white.unsqueeze(-2)).sum(-1)


def root(covariance: Tensor) -> Tensor:
    """Return L with L L^T the covariance, `... x order x order`, of any rank: columns without variance are zero."""
    order = covariance.shape[-1]
    rest, columns = covariance, []
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0)
    smallest = scale * (order * torch.finfo(covariance.dtype).eps)
    for place in range(order):
        pivot = rest[..., place, place]
        there = pivot > smallest[..., place]
        column = rest[..., place] / torch.where(there, pivot, 1.0).sqrt().unsqueeze(-1)
        column = torch.where(there.unsqueeze(-1), column, 0.0)
        columns.append(column)
        rest = rest - column.unsqueeze(-1) * column.unsqueeze(-2)
    return torch.stack(columns, -1)
