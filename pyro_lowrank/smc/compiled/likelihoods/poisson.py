"""Poisson counts, at softplus or exponential rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import ZERO, exp, scalar, softplus_and_slope
from pyro_lowrank.observations.poisson import PoissonEmission
from pyro_lowrank.smc.compiled.likelihoods import rates
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register
from pyro_lowrank.smc.compiled.likelihoods.rates import (
    LARGEST_LOG_RATE,
    held,
    largest,
    log_softplus,
    rate_and_log_slope,
    stiffness,
)


@scalar
def _softplus(y: Any, x: Any) -> Any:
    rate, log_rate = log_softplus(x)
    return y * log_rate - rate


@scalar
def _softplus_at_zero(y: Any, x: Any) -> Any:
    rate, _ = softplus_and_slope(x)
    return -rate


@scalar
def _softplus_score(y: Any, x: Any) -> Any:
    rate, slope = rate_and_log_slope(x)
    return (y - rate) * slope


@scalar
def _softplus_curvature(y: Any, target: Any, aimed: Any, x: Any) -> Any:
    rate, slope = rate_and_log_slope(x)
    information = rate * slope * slope
    return (y - rate) * slope, stiffness((target - rate) * slope, information, aimed - x), information


@scalar
def _exp(y: Any, x: Any) -> Any:
    log_rate = largest(x)
    return y * log_rate - exp(log_rate)


@scalar
def _exp_score(y: Any, x: Any) -> Any:
    held_there = x > LARGEST_LOG_RATE
    rate = exp(LARGEST_LOG_RATE if held_there else x)
    return ZERO * x if held_there else y - rate


@scalar
def _exp_curvature(y: Any, target: Any, aimed: Any, x: Any) -> Any:
    rate = exp(held(x, aimed))
    return y - rate, stiffness(target - rate, rate, aimed - x), rate


def _constant(emission: PoissonEmission, y: Tensor) -> Tensor:
    return -torch.lgamma(y + 1)


_SOFTPLUS = Likelihood(
    log_density=_softplus,
    at_zero=_softplus_at_zero,
    score=_softplus_score,
    constant=_constant,
    aim=rates.softplus_aim,
    curvature=_softplus_curvature,
)
_EXP = Likelihood(log_density=_exp, score=_exp_score, constant=_constant, aim=rates.exp_aim, curvature=_exp_curvature)


@register(PoissonEmission)
def _of(emission: PoissonEmission) -> Likelihood:
    return _SOFTPLUS if emission.link == "softplus" else _EXP
