"""The box that all zeros lie in, from the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.fixed_points.enclosure import new_levels, new_scratch, settle
from pyro_lowrank.fixed_points.network import PIECEWISE, SOFTPLUS, TANH, Array, Network, from_units

FAR = 1e3
"""Where no bound can be proved, boxes of this many times the size of the constants are searched."""

_DEPTH, _SMALLEST = 100, 1e-7


def root_box(network: Network) -> tuple[Array, bool]:
    r"""Return a box, `2 x rank`, and whether it is proved that no zero of the network lies outside of it.

    With bounded units and an invertible A, a zero is :math:`-A^{-1} (c + \sum_j v_j f_j)`, with each :math:`f_j`
    between its bounds. Else the recession map decides,

    .. math:: G_\infty(d) = A d + \sum_j v_j f_j^\infty(w_j^\top d),

    where :math:`f_j^\infty` has the outermost slopes of :math:`f_j` and a knot at zero. G differs from it by no more
    than a constant E per component. Where no direction on the surface of the unit cube is a zero of it, the surface is
    split into boxes on each of which some component i is at least :math:`m_i` in size; a zero of G in such a direction
    has no latent above :math:`E_i / m_i`.

    Args:
        network: the network.
    """
    box = _from_bounds(network)
    if box is None:
        box = _from_recession(network)
    if box is not None:
        return box, True
    size = 1 + np.abs(network.constant).max(initial=0) + np.abs(network.knots).max(initial=0)
    size += np.abs(network.intercepts[:, :1]).max(initial=0)
    reach = FAR * size * np.ones(network.rank)
    return np.stack([-reach, reach]), False


def _ranges(network: Network) -> tuple[Array, Array]:
    """Lowest and highest output of each bounded unit."""
    if network.kind == TANH:
        return -np.ones(network.units), np.ones(network.units)
    at_knots = network.slopes[:, 1:] * network.knots + network.intercepts[:, 1:]
    values = np.concatenate([at_knots, network.intercepts[:, :1], network.intercepts[:, -1:]], 1)
    return values.min(1), values.max(1)


def _from_bounds(network: Network) -> Array | None:
    if not network.is_bounded or np.linalg.cond(network.affine) > 1e12:
        return None
    inverse = np.linalg.inv(network.affine)
    lowest, highest = _ranges(network)
    # What the computed inverse leaves of the identity is charged to the latents themselves.
    rest = np.abs(np.eye(network.rank) - inverse @ network.affine).sum(1).max() + 1e-14
    if rest > 0.1:
        return None
    centre = -inverse @ (network.constant + (0.5 * (lowest + highest)) @ network.outputs)
    reach = np.abs(inverse @ network.outputs.T) @ (0.5 * (highest - lowest))
    reach = (reach + np.abs(inverse) @ network.error_constant) * (1 + 1e-9)
    # abs(z) enters through the rest, and is at most the size of the box itself.
    reach = reach + 2 * rest * (np.abs(centre) + reach).max() + 1e-12 * (1 + np.abs(centre))
    return np.stack([centre - reach, centre + reach])


def recession(network: Network, constant: Array | None = None) -> tuple[Network, Array]:
    """Return the recession map, and by how much each component of G may differ from it, `rank`.

    Args:
        network: the network.
        constant: is added to the recession map.
    """
    if network.kind == PIECEWISE:
        first, last = network.slopes[:, 0], network.slopes[:, -1]
        at_knots = network.slopes[:, 1:] * network.knots + network.intercepts[:, 1:]
        homogeneous = np.where(network.knots > 0, last[:, None], first[:, None]) * network.knots
        gaps = np.concatenate([at_knots - homogeneous, network.intercepts[:, :1], network.intercepts[:, -1:]], 1)
        # At zero, the knot of the recession map, f itself is what differs.
        zero = network.rates(np.zeros(network.rank))[0]
        gap = np.maximum(np.abs(gaps).max(1), np.abs(zero))
    else:
        first = np.zeros(network.units)
        last = np.full(network.units, 1.0 if network.kind == SOFTPLUS else 0.0)
        gap = np.abs(network.intercepts[:, 0]) * last + 1.0
    limit = from_units(
        network.affine,
        np.zeros(network.rank) if constant is None else constant,
        network.weights,
        network.outputs,
        knots=np.zeros((network.units, 1)),
        slopes=np.stack([first, last], 1),
        intercepts=np.zeros((network.units, 2)),
    )
    return limit, (np.abs(network.constant) + gap @ np.abs(network.outputs)) * (1 + 1e-9) + network.error_constant


def _from_recession(network: Network) -> Array | None:
    limit, difference = recession(network)
    rank = network.rank
    levels, scratch = new_levels(limit, _DEPTH), new_scratch(limit)
    # A larger difference is a bound as well. One near zero would make its component decide on every box, down to the
    # smallest about its own zeros.
    difference = np.maximum(difference, max(1e-3 * float(difference.max()), 1e-150))
    radius = 0.0
    for side in range(rank):
        for sign in (-1.0, 1.0):
            low, high = -np.ones(rank), np.ones(rank)
            low[side] = high[side] = sign
            found = _farthest(limit, levels, scratch, low, high, difference)
            if not np.isfinite(found):
                return None
            radius = max(radius, found)
    reach = np.full(rank, radius * (1 + 1e-9) + 1e-12)
    return np.stack([-reach, reach])


@compiled()
def _farthest(limit: Any, levels: Any, s: Any, first_low: Any, first_high: Any, difference: Any) -> Any:
    """Return how far out a zero of G in the directions of a box may lie, infinity if it cannot be told."""
    rank = first_low.shape[0]
    lows, highs = np.empty((2 * _DEPTH, rank)), np.empty((2 * _DEPTH, rank))
    parents = np.zeros(2 * _DEPTH, dtype=np.int64)
    lows[0], highs[0] = first_low, first_high
    size, radius, looked_at = 1, 0.0, 0
    low, high = np.empty(rank), np.empty(rank)
    while size > 0:
        size -= 1
        looked_at += 1
        low[:], high[:] = lows[size], highs[size]
        level = parents[size] + 1
        if level >= _DEPTH or looked_at > 1_000_000:
            return np.inf
        settle(limit, levels, level - 1, level, low, high, s)
        best, largest, nearest = 0.0, 0.0, np.inf
        for i in range(rank):
            value, room = s.constant[i], limit.error_constant[i]
            for k in range(rank):
                value += s.affine[i, k] * s.middle[k]
                room += abs(s.affine[i, k]) * s.radius[k] + limit.error_slope[i, k] * (abs(s.middle[k]) + s.radius[k])
            for position in range(levels.counts[level]):
                room += abs(limit.outputs[levels.open_units[level, position], i]) * s.width[position]
            largest = max(largest, abs(value) / difference[i])
            best = max(best, (abs(value) - room) / difference[i])
        if best > 0.0:
            nearest = 1.0 / best
        if (best >= 0.5 * largest and best > 0.0) or nearest <= radius:
            radius = max(radius, nearest)
            continue
        side = 0
        for k in range(rank):
            if high[k] - low[k] > high[side] - low[side]:
                side = k
        if high[side] - low[side] <= _SMALLEST:
            if best > 0.0:
                radius = max(radius, nearest)
                continue
            return np.inf
        middle = 0.5 * (low[side] + high[side])
        for half in range(2):
            lows[size + half], highs[size + half], parents[size + half] = low, high, level
        highs[size, side], lows[size + 1, side] = middle, middle
        size += 2
    return radius
