"""Arithmetic of log weights, `particles x trials`."""

from __future__ import annotations

from torch import Tensor


def normalise(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return log weights that sum to 1 over particles (dim 0), and the log of the sum they had.

    Example::

        >>> import torch
        >>> normalise(torch.tensor([[0.0], [0.0]]))[1]
        tensor([0.6931])
    """
    log_sum = log_weights.logsumexp(0)
    return log_weights - log_sum, log_sum


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return the effective sample size :math:`1 / \sum_k W_k^2` of normalised log weights, over particles (dim 0).

    Example::

        >>> import torch
        >>> effective_sample_size(torch.tensor([[0.5], [0.5]]).log())
        tensor([2.])
    """
    # Without the guards of `logsumexp`, which cost time: no weight is above 1, and the largest is at least 1 / K.
    return 1 / (2 * log_weights).exp().sum(0)
