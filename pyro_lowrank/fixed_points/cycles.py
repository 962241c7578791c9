"""Cycles: points that a network comes back to after k steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.fixed_points.find import analyse
from pyro_lowrank.fixed_points.found import FixedSet
from pyro_lowrank.fixed_points.network import (
    PIECEWISE,
    Array,
    LatentMap,
    Source,
    build_network,
    exact_difference,
    exact_sum,
    from_units,
)
from pyro_lowrank.fixed_points.options import Options, ProgressCallback
from pyro_lowrank.fixed_points.reduce import reduce
from pyro_lowrank.fixed_points.result import MOST_ROWS, Certificate
from pyro_lowrank.fixed_points.stability import Complex, classify, classify_set, knots_at, spectra
from pyro_lowrank.piecewise import PiecewiseLinear

CERTIFIED_DIMENSIONS = 6
"""Most dimensions, order times rank, in which cycles are certified unless told otherwise."""

SAME = 1e-7
"""Distance, relative to their size and to that of the latents, at which two points of cycles are the same."""


@dataclass(frozen=True, eq=False)
class Cycles:
    """The cycles of a network of one order k: C of them, each once.

    Attributes:
        order: k, the number of steps after which each comes back, and not before.
        points: of each cycle in the order they are visited, from the one that is smallest by coordinates on,
            `cycles x order x rank`.
        multipliers: eigenvalues of the product of the Jacobians along each, the largest in modulus first,
            `cycles x rank`.
        stability: as of `FixedPoints`, of the multipliers: `"boundary"` if a point is on a knot, `cycles`.
        residuals: largest error of a step along each, `cycles`.
        sets: pieces of lines and planes of cycles, in the space of all k points side by side, `order * rank`
            dimensions; shorter cycles and fixed points among them. Their eigenvalues are the multipliers of the middle.
        certificate: what is proved; its numbers are of that space, where a k-cycle is a zero k times, once from each
            of its points, and fixed points and shorter cycles whose order divides k are zeros too.
    """

    order: int
    points: Array
    multipliers: Complex
    stability: NDArray[np.str_]
    residuals: Array
    sets: tuple[FixedSet, ...]
    certificate: Certificate

    def __len__(self) -> int:
        return len(self.points)

    def __str__(self) -> str:
        lines = [f"Cycles of order {self.order}: {len(self)}"]
        lines += [f"  {line}" for line in str(self.certificate).splitlines()]
        for index in range(min(len(self), MOST_ROWS)):
            where = ", ".join(f"{value:.4g}" for value in self.points[index, 0])
            size = abs(self.multipliers[index, 0])
            lines.append(f"  {index + 1:3d}  from ({where}), largest |multiplier| {size:.6f}, {self.stability[index]}")
        if len(self) > MOST_ROWS:
            lines.append(f"  ... and {len(self) - MOST_ROWS} more")
        return "\n".join(lines)


def find_cycles(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
    *,
    order: int,
    method: str | None = None,
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Cycles:
    """Find the points that a low-rank network comes back to after `order` steps, and not before.

    Args:
        decay: as of `find_fixed_points`.
        left: as of `find_fixed_points`.
        right: as of `find_fixed_points`.
        bias: as of `find_fixed_points`.
        activation: as of `find_fixed_points`.
        input_current: as of `find_fixed_points`.
        constant: as of `find_fixed_points`.
        order: number of steps, k; 1 for fixed points.
        method: as of `find_fixed_points`; if None, `"certified"` up to 6 dimensions (k times the rank), else
            `"search"`.
        max_boxes: as of `find_fixed_points`.
        max_seconds: as of `find_fixed_points`.
        threads: as of `find_fixed_points`.
        num_starts: as of `find_fixed_points`.
        constrained: as of `find_fixed_points`.
        seed: as of `find_fixed_points`.
        progress: as of `find_fixed_points`.

    Raises:
        ValueError: as of `find_fixed_points`.

    Example::

        >>> cycles = find_cycles(0.0, [[1.0]], [[-2.0]], [0.0], "tanh", order=2, method="search", num_starts=50)
        >>> cycles.points.ravel().round(6).tolist(), cycles.stability.tolist()
        ([-1.915008, 1.915008], ['attractor'])
    """
    network = build_network(decay, left, right, bias, activation, input_current, constant)
    chosen = _method(network, order, method)
    return _cycles(
        network, order, Options(chosen, max_boxes, max_seconds, threads, num_starts, constrained, seed, progress)
    )


def cycles_of(
    network: LatentMap,
    *,
    order: int,
    method: str | None = None,
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Cycles:
    """Find the cycles of a network that is built already; the options, and errors, as of `find_cycles`.

    Args:
        network: as `build_network`, or one of the adapters, returns it.
        order: as of `find_cycles`.
    """
    chosen = _method(network, order, method)
    return _cycles(
        network, order, Options(chosen, max_boxes, max_seconds, threads, num_starts, constrained, seed, progress)
    )


def _method(network: LatentMap, order: int, method: str | None) -> str:
    """The method to find cycles of that order by."""
    check_positive_int("order", order)
    if method is not None:
        return method
    return "certified" if order * network.rank <= CERTIFIED_DIMENSIONS else "search"


def _cycles(network: LatentMap, order: int, options: Options) -> Cycles:
    result = analyse(unroll(network, order), options)
    points = _distinct(result.points.reshape(-1, order, network.rank), reduce(network).scale)
    identity = np.eye(network.rank)
    products = np.array([_product([network.jacobian(z) + identity for z in cycle]) for cycle in points])
    multipliers = spectra(products.reshape(-1, network.rank, network.rank))
    on_knot = np.array([knots_at(network, cycle).any() for cycle in points], dtype=bool)
    steps = network.value(points) + points - np.roll(points, -1, axis=1)
    return Cycles(
        order=order,
        points=points,
        multipliers=multipliers,
        stability=classify(multipliers, on_knot).labels,
        residuals=np.abs(steps).max((1, 2), initial=0),
        sets=tuple(_with_multipliers(network, piece, order) for piece in result.sets),
        certificate=result.certificate,
    )


def _with_multipliers(network: LatentMap, piece: FixedSet, order: int) -> FixedSet:
    """Return a piece of cycles with the multipliers of its middle and the stability that they mean."""
    cycle = piece.point.reshape(order, network.rank)
    identity = np.eye(network.rank)
    multipliers = spectra(_product([network.jacobian(z) + identity for z in cycle]))
    stability = classify_set(multipliers, len(piece.directions), bool(knots_at(network, cycle).any()))
    return replace(piece, eigenvalues=multipliers[None], stability=stability)


def unroll(network: LatentMap, order: int) -> LatentMap:
    r"""Return the network whose zeros are the orbits of k points that close: :math:`F(z_i) - z_{i+1} = 0`.

    Args:
        network: of `rank` latents and `units` units.
        order: k.

    Returns:
        A network of k `rank` latents, the points side by side, and k `units` units.
    """
    identity = np.eye(network.rank)
    successor = np.roll(np.eye(order), 1, axis=1)
    blocks = (network.weights, network.outputs)
    weights, outputs = (np.asarray(np.kron(np.eye(order), block), dtype=np.float64) for block in blocks)
    # The decay itself, which rounding left out of the network's affine part, is a double.
    decay = exact_sum(network.affine, network.rest, identity)
    parts = (np.kron(np.eye(order), decay), np.kron(successor, identity))
    affine, rest = exact_difference(*(np.asarray(part, dtype=np.float64) for part in parts))
    source = network.source
    if source is not None:
        source = Source(source.shape, np.tile(source.bias, order), np.tile(source.current, order))
    return from_units(
        affine,
        np.tile(network.constant, order),
        weights,
        outputs,
        kind=network.kind,
        intercepts=np.tile(network.intercepts, (order, 1)),
        knots=np.tile(network.knots, (order, 1)),
        slopes=np.tile(network.slopes, (order, 1)) if network.kind == PIECEWISE else None,
        knot_sizes=np.tile(network.knot_sizes, order),
        rest=rest,
        source=source,
    )


def _product(jacobians: list[Array]) -> Array:
    product = jacobians[0]
    for jacobian in jacobians[1:]:
        product = jacobian @ product
    return product


def _distinct(orbits: Array, scale: Array) -> Array:
    """Orbits, `orbits x order x rank`, that do not close earlier, each from one of its points only.

    Args:
        orbits: the candidates.
        scale: of the latents, `rank`.
    """
    kept: list[Array] = []
    for orbit in orbits / scale:
        size = SAME * (1 + float(np.abs(orbit).max()))
        turns = [np.roll(orbit, -shift, axis=0) for shift in range(len(orbit))]
        if any(np.abs(turn - orbit).max() <= size for turn in turns[1:]):
            continue
        first = min(turns, key=lambda turn: tuple(turn[0].round(9)))
        if not any(np.abs(turn - known).max() <= size for known in kept for turn in turns):
            kept.append(first)
    return np.array(kept, dtype=np.float64).reshape(-1, *orbits.shape[1:]) * scale
