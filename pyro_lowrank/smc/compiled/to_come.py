r"""What later bins say of particles that remember the latents, while paths are drawn backwards, in compiled loops.

Given the later part of a path, the log likelihood of the bins after one is quadratic in what a particle remembers, m,

    lambda . m - m . Omega m / 2,

and with the law of the bin after it (see `laws`), w the weight, x what drives features there and e = y - b - d x,

    Omega = w w^T / S + Phi^T Omega' Phi,    Phi = A - K w^T,
    lambda = w e / S + Phi^T (lambda' - Omega' (B x + K e)).

As Omega does not depend on the path, one serves them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, alike, softplus_and_slope
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.laws import add_product, copy_row, places, sandwich, take_product
from pyro_lowrank.smc.compiled.records import Features


class ToCome(NamedTuple):
    """What is known of the later bins, and arrays that it is worked out in.

    Attributes:
        features: the likelihood and the data, and what particles remember of each bin.
        rates: whether features are driven by rates.
        linear: lambda, `paths x order x D`.
        information: Omega, `order^2 x D`.
        diagonals: of Omega on and above its own, one after the other, `order (order + 1) / 2 x D`, flat.
        middle: the mean of what particles remember, `order x D`, flat.
        slope: at the middle, likewise.
        moved: what particles remember less their mean, `K x (order * D)`.
        own: what of the log likelihood all paths share, `K`.
        work: scratch, `(2 order^2 + 2 order + 3) x D`.
    """

    features: Any
    rates: Any
    linear: Any
    information: Any
    diagonals: Any
    middle: Any
    slope: Any
    moved: Any
    own: Any
    work: Any


def to_come(features: Features, rates: bool, num_paths: int) -> ToCome:
    """Return what is known at the end, where nothing is to come."""
    particles, width = features.past.shape[2:]
    size = features.y.shape[2]
    order = width // size

    def room(*shape: int) -> Any:
        return np.empty(shape, features.past.dtype)

    square = order * order
    return ToCome(
        features,
        rates,
        room(num_paths, order, size),
        room(square, size),
        room(order * (order + 1) // 2 * size),
        room(width),
        room(width),
        room(particles, width),
        room(particles),
        room(2 * square + 2 * order + 3, size),
    )


@compiled(fastmath=FAST, allocates=False, inner=True)
def forget(later: Any) -> None:
    """Begin at the end of a trial."""
    later.linear[:] = ZERO
    later.information[:] = ZERO


@compiled(fastmath=FAST, allocates=False, inner=True)
def look_back(later: Any, b: Any, t: Any, path: Any, z: Any) -> None:
    """Take in time bin `t` with the latents of a path there: lambda becomes that of the bin before."""
    features, linear, work, parameters = later.features, later.linear[path], later.work, later.features.parameters
    law, order, links = features.laws[min(b, features.laws.shape[0] - 1), t], linear.shape[0], features.links
    gain, driven, surprise, told = places(order).gain, work[0], work[1], work[2]
    push, rest = work[3 : 3 + order], work[3 + order : 3 + 2 * order]
    copy_row(driven, features.offset[b, t])
    for r in range(z.shape[0]):
        for d in range(driven.shape[0]):
            driven[d] += features.weight[r, d] * z[r]
    if later.rates:
        for d in range(driven.shape[0]):
            driven[d], _ = softplus_and_slope(driven[d])
    for d in range(driven.shape[0]):
        surprise[d] = features.y[b, t, d] - parameters[1, d] - parameters[0, d] * driven[d]
        told[d] = surprise[d] * law[0, d]
    for p in range(order):
        push[p, :] = ZERO
        add_product(push[p], parameters[2 + order + p], driven)
        add_product(push[p], law[gain + p], surprise)
    for p in range(order):
        copy_row(rest[p], linear[p])
        for q in range(order):
            take_product(rest[p], later.information[p * order + q], push[q])
        take_product(told, law[gain + p], rest[p])
    for p in range(order):
        linear[p, :] = ZERO
        add_product(linear[p], parameters[2 + p], told)
    for i in range(links.shape[0]):
        p, q = links[i, 0], links[i, 1]
        add_product(linear[q], parameters[2 + 2 * order + p * order + q], rest[p])


@compiled(fastmath=FAST, allocates=False, inner=True)
def _inform(later: Any, b: Any, t: Any) -> None:
    """Take in time bin `t`: Omega becomes that of the bin before."""
    features, information, work, order = later.features, later.information, later.work, later.linear.shape[1]
    law, links = features.laws[min(b, features.laws.shape[0] - 1), t], features.links
    square, gain, weight = order * order, places(order).gain, features.parameters[2 : 2 + order]
    transition = features.parameters[2 + 2 * order :]
    found, seen, across = work[:square], work[2 * square : 2 * square + order], work[2 * square + order :]
    # Omega K, then A^T of it; and what the weight's square counts.
    told = work[2 * square + 2 * order]
    copy_row(told, law[0])
    for p in range(order):
        seen[p, :] = ZERO
        across[p, :] = ZERO
        for q in range(order):
            add_product(seen[p], information[p * order + q], law[gain + q])
        add_product(told, seen[p], law[gain + p])
    for i in range(links.shape[0]):
        p, q = links[i, 0], links[i, 1]
        add_product(across[q], transition[p * order + q], seen[p])
    for p in range(order):
        for q in range(p + 1):
            row = found[p * order + q]
            for d in range(row.shape[0]):
                row[d] = told[d] * weight[p, d] * weight[q, d]
            take_product(row, across[p], weight[q])
            take_product(row, across[q], weight[p])
    sandwich(order, transition, links, 1, information, found, work[square : 2 * square])
    for i in range(square):
        copy_row(information[i], found[i])


@compiled(fastmath=FAST, allocates=False, inner=True)
def _lay_out(later: Any) -> None:
    """Write the diagonals of Omega, and its product with the middle to the scratch `order x D`."""
    information, place = later.information, 0
    order, size = later.linear.shape[1:]
    for apart in range(order):
        for p in range(order - apart):
            copy_row(later.diagonals[place : place + size], information[p * order + p + apart])
            place += size
    for p in range(order):
        later.work[p, :] = ZERO
        for q in range(order):
            add_product(later.work[p], information[p * order + q], later.middle[q * size : (q + 1) * size])


@compiled(fastmath=FAST, allocates=False, inner=True)
def look_around(later: Any, b: Any, t: Any) -> None:
    """Weigh the particles of time bin `t` as far as all paths agree, once lambda is that of the bin."""
    _inform(later, b, t + 1)
    past, moved, middle, diagonals = later.features.past[b, t + 1], later.moved, later.middle, later.diagonals
    width, size = moved.shape[1], later.linear.shape[2]
    middle[:] = ZERO
    for k in range(past.shape[0]):
        for i in range(width):
            middle[i] += past[k, i]
    share = ONE / alike(middle[0], past.shape[0])
    for i in range(width):
        middle[i] *= share
    _lay_out(later)
    for k in range(past.shape[0]):
        row, total, place = moved[k], ZERO * middle[0], 0
        for i in range(width):
            row[i] = past[k, i] - middle[i]
        for apart in range(0, width, size):
            part, diagonal, other = ZERO * total, diagonals[place:], row[apart:]
            for i in range(width - apart):
                part += diagonal[i] * row[i] * other[i]
            total += HALF * part if apart == 0 else part
            place += width - apart
        later.own[k] = total


@compiled(fastmath=FAST, allocates=False, inner=True)
def add_scores(later: Any, path: Any, logits: Any) -> None:
    """Add the log likelihood of the bins after it, along a path, to the log weights of the particles `K`."""
    linear, moved, slope, last = later.linear[path], later.moved, later.slope, logits.shape[0] - 1
    order, size = linear.shape
    for p in range(order):
        # At the middle of the cloud, so that no digits are lost far from the origin.
        own = slope[p * size :]
        for d in range(size):
            own[d] = linear[p, d] - later.work[p, d]
    for k in range(0, logits.shape[0], 4):
        # Four at a time read the slope once.
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        first, second, third, fourth = moved[k], moved[k1], moved[k2], moved[k3]
        a, b, c, d = later.own[k], later.own[k1], later.own[k2], later.own[k3]
        a, b, c, d = logits[k] - a, logits[k1] - b, logits[k2] - c, logits[k3] - d
        for i in range(slope.shape[0]):
            a += slope[i] * first[i]
            b += slope[i] * second[i]
            c += slope[i] * third[i]
            d += slope[i] * fourth[i]
        logits[k3], logits[k2], logits[k1], logits[k] = d, c, b, a
