"""The log prior density of unconstrained values, those of Gaussian sites all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    Transform,
)


class GaussianSites:
    """Those sites that are Gaussian without their constraints: normal ones, and log-normal ones by their logarithm.

    Args:
        priors: of sites, by name; distributions, or functions of the values of others.
        transforms: from the constrained to the unconstrained values of each site.

    Attributes:
        names: which they are.
        moments: mean and scale of their unconstrained values, by name.
    """

    def __init__(self, priors: Mapping[str, Any], transforms: Mapping[str, Transform]) -> None:
        found = {name: _moments(priors[name], transform) for name, transform in transforms.items() if name in priors}
        moments = {name: each for name, each in found.items() if each is not None}
        self.names, self.moments = tuple(moments), moments
        if not moments:
            return
        self._mean, scale = (torch.cat([each[i].reshape(-1) for each in moments.values()]) for i in (0, 1))
        self._precision = scale.reciprocal()
        self._constant = -scale.log().sum() - 0.5 * len(scale) * math.log(2 * math.pi)

    def log_prob(self, unconstrained: Mapping[str, Tensor]) -> Tensor | float:
        """Return their log density in nats, at unconstrained values."""
        if not self.names:
            return 0.0
        flat = torch.cat([unconstrained[name].reshape(-1) for name in self.names])
        return self._constant - 0.5 * ((flat - self._mean) * self._precision).square().sum()


def _moments(prior: Any, transform: Transform) -> tuple[Tensor, Tensor] | None:
    """Return the mean and scale of unconstrained values, or None where they are not Gaussian."""
    base = prior
    while type(base) is dist.Independent:
        base = base.base_dist
    back = transform.inv
    while isinstance(back, IndependentTransform):
        back = back.base_transform
    steps = list(back.parts) if isinstance(back, ComposeTransform) else [back]
    # As positive numbers come: the exponential, and a shift by nothing.
    last = steps[-1] if steps else None
    if isinstance(last, AffineTransform) and (last.loc, last.scale) == (0, 1):
        steps.pop()
    of_logarithms = len(steps) == 1 and isinstance(steps[0], ExpTransform)
    if not (type(base) is dist.Normal and not steps) and not (type(base) is dist.LogNormal and of_logarithms):
        return None
    mean, scale = torch.broadcast_tensors(base.loc, base.scale)
    return mean, scale


def unchecked(prior: Any) -> Any:
    """Return a distribution that does not look at values before it weighs them: those that are drawn always fit."""
    part = prior
    while isinstance(part, torch.distributions.Distribution):
        part._validate_args = False
        part = getattr(part, "base_dist", None)
    return prior


def set_value(part: nn.Module, attribute: str, value: Tensor) -> None:
    """Let an attribute that was a parameter read as a tensor, which may depend on others."""
    part._parameters[attribute] = value  # type: ignore[assignment]
