r"""What later bins say of particles that remember the latents, while paths are drawn backwards, in compiled loops.

Given the later part of a path, the log likelihood of the bins after one is quadratic in what a particle remembers, m,

    lambda . m - m . Omega m / 2,

and with the law of the bin after it (see `laws`), w the weight, x what drives features there and e = y - b - d x,

    Omega = w w^T / S + Phi^T Omega' Phi,    Phi = A - K w^T,
    lambda = w e / S + Phi^T (lambda' - Omega' (B x + K e)).

Omega does not depend on the path, and like the laws it is the same for all trials of which nothing is missing.
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
        information: Omega of the bins from each on, `B x (T + 1) x order^2 x D`; B is that of the laws.
        diagonals: of Omega on and above its own, one after the other, `order (order + 1) / 2 x D`, flat.
        middle: the mean of what particles remember, `order x D`.
        slope: at the middle, likewise, flat.
        moved: what particles remember less their mean, `K x (order * D)`.
        own: what of the log likelihood all paths share, `K`.
        work: scratch, `(2 order + 3) x D`.
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
    particles, order, size = features.past.shape[2:]

    def room(*shape: int) -> Any:
        return np.empty(shape, features.past.dtype)

    square, laws = order * order, features.laws
    information = room(len(laws), laws.shape[1] + 1, square, size)
    _inform(features, order, information, room(square + 2 * order + 1, size))
    return ToCome(
        features,
        rates,
        room(num_paths, order, size),
        information,
        room(order * (order + 1) // 2 * size),
        room(order, size),
        room(order * size),
        room(particles, order * size),
        room(particles),
        room(2 * order + 3, size),
    )


@compiled(fastmath=FAST, allocates=False)
def _inform(features: Any, order: Any, information: Any, work: Any) -> None:
    """Write Omega of all bins; scratch is `(order^2 + 2 order + 1) x D`."""
    parameters, links, square, gain = features.parameters, features.links, order * order, places(order).gain
    # Rows of the scratch beside a matrix: Omega K, then A^T of it; and what the weight's square counts.
    seen, across, told = square, square + order, square + 2 * order
    for b in range(information.shape[0]):
        information[b, features.laws.shape[1]] = ZERO
        for t in range(features.laws.shape[1] - 1, -1, -1):
            law, later, found = features.laws[b, t], information[b, t + 1], information[b, t]
            copy_row(work, told, law, 0)
            for p in range(order):
                work[seen + p, :] = ZERO
                work[across + p, :] = ZERO
                for q in range(order):
                    add_product(work, seen + p, later, p * order + q, law, gain + q)
                add_product(work, told, work, seen + p, law, gain + p)
            for i in range(links.shape[0]):
                p, q = links[i, 0], links[i, 1]
                add_product(work, across + q, parameters, 2 + 2 * order + p * order + q, work, seen + p)
            for p in range(order):
                for q in range(p + 1):
                    row = p * order + q
                    for d in range(work.shape[1]):
                        found[row, d] = work[told, d] * parameters[2 + p, d] * parameters[2 + q, d]
                    take_product(found, row, work, across + p, parameters, 2 + q)
                    take_product(found, row, work, across + q, parameters, 2 + p)
            sandwich(order, parameters[2 + 2 * order :], links, 1, later, 0, found, 0, work)


@compiled(fastmath=FAST, allocates=False, inner=True)
def forget(later: Any) -> None:
    """Begin at the end of a trial."""
    later.linear[:] = ZERO


@compiled(fastmath=FAST, allocates=False, inner=True)
def look_back(later: Any, b: Any, t: Any, path: Any, z: Any) -> None:
    """Take in time bin `t` with the latents of a path there: lambda becomes that of the bin before."""
    features, linear, work, parameters = later.features, later.linear[path], later.work, later.features.parameters
    law, order, links = features.laws[min(b, features.laws.shape[0] - 1), t], linear.shape[0], features.links
    gain, offset, y = places(order).gain, features.offset[b, t], features.y[b, t]
    information = later.information[min(b, features.laws.shape[0] - 1), t + 1]
    # Rows of the scratch: what drives, the surprise, what it says, then the push and what is left of lambda.
    push, rest = 3, 3 + order
    for d in range(y.shape[0]):
        work[0, d] = offset[d]
    for r in range(z.shape[0]):
        for d in range(y.shape[0]):
            work[0, d] += features.weight[r, d] * z[r]
    if later.rates:
        for d in range(y.shape[0]):
            work[0, d], _ = softplus_and_slope(work[0, d])
    for d in range(y.shape[0]):
        work[1, d] = y[d] - parameters[1, d] - parameters[0, d] * work[0, d]
        work[2, d] = work[1, d] * law[0, d]
    for p in range(order):
        work[push + p, :] = ZERO
        add_product(work, push + p, parameters, 2 + order + p, work, 0)
        add_product(work, push + p, law, gain + p, work, 1)
    for p in range(order):
        copy_row(work, rest + p, linear, p)
        for q in range(order):
            take_product(work, rest + p, information, p * order + q, work, push + q)
        take_product(work, 2, law, gain + p, work, rest + p)
    for p in range(order):
        linear[p, :] = ZERO
        add_product(linear, p, parameters, 2 + p, work, 2)
    for i in range(links.shape[0]):
        p, q = links[i, 0], links[i, 1]
        add_product(linear, q, parameters, 2 + 2 * order + p * order + q, work, rest + p)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _lay_out(later: Any, information: Any) -> None:
    """Write the diagonals of Omega, and its product with the middle to the scratch `order x D`."""
    diagonals, place = later.diagonals, 0
    order, size = later.linear.shape[1:]
    for apart in range(order):
        for p in range(order - apart):
            row = p * order + p + apart
            for d in range(size):
                diagonals[np.uintp(place + d)] = information[row, d]
            place += size
    for p in range(order):
        later.work[p, :] = ZERO
        for q in range(order):
            add_product(later.work, p, information, p * order + q, later.middle, q)


@compiled(fastmath=FAST, allocates=False, inner=True)
def look_around(later: Any, b: Any, t: Any) -> None:
    """Weigh the particles of time bin `t` as far as all paths agree, once lambda is that of the bin."""
    past, moved, middle, diagonals = later.features.past[b, t + 1], later.moved, later.middle, later.diagonals
    particles, order, size = past.shape
    share = ONE / alike(middle[0, 0], particles)
    for p in range(order):
        middle[p, :] = ZERO
        for k in range(particles):
            for d in range(size):
                middle[p, d] += past[k, p, d] * share
    _lay_out(later, later.information[min(b, later.information.shape[0] - 1), t + 1])
    for k in range(particles):
        total, place = ZERO * share, 0
        for p in range(order):
            for d in range(size):
                moved[k, np.uintp(p * size + d)] = past[k, p, d] - middle[p, d]
        for apart in range(order):
            part, reach = ZERO * share, apart * size
            for i in range(moved.shape[1] - reach):
                part += diagonals[np.uintp(place + i)] * moved[k, i] * moved[k, np.uintp(reach + i)]
            total += HALF * part if apart == 0 else part
            place += moved.shape[1] - reach
        later.own[k] = total


@compiled(fastmath=FAST, allocates=False, inner=True)
def add_scores(later: Any, path: Any, logits: Any) -> None:
    """Add the log likelihood of the bins after it, along a path, to the log weights of the particles `K`."""
    linear, moved, slope, last = later.linear[path], later.moved, later.slope, logits.shape[0] - 1
    order, size = linear.shape
    for p in range(order):
        for d in range(size):
            # At the middle of the cloud, so that no digits are lost far from the origin.
            slope[np.uintp(p * size + d)] = linear[p, d] - later.work[p, d]
    for k in range(0, logits.shape[0], 4):
        # Four at a time read the slope once.
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        a, b, c, d = later.own[k], later.own[k1], later.own[k2], later.own[k3]
        a, b, c, d = logits[k] - a, logits[k1] - b, logits[k2] - c, logits[k3] - d
        for i in range(slope.shape[0]):
            a += slope[i] * moved[k, i]
            b += slope[i] * moved[k1, i]
            c += slope[i] * moved[k2, i]
            d += slope[i] * moved[k3, i]
        logits[k3], logits[k2], logits[k1], logits[k] = d, c, b, a
