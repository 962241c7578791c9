r"""The proposals of the Laplace guide, in compiled loops over particles, feature by feature.

In units of the transition noise a latent is z = m + L eta, and with C the readout's weights and B = C L a feature's
readout is x = C m + B eta + d. Gauss-Newton steps lead from eta = 0 on, as `guides.laplace` says; the last matrix of
information is P = F F^T, and

    eta = eta_K + F^{-T} e,    log weight = const - eta . eta / 2 - log det F - log q(e),

beside the likelihood, for a draw e of density q, all of one time bin. Rows of a block (see `lanes`), R latents, are

    m (R), e, then F^{-T} e (R), eta (R), a step (R), the matrix that steers it (R * R), P (R * R),

and the trail: for each step where it starts (R) and the factor of the matrix that steers it (R * R).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import overload

from pyro_lowrank.compilation import OF_A_BRANCH, compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, exp, softplus_and_slope
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.lanes import (
    WIDTH,
    at,
    cholesky,
    copy,
    fill,
    lanes_of,
    set_rows,
    solve,
    solve_transposed,
)

# The same limits as those of `CountEmission`.
_FARTHEST, _SMALLEST_SOFTPLUS = ONE * 8, -ONE * 40
_NEAR = np.float32(1e-2)


def weighing_of(num_iterations: int) -> tuple[int, ...]:
    """Return the tuple that tells, by its length, a Laplace proposal of so many steps, see `proposals`."""
    return (0,) * (3 + num_iterations)


def by_laplace(weighing: Any) -> bool:
    """Return whether a tuple, or its type while a loop is compiled, tells a Laplace proposal."""
    return len(weighing) > 3


def laplace_or(by_steps: Any, by_tables: Any) -> Any:
    """Return what is one of two functions of one time bin in compiled loops: which, their second argument tells.

    It is chosen by type, so that only the one that is used is compiled. They are plain functions: what is compiled
    by itself is optimised again at every level of calls. Their arguments must have the names that they have here.
    """

    def one_of_both(
        zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
    ) -> None:
        """Arguments as for `propose_by_laplace`."""

    @overload(one_of_both, jit_options={**OF_A_BRANCH, "fastmath": FAST}, strict=False)
    def _choose(
        zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
    ) -> Any:
        return by_steps if by_laplace(weighing) else by_tables

    return one_of_both


@compiled(inline=True, allocates=False)
def num_iterations(weighing: Any) -> Any:
    """Return how many steps such a tuple tells."""
    return len(weighing) - 3


def number_of_rows(rank: int, weighing: tuple[int, ...], others: int = 0) -> int:
    """Return how many rows a block needs, with so many others between these and the trail."""
    return 4 * rank + 2 * rank**2 + others + num_iterations(weighing) * (rank + rank**2)


@compiled(fastmath=FAST, inline=True, allocates=False)
def curvature(link: Any, x: Any, y: Any, target: Any, asked: Any) -> Any:
    """Return score, stiffness and information of a count y at readout x, then the derivatives of these by x.

    Stiffness is the mean curvature on the way to the readout `asked` for, where the rate is `target`.
    """
    if len(link) == 2:
        rate, share = softplus_and_slope(x)
        # Far to the left softplus(x) is exp(x). Both sides are computed before one is chosen: a compiler does not
        # vectorise branches around divisions.
        far = x < _SMALLEST_SOFTPLUS
        slope = share / (ONE if far else rate)
        slope = ONE if far else slope
        bend = ZERO if far else slope * (ONE - share - slope)
        by_rate = share
    else:
        held = x > asked + _FARTHEST
        rate = exp(asked + _FARTHEST if held else x)
        slope, bend, by_rate = ONE, ZERO, (ZERO if held else rate)
    score, information, pull = (y - rate) * slope, rate * slope * slope, (target - rate) * slope
    by_score = (y - rate) * bend - by_rate * slope
    by_information = slope * (by_rate * slope + (rate + rate) * bend)
    by_pull = (target - rate) * bend - by_rate * slope
    way = asked - x
    near = abs(way) < _NEAR
    safe = ONE if near else way
    stiffness = information if near else pull / safe
    by_stiffness = by_information if near else (by_pull + stiffness) / safe
    return score, stiffness, information, by_score, by_stiffness, by_information


@compiled(fastmath=FAST, inline=True, allocates=False)
def feature_of(zero: Any, link: Any, weights: Any, data: Any, b: Any, t: Any, i: Any) -> Any:
    """Return what the loops need of a feature: count, offset, target, readout asked for, its rows of C and B."""
    matrix, white = weights
    y, _, offset = data
    row, own = zero, zero
    for r in range(len(zero)):
        row, own = tuple_setitem(row, r, matrix[r, i]), tuple_setitem(own, r, white[r, i])
    count = y[b, t, i]
    # The data would have the rate at the count; zero counts as one half, for its log.
    target = count if count > HALF else HALF + ZERO * count
    asked = math.log(target) if len(link) == 3 else target + math.log(-math.expm1(-target))
    return count, offset[b, t, i], target, asked, row, own


@compiled(fastmath=FAST, allocates=False)
def _add_feature(zero: Any, link: Any, feature: Any, rows: Any, lanes: Any) -> None:
    y, offset, target, asked, row, own = feature
    rank = len(zero)
    for lane in range(lanes):
        x = offset
        for r in range(rank):
            x += row[r] * rows[at(r, lane)] + own[r] * rows[at(2 * rank + r, lane)]
        score, stiffness, information, _, _, _ = curvature(link, x, y, target, asked)
        for r in range(rank):
            rows[at(3 * rank + r, lane)] += score * own[r]
            for j in range(rank):
                if j <= r:
                    product, entry = own[r] * own[j], 4 * rank + r * rank + j
                    rows[at(entry, lane)] += stiffness * product
                    rows[at(entry + rank * rank, lane)] += information * product


@compiled(fastmath=FAST, allocates=False)
def climb(zero: Any, link: Any, weights: Any, data: Any, b: Any, t: Any, rows: Any, lanes: Any) -> None:
    """Take one step of eta; the factor of the matrix that steers it is left, and P where it starts."""
    rank, square = len(zero), len(zero) ** 2
    set_rows(rows, 3 * rank, rank + 2 * square, ZERO, 0, lanes)
    for r in range(rank):
        set_rows(rows, 4 * rank + r * rank + r, 1, ONE, 0, lanes)
        set_rows(rows, 4 * rank + square + r * rank + r, 1, ONE, 0, lanes)
        for lane in range(lanes):
            rows[at(3 * rank + r, lane)] = -rows[at(2 * rank + r, lane)]
    for i in range(data[0].shape[2]):
        if data[1][b, t, i] != ZERO:
            _add_feature(zero, link, feature_of(zero, link, weights, data, b, t, i), rows, lanes)
    cholesky(rank, rows, 4 * rank, lanes)
    solve(rank, rows, 4 * rank, 3 * rank, 1, lanes)
    solve_transposed(rank, rows, 4 * rank, 3 * rank, 1, lanes)
    for r in range(rank):
        for lane in range(lanes):
            rows[at(2 * rank + r, lane)] += rows[at(3 * rank + r, lane)]


@compiled(fastmath=FAST, allocates=False)
def locate(
    zero: Any, weighing: Any, link: Any, weights: Any, data: Any, b: Any, t: Any, rows: Any, lanes: Any, trail: Any
) -> None:
    """Take all steps from eta = 0, and keep their trail from a row on; then turn e into F^{-T} e."""
    rank, square = len(zero), len(zero) ** 2
    set_rows(rows, 2 * rank, rank, ZERO, 0, lanes)
    for step in range(num_iterations(weighing)):
        kept = trail + step * (rank + square)
        copy(rows, 2 * rank, kept, rank, lanes)
        climb(zero, link, weights, data, b, t, rows, lanes)
        copy(rows, 4 * rank, kept + rank, square, lanes)
    cholesky(rank, rows, 4 * rank + square, lanes)
    solve_transposed(rank, rows, 4 * rank + square, rank, 1, lanes)


def propose_by_laplace(
    zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
) -> None:
    """Propose and weigh the particles of one time bin.

    Args:
        zero: as many zeros as there are latents.
        weighing: as of `weighing_of`.
        parents: index of each particle's mean.
        own: 0, 1, 2 and so on.
        bin_: (as many zeros as there are latents, squared; step, tables, emission, data, as for `forward.run_forward`;
            trial, time bin): the constant of the step is read; the tables are (B^T `sets x rank x features`, L
            `sets x rank x rank`, nothing).
        draws: (draws e `trials x time x particles x rank`, positions, log densities of the draws
            `trials x time x particles`, less the constant of the transition's density).
        particles: their means before the data, `particles x rank`.
        scratch: rows.
        out: (latents, written to; log weights, added to), `trials x time x particles`.
    """
    _, step, (white, root, _), emission, data, b, t = bin_
    index, rank, square = step[4][b, t], len(zero), len(zero) ** 2
    link, weights = emission[0], (emission[3][0], white[index])
    z, log_weights = out
    rows, trail = scratch, 4 * rank + 2 * square
    for start in range(0, log_weights.shape[2], WIDTH):
        size = min(WIDTH, log_weights.shape[2] - start)
        lanes = lanes_of(size)
        fill(rows, 0, particles, parents, start, size)
        fill(rows, rank, draws[0][b, t], own, start, size)
        locate(zero, weighing, link, weights, data, b, t, rows, lanes, trail)
        for lane in range(size):
            k = start + lane
            weight = step[3][b, t] - draws[2][b, t, k]
            for r in range(rank):
                eta = rows[at(rank + r, lane)] + rows[at(2 * rank + r, lane)]
                rows[at(2 * rank + r, lane)] = eta
                weight -= HALF * eta * eta + math.log(rows[at(4 * rank + square + r * rank + r, lane)])
            for r in range(rank):
                value = rows[at(r, lane)]
                for j in range(r + 1):
                    value += root[index, r, j] * rows[at(2 * rank + j, lane)]
                z[b, t, k, r] = value
            log_weights[b, t, k] += weight
