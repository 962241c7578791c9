"""Newton's method, and the proof that a cube around a point holds exactly one zero, for smooth units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_lowrank.fixed_points.network import TANH, Array, LatentMap
from pyro_lowrank.fixed_points.rounding import EPS, TINY, rounding

_STEPS = 50
_SLOW_STEPS = 8
_RADII = 10.0 ** np.arange(0, -13, -0.5)


class Proved(NamedTuple):
    """A zero, and a cube in which it is the only one."""

    point: Array
    """`rank`."""
    radius: float
    """Half the side of the cube around it."""
    sign: int
    """Of det(I - J) there."""
    error: float
    """How far the zero may be from the point."""


def are_apart(proved: list[Proved]) -> bool:
    """Whether no two of some proved zeros can be the same."""
    for index, one in enumerate(proved):
        for other in proved[:index]:
            if np.abs(one.point - other.point).max() <= one.error + other.error:
                return False
    return True


def newton(network: LatentMap, z: Array) -> Array | None:
    """Return a zero of the network by Newton's method from z, or None if it does not settle."""
    last, slow = np.inf, 0
    for _ in range(_STEPS):
        try:
            step = np.linalg.solve(network.jacobian(z), network.value(z))
        except np.linalg.LinAlgError:
            return None
        z = z - step
        size = float(np.abs(step).max())
        # Near a zero of the Jacobian steps do not shrink as they should, however many are taken.
        slow, last = slow + (size > 0.75 * last), size
        if not np.isfinite(z).all() or slow > _SLOW_STEPS:
            break
        if size <= 2 * EPS * (1 + np.abs(z).max()):
            return z
    is_zero = np.isfinite(z).all() and (np.abs(network.value(z)) <= 8 * network.error(z)).all()
    return z if is_zero else None


def _slope_ranges(network: LatentMap, x: Array, reach: Array) -> tuple[Array, Array]:
    """Lowest and highest slope of each smooth unit where its current is within `reach` of x."""
    x = x + network.intercepts[:, 0]
    low, high = x - reach, x + reach

    def slope(at: Array) -> Array:
        e = np.exp(-np.abs(at) * (2.0 if network.kind == TANH else 1.0))
        if network.kind == TANH:
            return np.asarray(4 * e / (1 + e) ** 2)
        return np.asarray(np.where(at >= 0, 1.0, e) / (1 + e))

    ends = slope(low), slope(high)
    lowest, highest = np.minimum(*ends), np.maximum(*ends)
    if network.kind == TANH:
        highest = np.where((low <= 0) & (high >= 0), 1.0, highest)
    return lowest * (1 - rounding(64)) - TINY, highest * (1 + rounding(64))


def prove(network: LatentMap, point: Array) -> Proved | None:
    r"""Return the largest cube around a point that provably holds exactly one zero, or None if there is no such cube.

    With Y an approximate inverse of the Jacobian and every Jacobian on the cube of radius r within
    :math:`\|I - Y J\|_\infty \le q < 1`, the map :math:`z - Y G(z)` contracts there: there is at most one zero, and
    there is one if :math:`\|Y G(z_0)\|_\infty \le (1 - q) r`. Rounding of G and of Y J is added to both sides.

    Args:
        network: of smooth units.
        point: an approximate zero, `rank`.
    """
    jacobian = network.jacobian(point)
    try:
        inverse = np.linalg.inv(jacobian)
    except np.linalg.LinAlgError:
        return None
    x = point @ network.weights.T
    size = np.abs(point) @ np.abs(network.weights).T
    residual = (np.abs(inverse) @ (np.abs(network.value(point)) + network.error(point))).max()
    gains = np.abs(inverse @ network.outputs.T)
    slack = np.abs(inverse) @ network.error_slope

    slips = rounding(network.rank + 4) * (size + np.abs(network.intercepts[:, 0]))

    def contraction(radius: float) -> float:
        """The bound q on the cube of that radius, which grows with the radius."""
        reach = np.abs(network.weights).sum(1) * radius + slips
        lowest, highest = _slope_ranges(network, x, reach)
        middle = network.affine + (network.outputs.T * (0.5 * (lowest + highest))) @ network.weights
        spread = (gains * (0.5 * (highest - lowest))) @ np.abs(network.weights)
        rest = np.abs(np.eye(network.rank) - inverse @ middle) + spread + slack
        return float(rest.sum(1).max()) * (1 + rounding(4096))

    if not contraction(residual) < 1:
        # No cube can hold a step as long as the residual and contract.
        return None
    radii = _RADII * (1 + np.abs(point).max())
    for radius in radii[radii >= residual].tolist():
        q = contraction(radius)
        if q < 1 and residual <= (1 - q) * radius * (1 - rounding(4096)):
            error = residual / (1 - q)
            return Proved(point, radius, int(np.linalg.slogdet(-jacobian).sign), float(error))
    return None
