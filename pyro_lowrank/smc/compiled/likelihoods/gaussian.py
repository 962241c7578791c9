"""Gaussian noise around a readout, where `OptimalGuide` has not weighed it already."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, scalar
from pyro_lowrank.observations.gaussian import GaussianEmission
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register


@scalar
def _log_density(y: Any, x: Any, precision: Any) -> Any:
    return -HALF * precision * (y - x) * (y - x)


@scalar
def _aim(y: Any, precision: Any) -> Any:
    return y, y


@scalar
def _curvature(y: Any, target: Any, aimed: Any, x: Any, precision: Any) -> Any:
    return precision * (y - x), precision, precision


def _constant(emission: GaussianEmission, y: Tensor) -> Tensor:
    return -emission.scale.log() - 0.5 * math.log(2 * math.pi)


@register(GaussianEmission)
def _of(emission: GaussianEmission) -> Likelihood:
    return Likelihood(
        log_density=_log_density,
        parameters=lambda emission: (emission.scale.square().reciprocal(),),
        constant=_constant,
        aim=_aim,
        curvature=_curvature,
    )
