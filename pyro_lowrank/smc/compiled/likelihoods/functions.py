"""The functions of one number that densities are made of, in compiled loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled import arithmetic
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO, alike, scalar, softplus_and_slope

# Below this, softplus(x) and exp(x) agree to float64 precision in the log.
_SMALLEST_SOFTPLUS = -ONE * 40


@scalar
def _sigmoid(x: Any) -> Any:
    _, share = softplus_and_slope(x)
    return share


@scalar
def _softplus(x: Any) -> Any:
    total, _ = softplus_and_slope(x)
    return total


@scalar
def _log_softplus(x: Any) -> Any:
    # Far to the left softplus(x) is exp(x), whose log is x. Both sides are computed before one is chosen: a compiler
    # does not vectorise branches around logarithms.
    rate, _ = softplus_and_slope(x)
    far = x < _SMALLEST_SOFTPLUS
    log_rate = arithmetic.log(ONE if far else rate)
    return x if far else log_rate


@scalar
def _log_softplus_slope(x: Any) -> Any:
    rate, share = softplus_and_slope(x)
    far = x < _SMALLEST_SOFTPLUS
    slope = share / (ONE if far else rate)
    return ONE if far else slope


@scalar
def _sign(x: Any) -> Any:
    return ONE if x > ZERO else (-ONE if x < ZERO else ZERO)


@compiled(allocates=False)
def _digamma_of_double(x: Any) -> Any:
    if x <= 0.0 and x == math.floor(x):
        return np.nan
    total = 0.0
    if x < 0.0:
        total, x = -math.pi / math.tan(math.pi * x), 1.0 - x
    while x < 10.0:
        total -= 1 / x
        x += 1.0
    s = 1 / (x * x)
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s * (1 / 132 - s * 691 / 32760)))))
    return total + math.log(x) - 0.5 / x - series


@compiled(allocates=False)
def _trigamma_of_double(x: Any) -> Any:
    if x <= 0.0 and x == math.floor(x):
        return np.inf
    sign, total = 1.0, 0.0
    if x < 0.0:
        sign, total, x = -1.0, (math.pi / math.sin(math.pi * x)) ** 2, 1.0 - x
    rest = 0.0
    while x < 10.0:
        rest += 1 / (x * x)
        x += 1.0
    s = 1 / (x * x)
    series = 1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * (5 / 66 - s * 691 / 2730))))
    return total + sign * (rest + 1 / x + 0.5 * s + series * s / x)


@scalar
def _digamma(x: Any) -> Any:
    return alike(x, _digamma_of_double(np.float64(x)))


@scalar
def _trigamma(x: Any) -> Any:
    return alike(x, _trigamma_of_double(np.float64(x)))


@scalar
def _log_rising(x: Any, n: Any) -> Any:
    return alike(x, math.lgamma(np.float64(x) + np.float64(n)) - math.lgamma(np.float64(x)))


FUNCTIONS = {
    "exp": arithmetic.exp,
    "expm1": math.expm1,
    "log": arithmetic.log_anywhere,
    "log1p": arithmetic.log1p,
    "sqrt": math.sqrt,
    "tanh": arithmetic.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "log_softplus": _log_softplus,
    "log_softplus_slope": _log_softplus_slope,
    "absolute": abs,
    "sign": _sign,
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "lgamma": math.lgamma,
    "digamma": _digamma,
    "trigamma": _trigamma,
    "log_rising": _log_rising,
}
