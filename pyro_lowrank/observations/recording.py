"""The distribution of whole recordings, as one Pyro site, from that of their time bins."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class RecordingDistribution(TorchDistribution):
    """Distribution over recordings whose time bins are independent given the latents.

    Shapes: batch `... x trials`, event `time x features`.

    Args:
        bins: distribution of the time bins, with batch shape `time x ... x trials` and event shape `features`.

    Example::

        >>> import pyro.distributions as dist
        >>> recording = RecordingDistribution(dist.Normal(torch.zeros(50, 7, 3), 1.0).to_event(1))
        >>> recording.batch_shape, recording.event_shape
        (torch.Size([7]), torch.Size([50, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, bins: TorchDistribution) -> None:
        self.bins = bins
        self.has_rsample = bins.has_rsample
        super().__init__(bins.batch_shape[1:], bins.batch_shape[:1] + bins.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where recordings lie."""
        return constraints.independent(self.bins.support, 1)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x trials x time x features`."""
        return self.bins.mean.movedim(0, -2)

    @property
    def variance(self) -> Tensor:
        """The variance, `... x trials x time x features`."""
        return self.bins.variance.movedim(0, -2)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: RecordingDistribution | None = None
    ) -> TorchDistribution:
        """Return the same distribution for a larger batch."""
        expanded = self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape)
        assert isinstance(expanded, TorchDistribution)
        return expanded

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, `sample_shape x ... x trials x time x features`."""
        return self.bins.sample(torch.Size(sample_shape)).movedim(len(sample_shape), -2)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, differentiable in the parameters."""
        return self.bins.rsample(torch.Size(sample_shape)).movedim(len(sample_shape), -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of recordings `... x time x features` in nats, `... x trials`."""
        batch_shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        # Dims of `value` beyond those of the batch go before time, to broadcast as samples do.
        samples = len(batch_shape) - len(self.batch_shape)
        value = value.expand(batch_shape + self.event_shape).movedim(-2, samples)
        return self.bins.log_prob(value).sum(samples)
