r"""What later bins say of particles that remember the latents, while paths are drawn backwards, in compiled loops.

Given the later part of a path, the log likelihood of the bins after one is quadratic in what a particle remembers, m,

    lambda . m - m . Omega m / 2,

and with the law of the bin after it (see `laws`), w the weight and x what drives features there,

    Omega = w w^T / S + Phi^T Omega' Phi,
    lambda = w (y - b - d x) / S + Phi^T (lambda' - Omega' (c x + K (y - b))).

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
        turned: Phi^T, `order x order x D`.
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
    turned: Any
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
        room(order, order, size),
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
    features, linear, work = later.features, later.linear[path], later.work
    law, order = features.laws[min(b, features.laws.shape[0] - 1), t], linear.shape[0]
    parts, driven, told = places(order), work[0], work[1]
    push, rest, deviation = work[2 : 2 + order], work[2 + order : 2 + 2 * order], work[2 + 2 * order]
    slope, baseline, weight = features.parameters[0], features.parameters[1], features.parameters[2 : 2 + order]
    copy_row(driven, features.offset[b, t])
    for r in range(z.shape[0]):
        for d in range(driven.shape[0]):
            driven[d] += features.weight[r, d] * z[r]
    if later.rates:
        for d in range(driven.shape[0]):
            driven[d], _ = softplus_and_slope(driven[d])
    for d in range(driven.shape[0]):
        deviation[d] = features.y[b, t, d] - baseline[d]
        told[d] = (deviation[d] - slope[d] * driven[d]) * law[0, d]
    for p in range(order):
        push[p, :] = ZERO
        add_product(push[p], law[parts.entering + p], driven)
        add_product(push[p], law[parts.gain + p], deviation)
    for p in range(order):
        copy_row(rest[p], linear[p])
        for q in range(order):
            take_product(rest[p], later.information[p * order + q], push[q])
    for p in range(order):
        linear[p, :] = ZERO
        add_product(linear[p], weight[p], told)
        for q in range(order):
            add_product(linear[p], law[parts.kept + q * order + p], rest[q])


@compiled(fastmath=FAST, allocates=False, inner=True)
def _inform(later: Any, b: Any, t: Any) -> None:
    """Take in time bin `t`: Omega becomes that of the bin before."""
    features, information, work = later.features, later.information, later.work
    law, order = features.laws[min(b, features.laws.shape[0] - 1), t], later.linear.shape[1]
    weight, square, kept = features.parameters[2 : 2 + order], order * order, places(order).kept
    found = work[square : 2 * square]
    for p in range(order):
        for q in range(order):
            copy_row(later.turned[p, q], law[kept + q * order + p])
            for d in range(law.shape[1]):
                found[p * order + q, d] = weight[p, d] * weight[q, d] * law[0, d]
    sandwich(later.turned, information, found, work[:square])
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
