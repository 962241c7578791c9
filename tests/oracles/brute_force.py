"""Every fixed point of a small piecewise-linear network: one linear system per combination of pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap

MOST_COMBINATIONS = 3**12
CHUNK = 4096


@dataclass(frozen=True)
class BruteForce:
    """Zeros of a network's map.

    Attributes:
        points: isolated zeros, `points x rank`; each solves its own piece's system and lies on that piece.
        index_sum: sum of sign det(I - J) over them, or None if one lies on a knot.
        combinations: how many linear systems were set up.
        singular: pieces whose system has no unique solution but has solutions, `pieces x units`; these may hold a
            line or plane of zeros, or may not exist at all.
    """

    points: Array
    index_sum: int | None
    combinations: int
    singular: Array


def brute_force(network: LatentMap, *, tolerance: float = 1e-9) -> BruteForce:
    """Solve the linear system of every combination of pieces and keep the solutions that lie on their own pieces.

    Args:
        network: of piecewise-linear units, at most 12 with two knots each.
        tolerance: how far outside of its pieces, in the units' currents, a solution may lie by rounding.
    """
    if network.kind != PIECEWISE:
        raise ValueError("Only piecewise-linear units have finitely many combinations of pieces.")
    points: list[Array] = []
    signs: list[int] = []
    singular: list[Array] = []
    on_knot, combinations = False, 0
    infinity = np.full((network.units, 1), np.inf)
    edges = np.concatenate([-infinity, network.knots, infinity], 1)
    units = np.arange(network.units)
    for pieces in _combinations(network):
        combinations += len(pieces)
        slopes, rests = network.slopes[units, pieces], network.intercepts[units, pieces]
        matrix = network.affine + np.einsum("jr,pj,js->prs", network.outputs, slopes, network.weights)
        offset = network.constant + rests @ network.outputs
        values = np.linalg.svd(matrix, compute_uv=False)
        regular = values[:, -1] > 1e-11 * np.maximum(values[:, 0], 1e-3)
        for index in np.flatnonzero(~regular):
            solution = np.linalg.lstsq(matrix[index], -offset[index], rcond=1e-11)[0]
            if np.abs(matrix[index] @ solution + offset[index]).max() < tolerance:
                singular.append(pieces[index])
        z = np.linalg.solve(matrix[regular], -offset[regular][..., None])[..., 0]
        x = z @ network.weights.T
        low, high = edges[units, pieces[regular]], edges[units, pieces[regular] + 1]
        room = tolerance * (1 + np.abs(x))
        inside = ((x >= low - room) & (x <= high + room)).all(1)
        residual = np.abs(network.value(z)).max(1, initial=0)
        determinants = np.linalg.det(-matrix[regular])
        for index in np.flatnonzero(inside & (residual < 100 * tolerance * (1 + np.abs(z).max(1)))):
            edge = (np.abs(x[index] - low[index]) <= room[index]) | (np.abs(x[index] - high[index]) <= room[index])
            on_knot = on_knot or bool(edge.any())
            if all(np.linalg.norm(z[index] - p) > 10 * tolerance * (1 + np.linalg.norm(p)) for p in points):
                points.append(z[index])
                signs.append(int(np.sign(determinants[index])))
    found = np.array(points).reshape(-1, network.rank)
    order = np.lexsort(found.T[::-1])
    return BruteForce(
        points=found[order],
        index_sum=None if on_knot else sum(signs),
        combinations=combinations,
        singular=np.array(singular, dtype=np.int64).reshape(-1, network.units),
    )


def same_points(a: Array, b: Array, *, tolerance: float = 1e-7) -> bool:
    """Whether two sets of points, `points x rank`, are the same up to order, each point of one near exactly one."""
    if a.shape != b.shape:
        return False
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1) / (1 + np.linalg.norm(b, axis=-1))
    near = distances < tolerance
    return bool((near.sum(0) == 1).all() and (near.sum(1) == 1).all())


def _combinations(network: LatentMap) -> Iterator[Array]:
    counts = [network.slopes.shape[1]] * network.units
    if float(np.prod(np.array(counts, dtype=float))) > MOST_COMBINATIONS:
        raise ValueError(f"Brute force is for at most {MOST_COMBINATIONS} combinations of pieces, got pieces {counts}.")
    every = itertools.product(*map(range, counts))
    while chunk := list(itertools.islice(every, CHUNK)):
        yield np.array(chunk, dtype=np.int64).reshape(len(chunk), network.units)
