"""The distribution of one time bin of a recording of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class JointDistribution(TorchDistribution):
    r"""Independent distributions of groups of features, side by side: :math:`p(y) = \prod_i p_i(y_i)`.

    Shapes: batch `...`, that of the parts broadcast; event `features`, those of the parts in their order.

    Args:
        parts: distributions with one event dim each.

    Example::

        >>> import pyro.distributions as dist
        >>> parts = [dist.Poisson(torch.ones(5, 3)).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1)]
        >>> joint = JointDistribution(parts)
        >>> joint.batch_shape, joint.event_shape, joint.sample().shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5, 5]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, parts: Sequence[TorchDistribution]) -> None:
        self.parts = tuple(parts)
        self.sizes = [part.event_shape[0] for part in self.parts]
        self.has_rsample = all(part.has_rsample for part in self.parts)
        batch_shape = torch.broadcast_shapes(*(part.batch_shape for part in self.parts))
        super().__init__(batch_shape, torch.Size((sum(self.sizes),)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where its draws lie."""
        supports = [part.support for part in self.parts]
        entries = [s.base_constraint if isinstance(s, constraints.independent) else s for s in supports]
        return constraints.independent(constraints.cat(entries, -1, self.sizes), 1)

    def map(
        self, function: Callable[[TorchDistribution, Tensor], TorchDistribution], value: Tensor
    ) -> JointDistribution:
        """Return the parts, each changed by a function of it and of its features of `value`, `... x features`."""
        pieces = value.split(self.sizes, -1)
        return JointDistribution([function(part, piece) for part, piece in zip(self.parts, pieces, strict=True)])

    def leave_out(
        self, missing: Tensor, marginal: Callable[[TorchDistribution, Tensor], TorchDistribution]
    ) -> JointDistribution:
        """Return the distribution of the entries that are not missing; `marginal` leaves out those of a part."""
        return self.map(marginal, missing)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: JointDistribution | None = None
    ) -> JointDistribution:
        """Return the same distribution for a larger batch."""
        return JointDistribution([part.expand(torch.Size(batch_shape)) for part in self.parts])

    def _join(self, pieces: Sequence[Tensor]) -> Tensor:
        shape = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
        return torch.cat([piece.expand(*shape, -1) for piece in pieces], -1)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x features`."""
        return self._join([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """The variance, `... x features`."""
        return self._join([part.variance for part in self.parts])

    def _draw(self, sample_shape: torch.Size, method: str) -> Tensor:
        # Each part's own batch is expanded first: one draw shared by two batch entries would be no draw.
        parts = [part.expand(self.batch_shape) for part in self.parts]
        return self._join([getattr(part, method)(sample_shape) for part in parts])

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins, `sample_shape x ... x features`."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape), "sample")

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins, differentiable in the parameters."""
        return self._draw(torch.Size(sample_shape), "rsample")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of time bins `... x features` in nats, `...`."""
        pieces = zip(self.parts, value.split(self.sizes, -1), strict=True)
        log_probs = torch.broadcast_tensors(*(part.log_prob(piece) for part, piece in pieces))
        return torch.stack(log_probs).sum(0)
