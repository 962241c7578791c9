"""Bernoulli observations: at most one spike per bin, or any other yes and no."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.scalar import ScalarObservation

# A feature that is always the same starts at odds of one in 10,000 bins.
_SMALLEST_MEAN = 1e-4


def _logistic(x: Any) -> Any:
    return 1 / (1 + math.exp(-x))


class BernoulliObservation(ScalarObservation):
    r"""Zeros and ones, with log odds that are a readout of the latents.

    .. math:: P(y_t = 1) = 1 / (1 + e^{-(C z_t + b)})

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> BernoulliObservation(rank=3, features=40).mean(torch.zeros(10, 3))[0, 0].item()
        0.5
    """

    support = constraints.boolean

    @staticmethod
    def log_density(outcome: Any, log_odds: Any) -> Any:
        """Return the log probability of a zero or a one."""
        return outcome * log_odds - math.log1p(math.exp(log_odds))

    @staticmethod
    def aim(outcome: Any) -> Any:
        """Return even odds: the mean curvature on the way there is that of the quadratic that bounds the likelihood.

        References:
            Jaakkola and Jordan (2000), Statistics and Computing 10:25.
        """
        return 0.0

    @staticmethod
    def expected(log_odds: Any) -> Any:
        """Return the probability of a one."""
        return _logistic(log_odds)

    @staticmethod
    def variance(log_odds: Any) -> Any:
        """Return the variance."""
        return _logistic(log_odds) * _logistic(-log_odds)

    @staticmethod
    def sample(log_odds: Tensor) -> Tensor:
        """Draw zeros and ones."""
        return torch.bernoulli(log_odds.sigmoid())

    def predictor_of_mean(self, mean: Tensor) -> Tensor:
        """Return the readout at which the probability of a one is `mean`, `features`."""
        return mean.clamp(_SMALLEST_MEAN, 1 - _SMALLEST_MEAN).logit()

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Return how much the probability of a one changes with the log odds where it is `mean`, `features`."""
        mean = mean.clamp(_SMALLEST_MEAN, 1 - _SMALLEST_MEAN)
        return mean * (1 - mean)
