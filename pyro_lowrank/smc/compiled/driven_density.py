r"""The log density of recordings given what drives features that remember, and its gradient, in compiled loops.

With surprises e of variance S, means m of the state before a bin and m' after it (see `laws`), and what is sought
weighed by omega for each path and bin, the adjoint goes backwards through

    e = y - b - w . m - d x,    m' = A m + B x + K e,    ahead = A P A^T + Q,    P' = ahead - K (ahead H)^T,

with one adjoint of P for all paths, since P does not depend on them. Loops run over the features of all paths, side by
side: M of them. Trials that share their laws come one after the other at each time bin, others one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
def _forward(system: Any, links: Any, laws: Any, y: Any, driven: Any, means: Any, surprises: Any) -> None:
    """Write the surprises of each bin and the means of the state.

    Args:
        system: the linear system, of M features, as all that follows.
        links: of it, see `laws.links_of`.
        laws: of the recordings, `groups x T x rows x M`, the rows up to K.
        y: the recordings, `trials x groups x T x M`.
        driven: what drives features, likewise.
        means: of the state before each bin and after the last, `trials x groups x (T + 1) x order x M`; written to.
        surprises: `trials x groups x T x M`; written to.
    """
    order, size = system.drive.shape
    gain = places(order).gain
    for n in range(driven.shape[0]):
        for g in range(driven.shape[1]):
            surprise, drive = surprises[n, g], driven[n, g]
            for p in range(order):
                copy_row(means[n, g, 0], p, system.before_mean, p)
            for t in range(driven.shape[2]):
                law, mean, after = laws[g, t], means[n, g, t], means[n, g, t + 1]
                for d in range(size):
                    surprise[t, d] = y[n, g, t, d] - system.baseline[0, d] - system.slope[0, d] * drive[t, d]
                for p in range(order):
                    take_product(surprise, t, system.weight, p, mean, p)
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
        wide: adjoints of the linear system as paths ask for them, of M features; added to.
        system: as the covariance does, of D features; likewise.
        state: of the state after a bin, then before it, `trials x order x M`.
        covariance: of its covariance, likewise, `order^2 x D`.
        columns: of K in a bin, `order x M`.
        column: of K, then of ahead H, `order x D`.
        variances: of S in a bin, `1 x M`.
        variance: that of all paths, `1 x D`.
        room: scratch, `(order + 2) x M`.
        work: scratch, `2 order^2 x D`.
    """

    wide: Any
    system: Any
    state: Any
    covariance: Any
    columns: Any
    column: Any
    variances: Any
    variance: Any
    room: Any
    work: Any


@compiled(fastmath=FAST, allocates=False, inner=True)
def _pull_path(
    system: Any, links: Any, law: Any, means: Any, surprise: Any, driven: Any, t: Any, up: Any, own: Any, found: Any
) -> None:
    """Pull the adjoint of a trial's states back through a bin, whose log density is weighed by `up`.

    Args:
        system: the linear system, of M features, as all that follows.
        links: of it, see `laws.links_of`.
        law: of the bin.
        means: of the state before each bin and after the last, `(T + 1) x order x M`.
        surprise: of each bin, `T x M`.
        driven: what drives features, `T x M`; its adjoint is written to it.
        t: the bin.
        up: `T x M`.
        own: the adjoint, `order x M`.
        found: the adjoints.
    """
    order, size = own.shape
    mean, after, sums, work, gain = means[t], means[t + 1], found.wide, found.room, places(order).gain
    # Rows of the scratch: the adjoint of the state before the bin is seen, that of the surprise, and its share of it.
    told, both = order, order + 1
    for d in range(size):
        precise = surprise[t, d] * law[0, d]
        work[told, d] = -up[t, d] * precise
        found.variances[0, d] += HALF * up[t, d] * (precise * precise - law[0, d])
    for p in range(order):
        add_product(found.columns, p, own, p, surprise, t)
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
def _add_up(wide: Any, narrow: Any) -> None:
    """Write the sums of rows of M features over paths, `(some) x D`."""
    size = narrow.shape[1]
    for p in range(narrow.shape[0]):
        narrow[p, :] = ZERO
        for start in range(0, wide.shape[1], size):
            for d in range(size):
                narrow[p, d] += wide[p, np.uintp(start + d)]


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
def _backward(
    wide: Any,
    system: Any,
    links: Any,
    wide_laws: Any,
    laws: Any,
    means: Any,
    surprises: Any,
    driven: Any,
    up: Any,
    found: Any,
) -> None:
    """Write the adjoint of what drives to it, and add up those of the system; see `_forward`.

    Args beside those:
        wide: the linear system, of M features; `system`, of D.
        wide_laws: likewise, and `laws`.
        up: the weights, `trials x groups x T x M`.
        found: the adjoints.
    """
    order, covariance = system.drive.shape[0], places(system.drive.shape[0]).covariance
    for g in range(driven.shape[1]):
        found.state[:] = ZERO
        found.covariance[:] = ZERO
        for t in range(driven.shape[2] - 1, -1, -1):
            found.columns[:] = ZERO
            found.variances[:] = ZERO
            for n in range(driven.shape[0]):
                along = means[n, g], surprises[n, g], driven[n, g], t, up[n, g], found.state[n]
                _pull_path(wide, links, wide_laws[g, t], *along, found)
            _add_up(found.columns, found.column)
            _add_up(found.variances, found.variance)
            _pull_gain(system, laws[g, t], found)
            if t > 0:
                _pull_ahead(system, links, laws[g, t - 1], covariance, found)
            else:
                _pull_ahead(system, links, system.before_covariance, 0, found)
        for n in range(driven.shape[0]):
            for p in range(order):
                for d in range(found.state.shape[2]):
                    found.wide.before_mean[p, d] += found.state[n, p, d]
        for p in range(order * order):
            for d in range(system.drive.shape[1]):
                found.system.before_covariance[p, d] += found.covariance[p, d]


# Type checkers do not see through arguments that are unpacked.
_pull_back: Any = _backward


class _Density(torch.autograd.Function):
    """Log densities of paths and their gradient."""

    @staticmethod
    def forward(ctx: Any, emission: DrivenEmission, seen: Observed, read: Tensor, *given: Tensor) -> Tensor:
        """Return log densities `paths x trials x time` for what is read from paths, `paths x trials x time x D`."""
        system, y, growth = System.of(emission.memory), array(seen.y), None
        laws, driven = laws_of(system, array(seen.present)), array(read.detach().movedim(0, 2))
        if isinstance(emission.drive, RateDrive):
            driven = driven.copy()
            growth = np.empty_like(driven)
            _drive(driven.reshape(-1), growth.reshape(-1))
        trials, steps, paths, size = driven.shape
        order = len(system.drive)
        # Trials that share their laws, or groups of one.
        grouped = (trials, 1, steps) if len(laws) == 1 else (1, trials, steps)
        wide = System(*(np.tile(part, paths) for part in system))
        # The rows up to K.
        wide_laws = np.tile(laws[:, :, : 2 + order], paths)
        means = np.empty((*grouped[:2], steps + 1, order, paths * size), driven.dtype)
        driven, surprises = driven.reshape(*grouped, -1), np.empty((*grouped, paths * size), driven.dtype)
        links = links_of(system)
        _forward(wide, links, wide_laws, np.tile(y, paths).reshape(driven.shape), driven, means, surprises)
        found = wide_laws[:, :, 1] - 0.5 * wide_laws[:, :, 0] * np.square(surprises)
        ctx.shapes = {name: part.shape for name, part in zip(_GIVEN, given, strict=True)}
        ctx.kept = (wide, system, links, wide_laws, laws, means, surprises), driven, growth
        return torch.from_numpy(found.reshape(trials, steps, paths, size).sum(-1)).movedim(-1, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what is read and of the linear system."""
        # `once_differentiable` does not tell where nothing but the outcome is differentiated again.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The compiled density of observations that remember has first derivatives alone: for others pass "
                'backend="plain".'
            )
        return _Density._pull(ctx, grad_outputs[0])

    @staticmethod
    def _pull(ctx: Any, weighed: Tensor) -> tuple[Tensor | None, ...]:
        known, driven, growth = ctx.kept
        wide, system = known[:2]
        (order, size), width = system.drive.shape, driven.shape[-1]
        up = np.repeat(array(weighed.movedim(0, -1)), size, -1).reshape(driven.shape)

        def room(*shape: int) -> Any:
            return np.empty(shape, driven.dtype)

        found = _Adjoints(
            wide=System(*map(np.zeros_like, wide)),
            system=System(*map(np.zeros_like, system)),
            state=room(len(driven), order, width),
            covariance=room(order * order, size),
            columns=room(order, width),
            column=room(order, size),
            variances=room(1, width),
            variance=room(1, size),
            room=room(order + 2, width),
            work=room(2 * order * order, size),
        )
        pushed = driven.copy()
        _pull_back(*known, pushed, up, found)
        paths = width // size
        read = pushed.reshape(-1, driven.shape[2], paths, size)
        read = read if growth is None else read * growth
        sums = {
            name: own + theirs.reshape(-1, paths, size).sum(1)
            for name, own, theirs in zip(System._fields, found.system, found.wide, strict=True)
        }
        given = (torch.from_numpy(sums[name]).mT.reshape(shape) for name, shape in ctx.shapes.items())
        return None, None, torch.from_numpy(read).movedim(2, 0), *given


def log_densities(emission: DrivenEmission, seen: Observed, read: Tensor) -> Tensor:
    """Return the log density of each bin given the path and what came before, `paths x trials x time`, in nats.

    Args:
        emission: what remembers.
        seen: the recording, `trials x time x features`.
        read: what is read from paths, `paths x trials x time x features`.
    """
    found: Tensor = _Density.apply(emission, seen, read, *(getattr(emission.memory, name) for name in _GIVEN))
    return found
