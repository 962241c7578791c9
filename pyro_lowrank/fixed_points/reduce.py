"""The same zeros in a network that is easier to handle: without units that do not matter, at a scale of about one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap, Reduced, distinct_knots, from_units

_ORDINARY = 20
"""Latents between two to the minus and the plus this many are left as they are."""

_TURNS = 10


def reduce(network: LatentMap) -> LatentMap:
    r"""Return a network with the same zeros, up to the scale of its latents, whose units all matter and are not linear.

    .. math::

        G'(y) = r\, G(d\, y)

    with d and r, of powers of two, so that G' has entries, and zeros, of about unit size where those of G are far from
    it. Units that do not depend on z, do not act on it or are linear are folded into the affine part. Nothing that is
    decided on the result depends on the scale of the network; scaling by powers of two rounds nothing.

    Args:
        network: as it came.
    """
    scaled, scale = _balance(network)
    pruned, kept = _prune(scaled)
    return pruned._replace(reduced=Reduced(network, kept, scale))


def _balance(network: LatentMap) -> tuple[LatentMap, Array]:
    """Return the scaled network and how large a latent of the original is per latent of it."""
    gains, offsets = network.error_slope, network.error_constant
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        powers = _powers_of_two(gains, offsets)
        rows = -np.log2((gains * np.exp2(powers)).max(1) * 2.0**52)
    rows = np.where(np.isfinite(rows), np.rint(rows), 0.0)
    ordinary = bool((np.abs(powers) <= _ORDINARY).all() and (np.abs(rows + powers) <= 2 * _ORDINARY).all())
    if ordinary or max(np.abs(powers).max(), np.abs(rows).max()) > 900:
        return network, np.ones(network.rank)
    d, r = np.exp2(powers), np.exp2(rows)
    with np.errstate(over="ignore", under="ignore"):
        scaled = network._replace(
            affine=r[:, None] * network.affine * d,
            constant=r * network.constant,
            weights=network.weights * d,
            outputs=network.outputs * r,
            error_slope=r[:, None] * network.error_slope * d,
            error_constant=r * network.error_constant,
        )
    pairs = [(scaled.affine, network.affine), (scaled.weights, network.weights), (scaled.outputs, network.outputs)]
    pairs.append((scaled.constant, network.constant))
    if all(_is_exact(new, old) for new, old in pairs):
        return scaled, d
    return network, np.ones(network.rank)


def _is_exact(new: Array, old: Array) -> bool:
    """Whether scaled numbers have not left the range of normal ones."""
    new = np.abs(new[old != 0])
    return bool((new < 2.0**1000).all() and (new > 2.0**-1000).all())


def _powers_of_two(gains: Array, offsets: Array) -> Array:
    """Return the logarithm of the size that each latent is likely to have, `rank`.

    Osborne's balancing first, for latents that are in units of their own; then what the constants and knots drive each
    to, or what others of that size drive it to.
    """
    rank = len(offsets)
    off = gains - np.diag(np.diag(gains))
    powers = np.zeros(rank)
    for _ in range(_TURNS if rank > 1 else 0):
        before = powers.copy()
        for i in range(rank):
            scaled = off * np.exp2(powers - powers[:, None])
            row, column = scaled[i].sum(), scaled[:, i].sum()
            if row > 0 and column > 0:
                powers[i] += np.rint(0.5 * np.log2(row / column))
        if (powers == before).all():
            break
    balanced = gains * np.exp2(powers - powers[:, None])
    own = np.diag(balanced)
    size = np.where(own > 0, offsets * np.exp2(-powers) / np.where(own > 0, own, 1.0), 0.0)
    ratio = np.minimum(1.0, np.where(own[:, None] > 0, balanced / np.where(own > 0, own, 1.0)[:, None], 0.0))
    for _ in range(rank):
        size = np.maximum(size, (ratio * size).max(1))
    size = np.where(size > 0, size, size.max(initial=0) or 1.0)
    return np.asarray(powers + np.rint(np.log2(size)))


def _prune(network: LatentMap) -> tuple[LatentMap, NDArray[np.int64]]:
    """Return a network with the same map whose units all act on z and depend on it, not linearly, and which those are.

    The others are folded into the affine part.
    """
    is_linear = _linear_units(network)
    depends, acts = network.weights.any(1), network.outputs.any(1)
    slopes, rests = network.slopes[is_linear, 0], network.intercepts[is_linear, 0]
    outputs = network.outputs[is_linear]
    fixed = ~is_linear & ~depends
    values = network.rates(np.zeros(network.rank))[0][fixed]
    keep = ~is_linear & depends & acts
    pruned = from_units(
        network.affine + (outputs * slopes[:, None]).T @ network.weights[is_linear],
        network.constant + rests @ outputs + values @ network.outputs[fixed],
        network.weights[keep],
        network.outputs[keep],
        kind=network.kind,
        intercepts=network.intercepts[keep],
        knots=network.knots[keep],
        slopes=network.slopes[keep],
        knot_sizes=network.knot_sizes[keep],
    )
    # What was folded in was rounded as the terms of the whole network are.
    pruned = pruned._replace(error_slope=network.error_slope, error_constant=network.error_constant)
    return pruned, np.flatnonzero(keep)


def _linear_units(network: LatentMap) -> NDArray[np.bool_]:
    """Which piecewise-linear units have the same slope everywhere."""
    if network.kind != PIECEWISE or not network.units:
        return np.zeros(network.units, dtype=bool)
    # A piece between two coincident knots is none.
    exists = np.ones(network.slopes.shape, dtype=bool)
    exists[:, 1:-1] = distinct_knots(network)
    return np.asarray((~exists | (network.slopes == network.slopes[:, :1])).all(1))
