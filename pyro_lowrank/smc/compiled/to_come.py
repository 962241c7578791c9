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
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO, softplus_and_slope
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
        moved: what particles remember less their mean, `K x order x D`.
        own: what of the log likelihood all paths share, `K`.
        turned: Phi^T, `order x order x D`.
        work: scratch, `(2 order^2 + 3 order + 3) x D`.
    """

    features: Any
    rates: Any
    linear: Any
    information: Any
    moved: Any
    own: Any
    turned: Any
    work: Any


def to_come(features: Features, rates: bool, num_paths: int) -> ToCome:
    """Return what is known at the end, where nothing is to come."""
    particles, order, size = features.past.shape[2:]

    def room(*shape: int) -> Any:
        return np.empty(shape, features.past.dtype)

    square = order * order
    return ToCome(
        features,
        rates,
        room(num_paths, order, size),
        room(square, size),
        room(particles, order, size),
        room(particles),
        room(order, order, size),
        room(2 * square + 3 * order + 3, size),
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
    slope, baseline, weight = features.parameters[0], features.parameters[1], features.parameters[2:]
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
    weight, square, kept = features.parameters[2:], order * order, places(order).kept
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
def look_around(later: Any, b: Any, t: Any) -> None:
    """Weigh the particles of time bin `t` as far as all paths agree, once lambda is that of the bin."""
    _inform(later, b, t + 1)
    past, moved, information = later.features.past[b, t + 1], later.moved, later.information
    particles, order, size = moved.shape
    middle, share = later.work[:order], ZERO * past[0, 0, 0] + past.shape[0]
    middle[:] = ZERO
    for k in range(particles):
        for p in range(order):
            for d in range(size):
                middle[p, d] += past[k, p, d]
    for p in range(order):
        for d in range(size):
            middle[p, d] /= share
    for k in range(particles):
        total = ZERO * share
        for p in range(order):
            for d in range(size):
                moved[k, p, d] = past[k, p, d] - middle[p, d]
        for p in range(order):
            for q in range(p + 1):
                part = ZERO * share
                for d in range(size):
                    part += information[p * order + q, d] * moved[k, p, d] * moved[k, q, d]
                total += HALF * part if p == q else part
        later.own[k] = total
    # The slope of each path is that at the middle of the cloud, so that no digits are lost far from the origin.
    curved = later.work[order : 2 * order]
    for p in range(order):
        curved[p, :] = ZERO
        for q in range(order):
            add_product(curved[p], information[p * order + q], middle[q])


@compiled(fastmath=FAST, allocates=False, inner=True)
def add_scores(later: Any, path: Any, logits: Any) -> None:
    """Add the log likelihood of the bins after it, along a path, to the log weights of the particles `K`."""
    linear, moved = later.linear[path], later.moved
    order, size = linear.shape
    slope, curved = later.work[2 * order : 3 * order], later.work[order : 2 * order]
    for p in range(order):
        for d in range(size):
            slope[p, d] = linear[p, d] - curved[p, d]
    for k in range(logits.shape[0]):
        total = ZERO * logits[0]
        for p in range(order):
            for d in range(size):
                total += slope[p, d] * moved[k, p, d]
        logits[k] += total - later.own[k]
