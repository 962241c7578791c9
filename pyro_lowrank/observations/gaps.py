"""The distribution of values some of which are missing, as a site that keeps them missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

_AROUND_A_LOCATION = (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)


@runtime_checkable
class KnowsMarginals(Protocol):
    """A distribution of time bins that integrates single entries out itself."""

    def leave_out(self, missing: Tensor, marginal: Callable[[Any, Tensor], Any]) -> TorchDistribution:
        """Return the distribution of the entries that are not missing; `marginal` does that of its parts."""


def filled_in(distribution: Any, y: Tensor, missing: Tensor) -> Tensor:
    """Return values, `... x features`, with the likeliest one in place of a missing one, where that is known.

    Far from it the density may overflow, and so its gradient, also where it is left out.

    Args:
        distribution: of the values.
        y: the values, zero where missing.
        missing: where they are.

    Example::

        >>> normal = dist.Normal(torch.tensor([3.0, 4.0]), 1.0).to_event(1)
        >>> filled_in(normal, torch.zeros(2), torch.tensor([True, False]))
        tensor([3., 0.])
    """
    base = distribution.base_dist if isinstance(distribution, torch.distributions.Independent) else None
    return torch.where(missing, base.loc.detach(), y) if isinstance(base, _AROUND_A_LOCATION) else y


class WithGaps(TorchDistribution):
    """A distribution that integrates entries out, whose values have NaN there.

    Shapes: those of the distribution.

    Args:
        marginal: the distribution with those entries integrated out, whatever their value.
        missing: which entries they are, of the shape of the value.

    Example::

        >>> import pyro.distributions as dist
        >>> missing = torch.tensor([True, False])
        >>> gaps = WithGaps(dist.Normal(0.0, 1.0).expand([2]).mask(~missing), missing)
        >>> gaps.log_prob(torch.tensor([torch.nan, 0.0]))
        tensor([ 0.0000, -0.9189])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, marginal: TorchDistribution, missing: Tensor) -> None:
        self.marginal, self.missing = marginal, missing
        self.has_rsample = marginal.has_rsample
        super().__init__(marginal.batch_shape, marginal.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where values lie."""
        found = self.marginal.support
        assert found is not None
        return found

    @property
    def mean(self) -> Tensor:
        """The mean, of missing entries too."""
        return self.marginal.mean

    @property
    def variance(self) -> Tensor:
        """The variance, of missing entries too."""
        return self.marginal.variance

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: WithGaps | None = None
    ) -> WithGaps:
        """Return the same distribution for a larger batch."""
        return WithGaps(self.marginal.expand(torch.Size(batch_shape)), self.missing)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw values, of missing entries too."""
        return self.marginal.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw values, differentiable in the parameters."""
        return self.marginal.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the entries that are there."""
        # Zero lies in the support of every built-in observation model, and NaN would get into gradients.
        return self.marginal.log_prob(value.masked_fill(self.missing, 0.0))
