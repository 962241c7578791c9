r"""The linear system of each feature in compiled loops: how time bins are taken in, side by side for all features.

The letters are those of `observations.linear_memory`; the features are the last dim, so that loops run over neighbours.
Rows of the laws of a time bin, of order P, are

    1 / S or zero where missing, -log(2 pi S) / 2 or zero, K (P), c (P), Phi (P * P), ahead (P * P), covariance (P * P)

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
    """A `LinearMemory`: its arrays by their names there, matrices `order x order x D`, vectors `order x D`."""

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
        return cls(*(array(getattr(memory, name).movedim(0, -1)) for name in cls._fields))


class Places(NamedTuple):
    """The first rows of each part of a time bin's laws."""

    gain: Any
    entering: Any
    kept: Any
    ahead: Any
    covariance: Any
    end: Any


@compiled(inline=True, allocates=False, inner=True)
def places(order: Any) -> Any:
    """Return where the parts of a law are, of a system of an order."""
    square = order * order
    kept = 2 + 2 * order
    return Places(2, 2 + order, kept, kept + square, kept + 2 * square, kept + 3 * square)


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
def sandwich(matrix: Any, inner: Any, outer: Any, work: Any) -> None:
    """Add M X M^T to a matrix of each feature, for a symmetric X; all lie row by row in `order^2 x D`."""
    order = matrix.shape[0]
    for i in range(order):
        for j in range(order):
            work[i * order + j, :] = ZERO
            for k in range(order):
                add_product(work[i * order + j], matrix[i, k], inner[k * order + j])
    for i in range(order):
        for j in range(i + 1):
            for k in range(order):
                add_product(outer[i * order + j], work[i * order + k], matrix[j, k])
            copy_row(outer[j * order + i], outer[i * order + j])


@compiled(fastmath=FAST, allocates=False)
def _fill(system: Any, present: Any, laws: Any, work: Any) -> None:
    """Write the laws `B x T x rows x D` of recordings; scratch is `(order^2 + order) x D`."""
    order = system.drive.shape[0]
    at = places(order)
    for b in range(laws.shape[0]):
        for t in range(laws.shape[1]):
            law, column = laws[b, t], work[order * order :]
            ahead, after = law[at.ahead : at.covariance], law[at.covariance : at.end]
            for i in range(order):
                column[i, :] = ZERO
                for j in range(order):
                    copy_row(ahead[i * order + j], system.noise[i, j])
                    copy_row(after[i * order + j], system.before_covariance[i, j])
            sandwich(system.transition, after if t == 0 else laws[b, t - 1, at.covariance : at.end], ahead, work)
            copy_row(law[0], system.variance)
            for i in range(order):
                for j in range(order):
                    add_product(column[i], ahead[i * order + j], system.readout[j])
                add_product(law[0], column[i], system.readout[i])
            for d in range(law.shape[1]):
                variance = law[0, d]
                law[0, d] = present[b, t, d] / variance
                law[1, d] = -HALF * present[b, t, d] * (log(variance) + alike(variance, _LOG_2_PI))
            for i in range(order):
                gain = law[at.gain + i]
                for d in range(law.shape[1]):
                    gain[d] = column[i, d] * law[0, d]
                copy_row(law[at.entering + i], system.drive[i])
                take_product(law[at.entering + i], gain, system.slope)
                for j in range(order):
                    copy_row(law[at.kept + i * order + j], system.transition[i, j])
                    take_product(law[at.kept + i * order + j], gain, system.weight[j])
                    copy_row(after[i * order + j], ahead[i * order + j])
                    take_product(after[i * order + j], gain, column[j])


def laws_of(system: System, present: Any) -> Any:
    """Return the laws of recordings, `B x T x rows x D`, with entries present (1) or missing (0), `B x T x D`.

    Trials of which nothing is missing share theirs: then B is 1.
    """
    order, size = system.drive.shape
    shared = present[:1] if present.all() else present
    laws = np.empty((*shared.shape[:2], places.py_func(order).end, size), present.dtype)
    _fill(system, shared, laws, np.empty((order * order + order, size), present.dtype))
    return laws


def links_of(system: System) -> Any:
    """Return rows and columns of the transition in which any feature has anything but zero, `(some) x 2`."""
    return np.ascontiguousarray(np.argwhere(system.transition.any(-1)))
