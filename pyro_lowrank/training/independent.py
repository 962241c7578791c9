"""A yardstick for the evidence: what a recording is worth without any dynamics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution


def independent_evidence(
    train: Tensor, held_out: Tensor, distribution: Callable[[Tensor, Tensor], Distribution]
) -> float:
    """Return the log evidence of held-out data, in nats per observed bin, under one distribution per feature.

    Args:
        train: recording that gives the mean and variance of each feature, `trials x time x features`.
        held_out: recording that is evaluated, `trials x time x features`.
        distribution: of the features, from their means and variances, `features` each.

    Example::

        >>> y = torch.randn(10, 1000, 3)
        >>> normal = lambda mean, variance: torch.distributions.Normal(mean, variance.sqrt())
        >>> abs(independent_evidence(y[:5], y[5:], normal) - 3 * -1.419) < 0.1
        True
    """
    mean = train.nanmean((0, 1))
    features = distribution(mean, (train - mean).square().nanmean((0, 1)))
    seen = ~held_out.isnan()
    log_prob = features.log_prob(torch.where(seen, held_out, 0.0)) * seen
    return float(log_prob.sum() / seen.any(-1).sum().clamp(min=1))
