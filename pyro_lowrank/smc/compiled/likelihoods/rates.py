"""What counts share: rates by a link, and the curvature on the way to where the data would have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, log, scalar, softplus_and_slope

# The same limits as those of `CountEmission`.
LARGEST_LOG_RATE, SMALLEST_SOFTPLUS, FARTHEST = ONE * 60, -ONE * 40, ONE * 8
_NEAR = np.float32(1e-2)


@scalar
def log_softplus(x: Any) -> Any:
    """Return softplus(x) and its log.

    Far to the left softplus(x) is exp(x), whose log is x. Both sides are computed before one is chosen: a compiler does
    not vectorise branches around logarithms.
    """
    rate, _ = softplus_and_slope(x)
    far = x < SMALLEST_SOFTPLUS
    log_rate = log(ONE if far else rate)
    return rate, (x if far else log_rate)


@scalar
def rate_and_log_slope(x: Any) -> Any:
    """Return softplus(x) and the derivative of its log."""
    rate, share = softplus_and_slope(x)
    far = x < SMALLEST_SOFTPLUS
    slope = share / (ONE if far else rate)
    return rate, (ONE if far else slope)


@scalar
def held(x: Any, aimed: Any) -> Any:
    """Return a log rate, but none so far above the data that its information would drown all else."""
    return aimed + FARTHEST if x > aimed + FARTHEST else x


@scalar
def _target(y: Any) -> Any:
    # Zero counts as one half, for its log.
    return y if y > HALF else HALF + ZERO * y


@scalar
def softplus_aim(y: Any) -> Any:
    """Return the rate that the data would have, and the readout there."""
    target = _target(y)
    return target, target + math.log(-math.expm1(-target))


@scalar
def exp_aim(y: Any) -> Any:
    """Return the rate that the data would have, and the readout there."""
    target = _target(y)
    return target, math.log(target)


@scalar
def stiffness(pull: Any, information: Any, way: Any) -> Any:
    """Return the mean curvature on the way to where the data would have the readout."""
    near = abs(way) < _NEAR
    return information if near else pull / (ONE if near else way)


@scalar
def largest(x: Any) -> Any:
    """Return a log rate, held where products with the rate would overflow."""
    return LARGEST_LOG_RATE if x > LARGEST_LOG_RATE else x
