"""Fixed points with their stability, and what is proved about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.found import FixedSet, Found
from pyro_lowrank.fixed_points.network import Array, LatentMap
from pyro_lowrank.fixed_points.stability import LABELS, Complex, classify, knots_at, spectra

MOST_ROWS = 40


class Map(Protocol):
    """A map of latents, less the identity."""

    @property
    def rank(self) -> int:
        """Number of latents."""

    def value(self, z: Array) -> Array:
        """Return F(z) - z, `... x rank`."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proved about a list of fixed points, and what it took.

    Attributes:
        method: `"certified"`, `"enumerate"` or `"search"`.
        complete: whether it is proved that there are no other fixed points (rounding included, see each method).
        boxes: how many boxes, or linear regions, were looked at.
        solves: how many systems of `rank` linear equations were solved.
        open_boxes: boxes about which nothing is proved, `boxes x 2 x rank` (lowest and highest corner).
        searched: the box outside of which no fixed point lies, or that the search was confined to, `2 x rank`, or None.
        index_sum: sum of the signs of det(I - J) over the isolated fixed points, or None where one has no such sign.
        expected_index_sum: the degree of the map at infinity, which a complete list adds up to, or None if unknown.
        seconds: time taken.
        interrupted: whether the user stopped it; what is here was found before.
        margin: the certified method's bound on the rounding error of F(z) - z in the box that was searched, the largest
            over its components; so much, or less nearer to the origin, was added to every decision. None for others.
    """

    method: str
    complete: bool
    boxes: int
    solves: int
    open_boxes: Array
    searched: Array | None
    index_sum: int | None
    expected_index_sum: int | None
    seconds: float
    interrupted: bool
    margin: float | None

    def __str__(self) -> str:
        state = "complete: there are no others" if self.complete else self._why_incomplete()
        known = "unknown" if self.expected_index_sum is None else str(self.expected_index_sum)
        total = "undefined" if self.index_sum is None else str(self.index_sum)
        allowed = "" if self.margin is None else f"; rounding errors of up to {self.margin:.1e} are allowed for"
        return (
            f"{self.method}, {state}; index sum {total} (expected {known})\n"
            f"  {self.boxes:,} boxes or regions, {self.solves:,} linear solves, {self.seconds:.3g} s{allowed}"
        )

    def _why_incomplete(self) -> str:
        if self.interrupted:
            return "interrupted: there may be others"
        if len(self.open_boxes):
            return f"not complete: there may be others in {len(self.open_boxes):,} open boxes"
        return "not complete: there may be others"


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """The fixed points of a network: P isolated ones, and pieces of lines and planes of them.

    Attributes:
        points: `points x rank`, sorted by their coordinates.
        eigenvalues: of the Jacobian of the map at each, the largest in modulus first, `points x rank`, complex. On a
            knot they are those of the piece that the knot ends (the one to its left) and decide nothing.
        stability: `"attractor"`, `"saddle"`, `"repeller"`, `"marginal"` (an eigenvalue on the unit circle) or
            `"boundary"` (on a knot, where no eigenvalues decide), `points`.
        num_unstable: number of eigenvalues outside of the unit circle, `points`.
        is_spiral: whether some eigenvalue is not real, `points`; the others are nodes.
        residuals: largest entry of abs(F(z) - z) at each, `points`.
        pieces: index of the linear piece that each unit is on, `points x units`; 0 for smooth units.
        active: whether each unit's slope is not zero, `points x units`.
        on_knot: whether each unit is at a knot, `points x units`.
        sets: lines and planes of fixed points.
        certificate: what is proved.
        network: the map itself; see `step`.

    Example::

        >>> from pyro_lowrank.fixed_points import find_fixed_points
        >>> result = find_fixed_points(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0], method="enumerate")
        >>> result.points.ravel().tolist()
        [0.0, 1.333333333333333..., 4.0]
        >>> result.stability.tolist()
        ['attractor', 'repeller', 'attractor']
        >>> print(result.certificate)  # doctest: +ELLIPSIS
        enumerate, complete: there are no others; index sum 1 (expected 1)
        ...
    """

    points: Array
    eigenvalues: Complex
    stability: NDArray[np.str_]
    num_unstable: NDArray[np.int64]
    is_spiral: NDArray[np.bool_]
    residuals: Array
    pieces: NDArray[np.int64]
    active: NDArray[np.bool_]
    on_knot: NDArray[np.bool_]
    sets: tuple[FixedSet, ...]
    certificate: Certificate
    network: Map

    def step(self, z: Array) -> Array:
        """Return F(z), where the network is one step after z, both `... x rank`."""
        return z + self.network.value(z)

    def __len__(self) -> int:
        return len(self.points)

    def to_dict(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per quantity, each of length P, as `pandas.DataFrame` takes them."""
        columns: dict[str, NDArray[np.generic]] = {f"z{i + 1}": row for i, row in enumerate(self.points.T)}
        columns |= {f"eigenvalue{i + 1}": row for i, row in enumerate(self.eigenvalues.T)}
        return columns | {
            "stability": self.stability,
            "num_unstable": self.num_unstable,
            "is_spiral": self.is_spiral,
            "residual": self.residuals,
            "num_active": self.active.sum(1),
            "on_knot": self.on_knot.any(1),
        }

    def __str__(self) -> str:
        counts = Counter(self.stability.tolist())
        kinds = ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label])
        lines = [f"FixedPoints: {len(self)} isolated{f' ({kinds})' if kinds else ''}, {len(self.sets)} sets"]
        lines += [f"  {line}" for line in str(self.certificate).splitlines()]
        if len(self):
            names = "".join(f"{f'z{i + 1}':>11}" for i in range(self.points.shape[1]))
            lines.append(f"   #{names}  largest |eigenvalue|  active  residual  stability")
        lines += [self._row(index) for index in range(min(len(self), MOST_ROWS))]
        if len(self) > MOST_ROWS:
            lines.append(f"  ... and {len(self) - MOST_ROWS} more")
        lines += [f"  set {index + 1}: {describe_set(piece)}" for index, piece in enumerate(self.sets[:MOST_ROWS])]
        return "\n".join(lines)

    def _row(self, index: int) -> str:
        where = "".join(f"{value:11.4g}" for value in self.points[index])
        size = abs(self.eigenvalues[index, 0])
        active = int(self.active[index].sum())
        return f"{index + 1:4d}{where}  {size:20.6f}  {active:6d}  {self.residuals[index]:8.1e}  {self.describe(index)}"

    def describe(self, index: int) -> str:
        """Return a point's stability in words, such as `saddle, 1 unstable, spiral`."""
        label = str(self.stability[index])
        if label == "boundary":
            return f"boundary, {int(self.on_knot[index].sum())} units at a knot"
        unstable = f", {self.num_unstable[index]} unstable" if label in ("saddle", "marginal") else ""
        return f"{label}{unstable}, {'spiral' if self.is_spiral[index] else 'node'}"


def describe_set(piece: FixedSet) -> str:
    """Return a line or plane of fixed points in words."""
    kinds = {1: "line", 2: "plane"}
    kind = kinds.get(len(piece.directions), f"{len(piece.directions)}-dimensional flat")
    beyond = "" if piece.is_bounded else " and beyond"
    tail = f", {piece.stability}, component {piece.component + 1}"
    if len(piece.directions) == 1:
        ends = " to ".join("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in piece.vertices)
        return f"{kind} from {ends}{beyond}{tail}"
    return f"piece of a {kind} with {len(piece.vertices)} corners{beyond}{tail}"


def complete_result(network: LatentMap, found: Found, *, method: str, seconds: float) -> FixedPoints:
    """Return what a method found with stability, residuals and active units added."""
    points = found.points.reshape(-1, network.rank)
    # Rounding only decides the order: the same points by another method come in the same one.
    largest = np.abs(points).max(0, initial=0)
    order = np.lexsort(np.round(points / np.where(largest > 0, largest, 1.0), 9).T[::-1])
    points = points[order] + 0.0
    identity = np.eye(network.rank)
    jacobians = np.array([network.jacobian(z) + identity for z in points]).reshape(-1, network.rank, network.rank)
    eigenvalues = spectra(jacobians)
    on_knot = knots_at(network, points) if found.on_knot is None else found.on_knot[order]
    _, slopes, pieces = network.rates(points)
    return completed(
        network,
        found,
        method=method,
        seconds=seconds,
        points=points,
        eigenvalues=eigenvalues,
        residuals=np.abs(network.value(points)).max(1, initial=0),
        pieces=pieces.astype(np.int64),
        active=slopes != 0,
        on_knot=on_knot,
    )


def completed(
    network: Map,
    found: Found,
    *,
    method: str,
    seconds: float,
    points: Array,
    eigenvalues: Complex,
    residuals: Array,
    pieces: NDArray[np.int64],
    active: NDArray[np.bool_],
    on_knot: NDArray[np.bool_],
) -> FixedPoints:
    """Return fixed points, with what the eigenvalues say of them and what the method proved."""
    labels, num_unstable, is_spiral = classify(eigenvalues, np.asarray(on_knot.any(1)))
    return FixedPoints(
        points=points,
        eigenvalues=eigenvalues,
        stability=labels,
        num_unstable=num_unstable,
        is_spiral=is_spiral,
        residuals=residuals,
        pieces=pieces,
        active=active,
        on_knot=on_knot,
        sets=found.sets,
        certificate=Certificate(
            method=method,
            complete=found.complete,
            boxes=found.boxes,
            solves=found.solves,
            open_boxes=found.open_boxes.reshape(-1, 2, network.rank),
            searched=found.searched,
            index_sum=found.index_sum,
            expected_index_sum=found.expected_index_sum,
            seconds=seconds,
            interrupted=found.interrupted,
            margin=found.margin,
        ),
        network=network,
    )
