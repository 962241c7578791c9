"""Poisson counts, at softplus or exponential rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, exp, log, scalar, softplus_and_slope
from pyro_lowrank.observations.poisson import PoissonEmission
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register

# The same limits as those of `CountEmission`.
_LARGEST_LOG_RATE, _SMALLEST_SOFTPLUS, _FARTHEST = ONE * 60, -ONE * 40, ONE * 8
_NEAR = np.float32(1e-2)


@scalar
def _softplus_at_zero(y: Any, x: Any) -> Any:
    rate, _ = softplus_and_slope(x)
    return -rate


@scalar
def _softplus(y: Any, x: Any) -> Any:
    rate, _ = softplus_and_slope(x)
    # Far to the left softplus(x) is exp(x), whose log is x. Both sides are computed before one is chosen: a compiler
    # does not vectorise branches around logarithms.
    far = x < _SMALLEST_SOFTPLUS
    log_rate = log(ONE if far else rate)
    return y * (x if far else log_rate) - rate


@scalar
def _exp(y: Any, x: Any) -> Any:
    log_rate = _LARGEST_LOG_RATE if x > _LARGEST_LOG_RATE else x
    return y * log_rate - exp(log_rate)


@scalar
def _target(y: Any) -> Any:
    # Zero counts as one half, for its log.
    return y if y > HALF else HALF + ZERO * y


@scalar
def _softplus_aim(y: Any) -> Any:
    target = _target(y)
    return target, target + math.log(-math.expm1(-target))


@scalar
def _exp_aim(y: Any) -> Any:
    target = _target(y)
    return target, math.log(target)


@scalar
def _stiffness(pull: Any, information: Any, way: Any) -> Any:
    """Return the mean curvature on the way to where the data would have the readout."""
    near = abs(way) < _NEAR
    return information if near else pull / (ONE if near else way)


@scalar
def _softplus_curvature(y: Any, target: Any, aimed: Any, x: Any) -> Any:
    rate, share = softplus_and_slope(x)
    far = x < _SMALLEST_SOFTPLUS
    slope = share / (ONE if far else rate)
    slope = ONE if far else slope
    information = rate * slope * slope
    return (y - rate) * slope, _stiffness((target - rate) * slope, information, aimed - x), information


@scalar
def _exp_curvature(y: Any, target: Any, aimed: Any, x: Any) -> Any:
    farthest = aimed + _FARTHEST
    rate = exp(farthest if x > farthest else x)
    return y - rate, _stiffness(target - rate, rate, aimed - x), rate


def _constant(emission: PoissonEmission, y: Tensor) -> Tensor:
    return -torch.lgamma(y + 1)


_SOFTPLUS = Likelihood(_softplus, lambda emission: (), _constant, _softplus_at_zero, _softplus_aim, _softplus_curvature)
_EXP = Likelihood(_exp, lambda emission: (), _constant, None, _exp_aim, _exp_curvature)


@register(PoissonEmission)
def _of(emission: PoissonEmission) -> Likelihood:
    return _SOFTPLUS if emission.link == "softplus" else _EXP
