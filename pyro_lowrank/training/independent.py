"""A yardstick for the evidence: what a recording is worth without any dynamics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, NegativeBinomial, Normal, Poisson

from pyro_lowrank.observations.base import Observation
from pyro_lowrank.observations.bernoulli import BernoulliObservation
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.joint import JointObservation
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
    return _per_bin(_log_densities(train, held_out, distribution), held_out)


def without_dynamics(observation: Observation, train: Tensor, held_out: Tensor) -> float | None:
    """Return that of independent features of an observation's kind, or None where there is no such thing.

    Args:
        observation: what is fitted; of a `JointObservation` each part has its own kind.
        train: as of `independent_evidence`, as is `held_out`.
    """
    joint = isinstance(observation, JointObservation)
    parts = list(observation.parts.values()) if joint else [observation]
    kinds = [features_like(part) for part in parts]
    sizes = [part.features for part in parts]
    found = [
        _log_densities(before, after, kind)
        for kind, before, after in zip(kinds, train.split(sizes, -1), held_out.split(sizes, -1), strict=True)
        if kind is not None
    ]
    return _per_bin(torch.cat(found, -1), held_out) if len(found) == len(kinds) else None


def _log_densities(train: Tensor, held_out: Tensor, distribution: Callable[[Tensor, Tensor], Distribution]) -> Tensor:
    """Return the log density of each entry, zero where missing."""
    mean = train.nanmean((0, 1))
    variance = (train - mean).square().nanmean((0, 1))
    # Of features that the training data never show nothing is known.
    features = distribution(mean.nan_to_num(nan=0.5), variance.nan_to_num(nan=1.0))
    seen = ~held_out.isnan()
    return features.log_prob(torch.where(seen, held_out, 0.0)) * seen


def _per_bin(log_densities: Tensor, held_out: Tensor) -> float:
    return float(log_densities.sum() / (~held_out.isnan()).any(-1).sum().clamp(min=1))


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
    (DrivenObservation, normal),
)


def features_like(observation: Observation) -> Callable[[Tensor, Tensor], Distribution] | None:
    """Return what makes independent features of an observation's kind, or None where there is no such thing."""
    return next((make for kind, make in _BY_OBSERVATION if isinstance(observation, kind)), None)
