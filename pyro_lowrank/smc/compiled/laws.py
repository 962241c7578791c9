r"""The linear system of each feature in compiled loops: how time bins are taken in, side by side for all features.

The letters are those of `observations.linear_memory`; the features are the last dim, so that loops run over neighbours.
Rows of the laws of a time bin, of order P, are

    1 / S or zero where missing, -log(2 pi S) / 2 or zero, K (P), ahead (P * P), covariance (P * P)

with the variance S of the observation given the past and the latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO, alike, log
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.observations.linear_memory import LinearMemory

_LOG_2_PI = 1.8378770664093453


class System(NamedTuple):
    """A `LinearMemory`: its arrays by their names there, rows of `order^2 x D`, `order x D` or `1 x D`."""

    transition: Any
    drive: Any
    noise: Any
    readout: Any
    through: Any
    variance: Any
    baseline: Any
    before_mean: Any
    before_covariance: Any
    weight: Any
    slope: Any

    @classmethod
    def of(cls, memory: LinearMemory) -> System:
        """Return the arrays of a linear system."""
        given = (getattr(memory, name) for name in cls._fields)
        return cls(*(array(each.reshape(len(each), -1).mT) for each in given))


class Places(NamedTuple):
    """The first rows of each part of a time bin's laws."""

    gain: Any
    ahead: Any
    covariance: Any
    end: Any


@compiled(inline=True, allocates=False, inner=True)
def places(order: Any) -> Any:
    """Return where the parts of a law are, of a system of an order."""
    ahead = 2 + order
    return Places(2, ahead, ahead + order * order, ahead + 2 * order * order)


# Arrays with the number of a row in place of the row: slices take four times as long to compile.


@compiled(fastmath=FAST, allocates=False, inner=True)
def copy_row(to: Any, i: Any, rows: Any, j: Any) -> None:
    """Write a row to another, `(some) x D` both."""
    for d in range(to.shape[1]):
        to[i, d] = rows[j, d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def add_product(total: Any, i: Any, a: Any, j: Any, b: Any, k: Any) -> None:
    """Add the product of two rows to a third."""
    for d in range(total.shape[1]):
        total[i, d] += a[j, d] * b[k, d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def take_product(total: Any, i: Any, a: Any, j: Any, b: Any, k: Any) -> None:
    """Subtract the product of two rows from a third."""
    for d in range(total.shape[1]):
        total[i, d] -= a[j, d] * b[k, d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def sandwich(
    order: Any, matrix: Any, links: Any, turned: Any, inner: Any, at: Any, outer: Any, to: Any, work: Any
) -> None:
    """Add M X M^T, or M^T X M where turned, to a symmetric matrix of each feature, for a symmetric X.

    Args:
        order: of the matrices.
        matrix: M, `order^2 x D`, row by row, as X and what is added to are.
        links: row and column of what of it is not zero, `(some) x 2`.
        turned: 1 or 0.
        inner: holds X.
        at: its first row there.
        outer: added to.
        to: the first row there.
        work: scratch, at least `order^2 x D`.
    """
    side = 1 if turned else 0
    work[: order * order] = ZERO
    for i in range(links.shape[0]):
        row, column, entry = links[i, side], links[i, 1 - side], links[i, 0] * order + links[i, 1]
        for j in range(order):
            add_product(work, row * order + j, matrix, entry, inner, at + column * order + j)
    for i in range(links.shape[0]):
        row, column, entry = links[i, side], links[i, 1 - side], links[i, 0] * order + links[i, 1]
        for j in range(row, order):
            add_product(outer, to + j * order + row, matrix, entry, work, j * order + column)
    for i in range(order):
        for j in range(i):
            copy_row(outer, to + j * order + i, outer, to + i * order + j)


@compiled(fastmath=FAST, allocates=False)
def _fill(system: Any, links: Any, present: Any, laws: Any, work: Any) -> None:
    """Write the laws `B x T x rows x D` of recordings; scratch is `(order^2 + order) x D`."""
    order = system.drive.shape[0]
    square, at = order * order, places(order)
    for b in range(laws.shape[0]):
        for t in range(laws.shape[1]):
            law, last = laws[b, t], laws[b, max(t - 1, 0)]
            for i in range(square):
                copy_row(law, at.ahead + i, system.noise, i)
                if t == 0:
                    copy_row(law, at.covariance + i, system.before_covariance, i)
            sandwich(order, system.transition, links, 0, last, at.covariance, law, at.ahead, work)
            copy_row(law, 0, system.variance, 0)
            for i in range(order):
                work[square + i, :] = ZERO
                for j in range(order):
                    add_product(work, square + i, law, at.ahead + i * order + j, system.readout, j)
                add_product(law, 0, work, square + i, system.readout, i)
            for d in range(law.shape[1]):
                variance = law[0, d]
                law[0, d] = present[b, t, d] / variance
                law[1, d] = -HALF * present[b, t, d] * (log(variance) + alike(variance, _LOG_2_PI))
            for i in range(order):
                law[at.gain + i, :] = ZERO
                add_product(law, at.gain + i, work, square + i, law, 0)
                for j in range(order):
                    copy_row(law, at.covariance + i * order + j, law, at.ahead + i * order + j)
                    take_product(law, at.covariance + i * order + j, law, at.gain + i, work, square + j)


def laws_of(system: System, present: Any) -> Any:
    """Return the laws of recordings, `B x T x rows x D`, with entries present (1) or missing (0), `B x T x D`.

    Trials of which nothing is missing share theirs: then B is 1.
    """
    order, size = system.drive.shape
    shared = present[:1] if present.all() else present
    laws = np.empty((*shared.shape[:2], 2 + order + 2 * order * order, size), present.dtype)
    _fill(system, links_of(system), shared, laws, np.empty((order * order + order, size), present.dtype))
    return laws


def links_of(system: System) -> Any:
    """Return rows and columns of the transition in which any feature has anything but zero, `(some) x 2`."""
    order = len(system.drive)
    return np.ascontiguousarray(np.argwhere(system.transition.any(-1).reshape(order, order)))
