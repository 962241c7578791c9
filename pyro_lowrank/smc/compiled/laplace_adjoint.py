r"""The exact adjoint of `laplace`, in the letters used there.

A step s = H^{-1} g leads from eta to eta + s, with g = B^T score - eta and H = I + B^T diag(stiffness) B. With l the
gradient of where it leads, and u = H^{-1} l, the gradients of the score, the stiffness and eta are

    b . u,    -(b . u) (b . s),    l - u,

for each feature's row b of B, and what the readout adds. Rows of a block are those of `laplace`, then

    gradient of z (R), of the log weight (1), l (R), u (R), s (R), gradient of eta through the readouts (R),
    of m (R), of F (R * R), of P (R * R), and the trail.
"""

from __future__ import annotations

from typing import Any

from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import ZERO
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.smc.compiled.lanes import (
    WIDTH,
    at,
    copy,
    fill,
    lanes_of,
    pull_back_cholesky,
    set_rows,
    solve,
    solve_transposed,
)
from pyro_lowrank.smc.compiled.laplace import curvature, feature_of, locate, num_iterations, number_of_rows


@compiled(inline=True, allocates=False)
def _layout(rank: Any) -> Any:
    """Return the first rows of the gradients of z and of the log weight, of l, u, s, the gradients through the
    readouts, of m, of F and of P, and of the trail.
    """
    grad_z = 4 * rank + 2 * rank * rank
    arrived = grad_z + rank + 1
    vectors = arrived, arrived + rank, arrived + 2 * rank, arrived + 3 * rank, arrived + 4 * rank
    grad_factor = arrived + 5 * rank
    grad_p = grad_factor + rank * rank
    return grad_z, grad_z + rank, *vectors, grad_factor, grad_p, grad_p + rank * rank


def number_of_adjoint_rows(rank: int, weighing: tuple[int, ...]) -> int:
    """Return how many rows a block needs."""
    first, *_, trail = _layout(rank)
    return number_of_rows(rank, weighing, trail - first)


@compiled(fastmath=FAST, allocates=False)
def _pull_back_feature(zero: Any, link: Any, feature: Any, rows: Any, lanes: Any) -> Any:
    """Add what a feature's readout passes to eta and m; return the gradients of its rows of C and B, and of d."""
    y, offset, target, asked, row, own = feature
    rank = len(zero)
    _, _, _, u, s, through, mean, _, grad_p, _ = _layout(rank)
    by_row, by_own, by_offset = zero, zero, ZERO * y
    for lane in range(lanes):
        x, along_u, along_s = offset, ZERO * y, ZERO * y
        for r in range(rank):
            x += row[r] * rows[at(r, lane)] + own[r] * rows[at(2 * rank + r, lane)]
            along_u += own[r] * rows[at(u + r, lane)]
            along_s += own[r] * rows[at(s + r, lane)]
        score, stiffness, information, by_score, by_stiffness, by_information = curvature(link, x, y, target, asked)
        grad = along_u * (by_score - along_s * by_stiffness)
        curved = zero
        for r in range(rank):
            value = ZERO * y
            for j in range(rank):
                value += rows[at(grad_p + r * rank + j, lane)] * own[j]
            grad += by_information * own[r] * value
            curved = tuple_setitem(curved, r, (information + information) * value)
        by_offset += grad
        for r in range(rank):
            rows[at(through + r, lane)] += grad * own[r]
            rows[at(mean + r, lane)] += grad * row[r]
            by_row = tuple_setitem(by_row, r, by_row[r] + grad * rows[at(r, lane)])
            steered = rows[at(u + r, lane)] * (score - stiffness * along_s)
            steered += grad * rows[at(2 * rank + r, lane)] - stiffness * along_u * rows[at(s + r, lane)]
            by_own = tuple_setitem(by_own, r, by_own[r] + steered + curved[r])
    return by_row, by_own, by_offset


@compiled(fastmath=FAST, allocates=False)
def _pull_back_features(
    zero: Any, link: Any, weights: Any, data: Any, b: Any, t: Any, rows: Any, lanes: Any, grads: Any
) -> None:
    grad_matrix, grad_white, grad_offset = grads
    for i in range(data[0].shape[2]):
        if data[1][b, t, i] == ZERO:
            continue
        feature = feature_of(zero, link, weights, data, b, t, i)
        by_row, by_own, by_offset = _pull_back_feature(zero, link, feature, rows, lanes)
        grad_offset[b, t, i] += by_offset
        for r in range(len(zero)):
            grad_matrix[r, i] += by_row[r]
            grad_white[r, i] += by_own[r]


@compiled(fastmath=FAST, allocates=False)
def _pull_back_draw(zero: Any, root: Any, rows: Any, lanes: Any, grad_root: Any) -> None:
    """Start l, the gradients of m and of P, from those of z and the log weight; eta is that after the last step."""
    rank, square = len(zero), len(zero) ** 2
    factor = 4 * rank + square
    grad_z, grad_weight, arrived, work, _, _, _, grad_factor, grad_p, _ = _layout(rank)
    for r in range(rank):
        for lane in range(lanes):
            eta = rows[at(rank + r, lane)] + rows[at(2 * rank + r, lane)]
            total = -rows[at(grad_weight, lane)] * eta
            for i in range(r, rank):
                total += root[i, r] * rows[at(grad_z + i, lane)]
            rows[at(arrived + r, lane)] = total
        for i in range(r, rank):
            total = ZERO * root[i, r]
            for lane in range(lanes):
                total += rows[at(grad_z + i, lane)] * (rows[at(rank + r, lane)] + rows[at(2 * rank + r, lane)])
            grad_root[i, r] += total
    copy(rows, arrived, work, rank, lanes)
    solve(rank, rows, factor, work, 1, lanes)
    for i in range(rank):
        for j in range(i + 1):
            entry = grad_factor + i * rank + j
            for lane in range(lanes):
                rows[at(entry, lane)] = -rows[at(rank + i, lane)] * rows[at(work + j, lane)]
        for lane in range(lanes):
            diagonal = rows[at(factor + i * rank + i, lane)]
            rows[at(grad_factor + i * rank + i, lane)] -= rows[at(grad_weight, lane)] / diagonal
    pull_back_cholesky(rank, rows, factor, grad_factor, grad_p, lanes)


@compiled(fastmath=FAST, allocates=False)
def _pull_back_step(
    zero: Any,
    link: Any,
    weights: Any,
    data: Any,
    b: Any,
    t: Any,
    step: Any,
    rows: Any,
    lanes: Any,
    grads: Any,
) -> None:
    """Pull l back from where a step leads, which is in the rows of eta, to where it starts."""
    rank, square = len(zero), len(zero) ** 2
    _, _, arrived, u, s, through, _, _, grad_p, trail = _layout(rank)
    kept = trail + step * (rank + square)
    copy(rows, arrived, u, rank, lanes)
    solve(rank, rows, kept + rank, u, 1, lanes)
    solve_transposed(rank, rows, kept + rank, u, 1, lanes)
    for r in range(rank):
        for lane in range(lanes):
            rows[at(s + r, lane)] = rows[at(2 * rank + r, lane)] - rows[at(kept + r, lane)]
    copy(rows, kept, 2 * rank, rank, lanes)
    set_rows(rows, through, rank, ZERO, 0, lanes)
    _pull_back_features(zero, link, weights, data, b, t, rows, lanes, grads)
    for r in range(rank):
        for lane in range(lanes):
            rows[at(arrived + r, lane)] += rows[at(through + r, lane)] - rows[at(u + r, lane)]
    # Only the P of the last step counts, and the last is pulled back first.
    set_rows(rows, grad_p, square, ZERO, 0, lanes)


def pull_back_by_laplace(
    zero: Any, weighing: Any, parents: Any, own: Any, bin_: Any, draws: Any, particles: Any, scratch: Any, out: Any
) -> None:
    """Pull the gradients of one time bin back through its proposals; arguments as for `laplace.propose_by_laplace`, and

    Args:
        draws: `particles x rank`.
        particles: (means, gradient of the latents, `particles x rank`; gradient of the log weights; gradient of the
            means, added to).
        out: gradients of (step, tables, emission, offset), added to.
    """
    _, step, (table, root, _), emission, data, b, t = bin_
    _, (grad_table, grad_root, _), grad_emission, grad_offset = out
    means, grad_z, grad_weights, grad_means = particles
    rows = scratch
    index, rank, steps = step[4][b, t], len(zero), num_iterations(weighing)
    link, weights = emission[0], (emission[3][0], table[index])
    of_features = grad_emission[0], grad_table[index], grad_offset
    first, weight, _, _, _, _, mean, _, _, trail = _layout(rank)
    for start in range(0, grad_weights.shape[0], WIDTH):
        size = min(WIDTH, grad_weights.shape[0] - start)
        lanes = lanes_of(size)
        fill(rows, 0, means, parents, start, size)
        fill(rows, rank, draws, own, start, size)
        fill(rows, first, grad_z, own, start, size)
        set_rows(rows, weight, 1, ZERO, 0, lanes)
        for lane in range(size):
            rows[at(weight, lane)] = grad_weights[start + lane]
        locate(zero, weighing, link, weights, data, b, t, rows, lanes, trail)
        copy(rows, first, mean, rank, lanes)
        _pull_back_draw(zero, root[index], rows, lanes, grad_root[index])
        for number in range(steps - 1, -1, -1):
            _pull_back_step(zero, link, weights, data, b, t, number, rows, lanes, of_features)
        for lane in range(size):
            for r in range(rank):
                grad_means[parents[start + lane], r] += rows[at(mean + r, lane)]
