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
    """A `LinearMemory`: its arrays by their names there, matrices `order^2 x D` row by row, vectors `order x D`."""

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
        given = (getattr(memory, name).movedim(0, -1) for name in cls._fields)
        return cls(*(array(each.flatten(0, 1) if each.dim() == 3 else each) for each in given))


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


@compiled(fastmath=FAST, allocates=False, inner=True)
def copy_row(to: Any, row: Any) -> None:
    """Write a row to another."""
    # An assignment of a slice would make an array.
    for d in range(to.shape[0]):
        to[d] = row[d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def add_product(total: Any, a: Any, b: Any) -> None:
    """Add the products of two rows."""
    for d in range(total.shape[0]):
        total[d] += a[d] * b[d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def take_product(total: Any, a: Any, b: Any) -> None:
    """Subtract the products of two rows."""
    for d in range(total.shape[0]):
        total[d] -= a[d] * b[d]


@compiled(fastmath=FAST, allocates=False, inner=True)
def sandwich(order: Any, matrix: Any, links: Any, turned: Any, inner: Any, outer: Any, work: Any) -> None:
    """Add M X M^T, or M^T X M where turned, to a symmetric matrix of each feature, for a symmetric X.

    Args:
        order: of the matrices.
        matrix: M, `order^2 x D`, as all others, row by row.
        links: row and column of what of it is not zero, `(some) x 2`.
        turned: 1 or 0.
        inner: X.
        outer: added to.
        work: scratch.
    """
    side = 1 if turned else 0
    work[:] = ZERO
    for i in range(links.shape[0]):
        row, column = links[i, side], links[i, 1 - side]
        entry = matrix[links[i, 0] * order + links[i, 1]]
        for j in range(order):
            add_product(work[row * order + j], entry, inner[column * order + j])
    for i in range(links.shape[0]):
        row, column = links[i, side], links[i, 1 - side]
        entry = matrix[links[i, 0] * order + links[i, 1]]
        for j in range(row, order):
            add_product(outer[j * order + row], entry, work[j * order + column])
    for i in range(order):
        for j in range(i):
            copy_row(outer[j * order + i], outer[i * order + j])


@compiled(fastmath=FAST, allocates=False)
def _fill(system: Any, links: Any, present: Any, laws: Any, work: Any) -> None:
    """Write the laws `B x T x rows x D` of recordings; scratch is `(order^2 + order) x D`."""
    order = system.drive.shape[0]
    square, at = order * order, places(order)
    for b in range(laws.shape[0]):
        for t in range(laws.shape[1]):
            law, column = laws[b, t], work[square:]
            ahead, after = law[at.ahead : at.covariance], law[at.covariance : at.end]
            for i in range(square):
                copy_row(ahead[i], system.noise[i])
                copy_row(after[i], system.before_covariance[i])
            before = after if t == 0 else laws[b, t - 1, at.covariance : at.end]
            sandwich(order, system.transition, links, 0, before, ahead, work[:square])
            copy_row(law[0], system.variance)
            for i in range(order):
                column[i, :] = ZERO
                for j in range(order):
                    add_product(column[i], ahead[i * order + j], system.readout[j])
                add_product(law[0], column[i], system.readout[i])
            for d in range(law.shape[1]):
                variance = law[0, d]
                law[0, d] = present[b, t, d] / variance
                law[1, d] = -HALF * present[b, t, d] * (log(variance) + alike(variance, _LOG_2_PI))
            for i in range(order):
                law[at.gain + i, :] = ZERO
                add_product(law[at.gain + i], column[i], law[0])
                for j in range(order):
                    copy_row(after[i * order + j], ahead[i * order + j])
                    take_product(after[i * order + j], law[at.gain + i], column[j])


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
