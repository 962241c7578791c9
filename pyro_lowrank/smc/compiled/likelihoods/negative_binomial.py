"""Negative binomial counts, at softplus or exponential rates, with size 1 / alpha."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import exp, scalar, softplus_and_slope
from pyro_lowrank.observations.negative_binomial import NegativeBinomialEmission
from pyro_lowrank.smc.compiled.likelihoods import rates
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register
from pyro_lowrank.smc.compiled.likelihoods.rates import held, largest, log_softplus, rate_and_log_slope, stiffness


@scalar
def _of_log_rate(y: Any, log_rate: Any, size: Any, log_size: Any) -> Any:
    # log(1 + rate / size) keeps the digits that log(size) - log(size + rate) would lose.
    excess, _ = softplus_and_slope(log_rate - log_size)
    return y * (log_rate - log_size - excess) - size * excess


@scalar
def _softplus(y: Any, x: Any, size: Any, log_size: Any) -> Any:
    _, log_rate = log_softplus(x)
    return _of_log_rate(y, log_rate, size, log_size)


@scalar
def _exp(y: Any, x: Any, size: Any, log_size: Any) -> Any:
    return _of_log_rate(y, largest(x), size, log_size)


@scalar
def _softplus_aim(y: Any, size: Any, log_size: Any) -> Any:
    return rates.softplus_aim(y)


@scalar
def _exp_aim(y: Any, size: Any, log_size: Any) -> Any:
    return rates.exp_aim(y)


@scalar
def _softplus_curvature(y: Any, target: Any, aimed: Any, x: Any, size: Any, log_size: Any) -> Any:
    rate, slope = rate_and_log_slope(x)
    shrunk = slope * size / (size + rate)
    information = rate * slope * shrunk
    return (y - rate) * shrunk, stiffness((target - rate) * shrunk, information, aimed - x), information


@scalar
def _exp_curvature(y: Any, target: Any, aimed: Any, x: Any, size: Any, log_size: Any) -> Any:
    rate = exp(held(x, aimed))
    shrink = size / (size + rate)
    return (y - rate) * shrink, stiffness((target - rate) * shrink, rate * shrink, aimed - x), rate * shrink


def _parameters(emission: NegativeBinomialEmission) -> tuple[Tensor, ...]:
    return emission.dispersion.reciprocal(), -emission.dispersion.log()


def _constant(emission: NegativeBinomialEmission, y: Tensor) -> Tensor:
    # The difference of two large numbers where the dispersion is small.
    size, count = emission.dispersion.double().reciprocal(), y.double()
    return (torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)).to(y.dtype)


_SOFTPLUS = Likelihood(_softplus, _constant, _parameters, aim=_softplus_aim, curvature=_softplus_curvature)
_EXP = Likelihood(_exp, _constant, _parameters, aim=_exp_aim, curvature=_exp_curvature)


@register(NegativeBinomialEmission)
def _of(emission: NegativeBinomialEmission) -> Likelihood:
    return _SOFTPLUS if emission.link == "softplus" else _EXP
