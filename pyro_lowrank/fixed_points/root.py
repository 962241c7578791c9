"""The box that all zeros lie in, from the weights."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pyro_lowrank.fixed_points.explore import BOXES, FAILED, SEEN, explore, new_worker
from pyro_lowrank.fixed_points.network import PIECEWISE, SOFTPLUS, TANH, Array, LatentMap, from_units
from pyro_lowrank.fixed_points.rounding import EPS, TINY, rounding

FAR = 1e3
"""Where no bound can be proved, boxes of this many times the size of the constants are searched."""

_DEPTH, _SMALLEST, _MOST = 100, 1e-7, 1_000_000
_explore: Any = explore
# Boxes between two looks at the clock.
_CHUNK = 2000


def root_box(network: LatentMap, until: float = np.inf, most: float = np.inf) -> tuple[Array, bool]:
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
        until: by `time.monotonic`, when to give up the proof.
        most: how many boxes of directions a proof may take, about.
    """
    box = _from_bounds(network)
    if box is None:
        box = _from_recession(network, until, most)
    if box is not None:
        return box, True
    return far_box(network), False


def far_box(network: LatentMap) -> Array:
    """Return a box to search where no bound is proved, `2 x rank`."""
    size = 1 + np.abs(network.constant).max(initial=0) + np.abs(network.knots).max(initial=0)
    size += np.abs(network.intercepts[:, :1]).max(initial=0)
    reach = FAR * size * np.ones(network.rank)
    return np.stack([-reach, reach])


def _ranges(network: LatentMap) -> tuple[Array, Array]:
    """Lowest and highest output of each bounded unit."""
    if network.kind == TANH:
        return -np.ones(network.units), np.ones(network.units)
    at_knots = network.slopes[:, 1:] * network.knots + network.intercepts[:, 1:]
    values = np.concatenate([at_knots, network.intercepts[:, :1], network.intercepts[:, -1:]], 1)
    return values.min(1), values.max(1)


def _from_bounds(network: LatentMap) -> Array | None:
    if not network.is_bounded or np.linalg.cond(network.affine) > 1e-4 / EPS:
        return None
    inverse = np.linalg.inv(network.affine)
    lowest, highest = _ranges(network)
    # What the computed inverse leaves of the identity is charged to the latents themselves.
    rest = np.abs(np.eye(network.rank) - inverse @ network.affine).sum(1).max() + rounding(64)
    if rest > 0.1:
        return None
    centre = -inverse @ (network.constant + (0.5 * (lowest + highest)) @ network.outputs)
    reach = np.abs(inverse @ network.outputs.T) @ (0.5 * (highest - lowest))
    reach = (reach + np.abs(inverse) @ network.error_constant) * (1 + rounding(4 * network.units + 64))
    # abs(z) enters through the rest, and is at most the size of the box itself.
    reach = reach + 2 * rest * (np.abs(centre) + reach).max() + rounding(4096) * (1 + np.abs(centre))
    return np.stack([centre - reach, centre + reach])


def recession(network: LatentMap, constant: Array | None = None) -> tuple[LatentMap, Array]:
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
        rest=network.rest,
    )
    # What is folded into the affine part was rounded as the terms of the whole network are.
    limit = limit._replace(error_slope=np.maximum(limit.error_slope, network.error_slope))
    difference = (np.abs(network.constant) + gap @ np.abs(network.outputs)) * (1 + rounding(4 * network.units + 64))
    return limit, difference + network.error_constant


def _from_recession(network: LatentMap, until: float, most: float) -> Array | None:
    limit, difference = recession(network)
    rank = network.rank
    # A larger difference is a bound as well. One near zero would make its component decide on every box, down to the
    # smallest about its own zeros.
    difference = np.maximum(difference, max(1e-3 * float(difference.max()), TINY))
    faces = 2 * rank
    worker = new_worker(limit, faces, _DEPTH)
    worker.stack[:faces, 0], worker.stack[:faces, 1] = -1.0, 1.0
    for face in range(faces):
        worker.stack[face, :, face // 2] = 1.0 if face % 2 else -1.0
    worker.counts[BOXES] = faces
    most = min(most + _CHUNK, _MOST * faces)
    smallest, nothing = np.full(rank, _SMALLEST), np.zeros((0, rank + 1))
    while worker.counts[BOXES]:
        _explore(limit.kind, worker, _CHUNK, smallest, nothing, difference)
        if worker.counts[FAILED] or worker.counts[SEEN] > most or time.monotonic() > until:
            return None
    # Without constants the origin is all: a box about it, of a size that latents, which are of about one, can have.
    reach = np.full(rank, float(worker.radius[0]) * (1 + rounding(4096)) + rounding(4096))
    return np.stack([-reach, reach])
