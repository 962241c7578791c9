r"""The log density of recordings given what drives features that remember, and its gradient, in compiled loops.

With surprises e of variance S, means m of the state before a bin and m' after it (see `laws`), and what is sought
weighed by omega for each path and bin, the adjoint goes backwards through

    e = y - b - w . m - d x,    m' = A m + B x + K e,    ahead = A P A^T + Q,    P' = ahead - K (ahead H)^T,

with one adjoint of P for all paths, since P does not depend on them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO, softplus_and_slope
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.observations.driven import DrivenEmission, RateDrive
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.compiled.laws import (
    System,
    add_product,
    copy_row,
    laws_of,
    links_of,
    places,
    sandwich,
    take_product,
)

_GIVEN = System._fields[:-2]
"""What the density depends on: the weight and the slope follow."""


@compiled(fastmath=FAST, allocates=False)
def _drive(read: Any, growth: Any) -> None:
    """Turn what is read into rates, and write how these grow with it; both flat."""
    for i in range(read.shape[0]):
        read[i], growth[i] = softplus_and_slope(read[i])


@compiled(fastmath=FAST, allocates=False)
def _forward(system: Any, links: Any, laws: Any, y: Any, driven: Any, means: Any, surprises: Any, found: Any) -> None:
    """Write the log density of each bin and what its gradient needs.

    Args:
        system: the linear system.
        links: of it, see `laws.links_of`.
        laws: of the recordings.
        y: the recordings, `B x T x D`.
        driven: what drives features, `paths x B x T x D`.
        means: of the state before each bin and after the last, `paths x B x (T + 1) x order x D`; written to, as
            is the rest.
        surprises: likewise, `paths x B x T x D`.
        found: log densities, `paths x B x T`.
    """
    order, steps, size = system.drive.shape[0], y.shape[1], y.shape[2]
    gain = places(order).gain
    for n in range(driven.shape[0]):
        for b in range(y.shape[0]):
            surprise, drive = surprises[n, b], driven[n, b]
            for p in range(order):
                copy_row(means[n, b, 0], p, system.before_mean, p)
            for t in range(steps):
                law, mean, after = laws[min(b, laws.shape[0] - 1), t], means[n, b, t], means[n, b, t + 1]
                for d in range(size):
                    surprise[t, d] = y[b, t, d] - system.baseline[0, d] - system.slope[0, d] * drive[t, d]
                for p in range(order):
                    take_product(surprise, t, system.weight, p, mean, p)
                total = ZERO * law[0, 0]
                for d in range(size):
                    total += law[1, d] - HALF * law[0, d] * surprise[t, d] * surprise[t, d]
                found[n, b, t] = total
                for p in range(order):
                    after[p, :] = ZERO
                    add_product(after, p, system.drive, p, drive, t)
                    add_product(after, p, law, gain + p, surprise, t)
                for i in range(links.shape[0]):
                    p, q = links[i, 0], links[i, 1]
                    add_product(after, p, system.transition, p * order + q, mean, q)


class _Adjoints(NamedTuple):
    """What is sought, and arrays that it is worked out in.

    Attributes:
        system: adjoints of the linear system, added to.
        state: of the state after a bin, then before it, `paths x order x D`.
        covariance: of its covariance, likewise, `order^2 x D`.
        column: of K, then of ahead H, in a bin, `order x D`.
        variance: of S in a bin, `1 x D`.
        work: scratch, `(2 order^2 + order + 2) x D`.
    """

    system: Any
    state: Any
    covariance: Any
    column: Any
    variance: Any
    work: Any


@compiled(fastmath=FAST, allocates=False, inner=True)
def _pull_path(
    system: Any, links: Any, law: Any, means: Any, surprise: Any, driven: Any, t: Any, up: Any, own: Any, found: Any
) -> None:
    """Pull the adjoint of a path's state back through a bin, whose log density is weighed by `up`.

    Args:
        system: the linear system.
        links: of it, see `laws.links_of`.
        law: of the bin.
        means: of the state before each bin and after the last, `(T + 1) x order x D`.
        surprise: of each bin, `T x D`.
        driven: what drives features, `T x D`; its adjoint is written to it.
        t: the bin.
        up: a number.
        own: the adjoint, `order x D`.
        found: the adjoints.
    """
    order, size = own.shape
    mean, after, sums, work, gain = means[t], means[t + 1], found.system, found.work, places(order).gain
    # Rows of the scratch: the adjoint of the state before the bin is seen, that of the surprise, and its share of it.
    told, both = order, order + 1
    for d in range(size):
        precise = surprise[t, d] * law[0, d]
        work[told, d] = -up * precise
        found.variance[0, d] += HALF * up * (precise * precise - law[0, d])
    for p in range(order):
        add_product(found.column, p, own, p, surprise, t)
        add_product(work, told, own, p, law, gain + p)
    for d in range(size):
        sums.baseline[0, d] -= work[told, d]
        work[both, d] = work[told, d] * surprise[t, d]
    take_product(sums.through, 0, work, told, driven, t)
    for p in range(order):
        copy_row(work, p, own, p)
        take_product(work, p, work, told, system.readout, p)
        add_product(sums.drive, p, work, p, driven, t)
        # Before the bin is seen its mean is that after it less what was seen.
        take_product(sums.readout, p, work, told, after, p)
        add_product(sums.readout, p, work, both, law, gain + p)
        for q in range(order):
            add_product(sums.transition, p * order + q, work, p, mean, q)
    driven[t, :] = ZERO
    take_product(driven, t, work, told, system.through, 0)
    for p in range(order):
        add_product(driven, t, system.drive, p, work, p)
        own[p, :] = ZERO
    for i in range(links.shape[0]):
        p, q = links[i, 0], links[i, 1]
        add_product(own, q, system.transition, p * order + q, work, p)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _pull_gain(system: Any, law: Any, found: Any) -> None:
    """Turn the adjoints of K and S into that of ahead, in place of that of the covariance after the bin."""
    order, size = system.drive.shape
    parts, own, column, variance, sums, work = (
        places(order),
        found.covariance,
        found.column,
        found.variance,
        found.system,
        found.work,
    )
    for p in range(order):
        work[p, :] = ZERO
        for q in range(order):
            add_product(work, p, own, p * order + q, law, parts.gain + q)
        for d in range(size):
            column[p, d] *= law[0, d]
            variance[0, d] += law[parts.gain + p, d] * (work[p, d] - column[p, d])
    for d in range(size):
        sums.variance[0, d] += variance[0, d]
    for p in range(order):
        for d in range(size):
            column[p, d] += variance[0, d] * system.readout[p, d] - work[p, d] - work[p, d]
    for p in range(order):
        # What S takes from ahead H, beside what this takes from ahead.
        work[p, :] = ZERO
        for q in range(order):
            add_product(work, p, law, parts.ahead + p * order + q, system.readout, q)
            add_product(sums.readout, p, law, parts.ahead + p * order + q, column, q)
        add_product(sums.readout, p, variance, 0, work, p)
        for q in range(order):
            entry = p * order + q
            for d in range(size):
                both = column[p, d] * system.readout[q, d] + column[q, d] * system.readout[p, d]
                own[entry, d] += HALF * both
                sums.noise[entry, d] += own[entry, d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def _pull_ahead(system: Any, links: Any, before: Any, at: Any, found: Any) -> None:
    """Pull the adjoint of ahead back to the covariance before the bin, which the rows of `before` from `at` on hold."""
    order, own, work, sums = system.drive.shape[0], found.covariance, found.work, found.system
    square = order * order
    work[: 2 * square] = ZERO
    for i in range(links.shape[0]):
        p, q = links[i, 0], links[i, 1]
        for j in range(order):
            # The transition stands on both sides.
            for _ in range(2):
                add_product(work, p * order + j, system.transition, p * order + q, before, at + q * order + j)
    for i in range(order):
        for j in range(order):
            for k in range(order):
                add_product(sums.transition, i * order + j, own, i * order + k, work, k * order + j)
    sandwich(order, system.transition, links, 1, own, 0, work, square, work)
    for i in range(square):
        copy_row(own, i, work, square + i)


@compiled(fastmath=FAST, allocates=False)
def _backward(system: Any, links: Any, laws: Any, means: Any, surprises: Any, driven: Any, up: Any, found: Any) -> None:
    """Write the adjoint of what drives to it, and add up those of the system; see `_forward`.

    Args beside those:
        up: the weights, `paths x B x T`.
        found: the adjoints.
    """
    paths, trials, steps = up.shape
    order, size = system.drive.shape
    covariance, sums = places(order).covariance, found.system
    for b in range(trials):
        found.state[:] = ZERO
        found.covariance[:] = ZERO
        for t in range(steps - 1, -1, -1):
            law = laws[min(b, laws.shape[0] - 1)]
            found.column[:] = ZERO
            found.variance[:] = ZERO
            for n in range(paths):
                along = means[n, b], surprises[n, b], driven[n, b], t, up[n, b, t], found.state[n]
                _pull_path(system, links, law[t], *along, found)
            _pull_gain(system, law[t], found)
            if t > 0:
                _pull_ahead(system, links, law[t - 1], covariance, found)
            else:
                _pull_ahead(system, links, system.before_covariance, 0, found)
        for n in range(paths):
            for p in range(order):
                for d in range(size):
                    sums.before_mean[p, d] += found.state[n, p, d]
        for p in range(order * order):
            for d in range(size):
                sums.before_covariance[p, d] += found.covariance[p, d]


class _Density(torch.autograd.Function):
    """Log densities of paths and their gradient."""

    @staticmethod
    def forward(ctx: Any, emission: DrivenEmission, seen: Observed, read: Tensor, *given: Tensor) -> Tensor:
        """Return log densities `paths x trials x time` for what is read from paths, `paths x trials x time x D`."""
        system, y = System.of(emission.memory), array(seen.y)
        laws, growth, driven = laws_of(system, array(seen.present)), None, array(read)
        if isinstance(emission.drive, RateDrive):
            driven = driven.copy()
            growth = np.empty_like(driven)
            _drive(driven.reshape(-1), growth.reshape(-1))
        paths, trials, steps, _ = driven.shape
        means = np.empty((paths, trials, steps + 1, *system.drive.shape), driven.dtype)
        surprises, found = np.empty_like(driven), np.empty(driven.shape[:-1], driven.dtype)
        _forward(system, links_of(system), laws, y, driven, means, surprises, found)
        ctx.shapes = {name: part.shape for name, part in zip(_GIVEN, given, strict=True)}
        ctx.kept = system, laws, driven, growth, means, surprises
        return torch.from_numpy(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what is read and of the linear system."""
        system, laws, driven, growth, means, surprises = ctx.kept
        order, size = system.drive.shape
        square = order * order

        def room(*shape: int) -> Any:
            return np.empty((*shape, size), driven.dtype)

        sums = System(*map(np.zeros_like, system))
        state, work = room(len(driven), order), room(2 * square + order + 2)
        found, pushed = _Adjoints(sums, state, room(square), room(order), room(1), work), driven.copy()
        known = links_of(system), laws, means, surprises
        _backward(system, *known, pushed, array(grad_outputs[0]), found)
        read = torch.from_numpy(pushed if growth is None else pushed * growth)
        given = (torch.from_numpy(getattr(sums, name)).mT.reshape(shape) for name, shape in ctx.shapes.items())
        return None, None, read, *given


def log_densities(emission: DrivenEmission, seen: Observed, read: Tensor) -> Tensor:
    """Return the log density of each bin given the path and what came before, `paths x trials x time`, in nats.

    Args:
        emission: what remembers.
        seen: the recording, `trials x time x features`.
        read: what is read from paths, `paths x trials x time x features`.
    """
    found: Tensor = _Density.apply(emission, seen, read, *(getattr(emission.memory, name) for name in _GIVEN))
    return found
