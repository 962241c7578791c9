"""Zeros and ones, with log odds that are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, scalar, softplus_and_slope
from pyro_lowrank.observations.bernoulli import BernoulliEmission
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register

_NEAR, _QUARTER = np.float32(1e-3), np.float32(0.25)


@scalar
def _log_density(y: Any, x: Any) -> Any:
    total, _ = softplus_and_slope(x)
    return y * x - total


@scalar
def _score(y: Any, x: Any) -> Any:
    _, probability = softplus_and_slope(x)
    return y - probability


@scalar
def _aim(y: Any) -> Any:
    return y, y


@scalar
def _curvature(y: Any, target: Any, aimed: Any, x: Any) -> Any:
    _, probability = softplus_and_slope(x)
    information = probability * (ONE - probability)
    near = abs(x) < _NEAR
    # Towards even odds the curvature grows: there, that of the quadratic which bounds the likelihood.
    bound = _QUARTER + ZERO * x if near else (probability - HALF) / (ONE if near else x)
    return y - probability, (information if (y > HALF) == (x > ZERO) else bound), information


def _constant(emission: BernoulliEmission, y: Tensor) -> Tensor:
    return y.new_zeros(())


@register(BernoulliEmission)
def _of(emission: BernoulliEmission) -> Likelihood:
    return Likelihood(log_density=_log_density, score=_score, constant=_constant, aim=_aim, curvature=_curvature)
