"""A yardstick for the evidence: what a recording is worth without any dynamics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, NegativeBinomial, Normal, Poisson

from pyro_lowrank.observations.base import Observation
from pyro_lowrank.observations.bernoulli import BernoulliObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.negative_binomial import NegativeBinomialObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.observations.student_t import StudentTObservation


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


def normal(mean: Tensor, variance: Tensor) -> Distribution:
    """Return normal ones of given means and variances, one per feature."""
    return Normal(mean, variance.sqrt().clamp(min=1e-6))


def poisson(mean: Tensor, variance: Tensor) -> Distribution:
    """Return Poisson counts of given means and variances, one per feature."""
    return Poisson(mean.clamp(min=1e-6))


def negative_binomial(mean: Tensor, variance: Tensor) -> Distribution:
    """Return negative-binomial counts of given means and variances, one per feature."""
    mean = mean.clamp(min=1e-6)
    # By the moments; counts that vary less than Poisson ones are as good as Poisson.
    dispersion = ((variance - mean) / mean.square()).clamp(min=1e-6)
    return NegativeBinomial(1 / dispersion, logits=(mean * dispersion).log())


def bernoulli(mean: Tensor, variance: Tensor) -> Distribution:
    """Return events of given means and variances, one per feature."""
    return Bernoulli(mean.clamp(1e-6, 1 - 1e-6))


_BY_OBSERVATION: tuple[tuple[type[Observation], Callable[[Tensor, Tensor], Distribution]], ...] = (
    (GaussianObservation, normal),
    (StudentTObservation, normal),
    (NegativeBinomialObservation, negative_binomial),
    (PoissonObservation, poisson),
    (BernoulliObservation, bernoulli),
)


def features_like(observation: Observation) -> Callable[[Tensor, Tensor], Distribution] | None:
    """Return what makes independent features of an observation's kind, or None where there is no such thing."""
    return next((make for kind, make in _BY_OBSERVATION if isinstance(observation, kind)), None)
