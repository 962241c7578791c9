"""A yardstick for the evidence: what a recording is worth without any dynamics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, Poisson


def independent_evidence(train: Tensor, held_out: Tensor, *, counts: bool) -> float:
    """Return the log evidence of held-out data, in nats per observed bin, under one distribution per feature.

    Args:
        train: recording that gives the mean, and variance, of each feature, `trials x time x features`.
        held_out: recording that is evaluated, `trials x time x features`.
        counts: Poisson distributions in place of Gaussian ones.

    Example::

        >>> y = torch.randn(10, 1000, 3)
        >>> abs(independent_evidence(y[:5], y[5:], counts=False) - 3 * -1.419) < 0.1
        True
    """
    mean = train.nanmean((0, 1))
    distribution: Distribution
    if counts:
        distribution = Poisson(mean.clamp(min=1e-6))
    else:
        distribution = Normal(mean, (train - mean).square().nanmean((0, 1)).sqrt().clamp(min=1e-6))
    seen = ~held_out.isnan()
    log_prob = distribution.log_prob(torch.where(seen, held_out, 0.0)) * seen
    return float(log_prob.sum() / seen.any(-1).sum().clamp(min=1))
