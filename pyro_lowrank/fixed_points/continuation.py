"""The set of fixed points as the input to a network changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.fixed_points.find import fixed_points_of
from pyro_lowrank.fixed_points.network import Array, Network, build_network
from pyro_lowrank.fixed_points.progress import Progress
from pyro_lowrank.fixed_points.result import FixedPoints
from pyro_lowrank.piecewise import PiecewiseLinear

SMALLEST_STEP = 1e-6
"""Share of the way between two inputs below which a branch that cannot be followed further has ended."""

SAME = 1e-6
"""Relative distance at which the end of a branch is one of the fixed points there."""


@dataclass(frozen=True, eq=False)
class Event:
    """A fixed point that appears, vanishes or changes stability between two inputs.

    Attributes:
        kind: `"appears"`, `"vanishes"` or `"changes"`.
        step: between which inputs: number `step` and the next.
        fraction: how far between them a branch begins or ends; NaN where one changes.
        point: where: the last, or first, point that could be followed; where one changes, at the later input, `rank`.
        branch: which branch of `Continuation.branches`.
        before: its stability before, or None if it appears.
        after: its stability after, or None if it vanishes.
    """

    kind: str
    step: int
    fraction: float
    point: Array
    branch: int
    before: str | None
    after: str | None

    def __str__(self) -> str:
        where = "(" + ", ".join(f"{value:.4g}" for value in self.point) + ")"
        at = f"{self.step + self.fraction:.4g}" if np.isfinite(self.fraction) else f"{self.step} to {self.step + 1}"
        what = {
            "appears": f"{self.after} appears",
            "vanishes": f"{self.before} vanishes",
            "changes": f"{self.before} becomes {self.after}",
        }[self.kind]
        return f"input {at}: branch {self.branch}, {what} at {where}"


@dataclass(frozen=True, eq=False)
class Continuation:
    """Fixed points at each of S inputs, joined to branches.

    Attributes:
        results: fixed points at each input, found anew there.
        branches: number of the branch that each fixed point is on, for each input.
        events: where branches begin, end or change stability, in order.
    """

    results: tuple[FixedPoints, ...]
    branches: tuple[NDArray[np.int64], ...]
    events: tuple[Event, ...]

    def branch(self, number: int) -> tuple[NDArray[np.int64], Array]:
        """Return at which inputs a branch exists, `steps`, and where, `steps x rank`."""
        steps, points = [], []
        for step, (result, branches) in enumerate(zip(self.results, self.branches, strict=True)):
            for row in np.flatnonzero(branches == number):
                steps.append(step)
                points.append(result.points[row])
        rank = self.results[0].points.shape[1]
        return np.array(steps, dtype=np.int64), np.array(points, dtype=np.float64).reshape(-1, rank)

    def __str__(self) -> str:
        counts = ", ".join(str(len(result)) for result in self.results)
        complete = sum(result.certificate.complete for result in self.results)
        lines = [f"Continuation: {len(self.results)} inputs, {complete} lists complete; fixed points: {counts}"]
        return "\n".join(lines + [f"  {event}" for event in self.events])


def continuation(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    *,
    input_currents: ArrayLike,
    constant: ArrayLike | None = None,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Continuation:
    r"""Find the fixed points at each of a sequence of inputs, and follow each from one input to the next.

    Between two inputs a point moves along :math:`dz = (I - J)^{-1} V \phi'(x)\, dI`; Newton's method keeps it on its
    branch, and sign det(I - J) does not change along it. A branch that can be followed no further has ended there. At
    a pitchfork or another crossing of branches, where that sign does change, they end and begin as well.

    Args:
        decay: as of `find_fixed_points`.
        left: as of `find_fixed_points`.
        right: as of `find_fixed_points`.
        bias: as of `find_fixed_points`.
        activation: as of `find_fixed_points`.
        input_currents: the inputs as currents into the units, `inputs x units`; two or more.
        constant: as of `find_fixed_points`.
        method: as of `find_fixed_points`; it and the budgets are for each input.
        max_boxes: as of `find_fixed_points`.
        max_seconds: as of `find_fixed_points`.
        threads: as of `find_fixed_points`.
        num_starts: as of `find_fixed_points`.
        constrained: as of `find_fixed_points`.
        seed: as of `find_fixed_points`.
        progress: as of `find_fixed_points`.

    Raises:
        ValueError: as of `find_fixed_points`, or if there are fewer than two inputs.

    Example::

        >>> path = continuation(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0], method="enumerate",
        ...     input_currents=[[0.0, 0.0], [-4.0, -4.0]])
        >>> print(path)
        Continuation: 2 inputs, 2 lists complete; fixed points: 3, 1
          input 0.5: branch 1, repeller vanishes at (4)
          input 0.5: branch 2, attractor vanishes at (4)
    """
    currents = np.asarray(input_currents, dtype=np.float64)
    if currents.ndim != 2 or len(currents) < 2:
        raise ValueError(f"`input_currents` must be two or more inputs, inputs x units, got shape {currents.shape}.")
    networks = [build_network(decay, left, right, bias, activation, row, constant) for row in currents]
    results = tuple(
        fixed_points_of(
            network,
            method=method,
            max_boxes=max_boxes,
            max_seconds=max_seconds,
            threads=threads,
            num_starts=num_starts,
            constrained=constrained,
            seed=seed,
            progress=progress,
        )
        for network in networks
    )
    branches = [np.arange(len(results[0]))]
    total = len(results[0])
    events: list[Event] = []
    for step, (here, there) in enumerate(pairwise(results)):
        between = _Between(decay, left, right, bias, activation, currents[step], currents[step + 1], constant)
        numbers, total, new = _join(between, here, there, branches[-1], total, step)
        branches.append(numbers)
        events += new
    return Continuation(results, tuple(branches), tuple(events))


class _Between:
    """The networks between two inputs."""

    def __init__(
        self,
        decay: ArrayLike,
        left: ArrayLike,
        right: ArrayLike,
        bias: ArrayLike,
        activation: str | PiecewiseLinear,
        first: Array,
        last: Array,
        constant: ArrayLike | None,
    ) -> None:
        self.first, self.change = first, last - first
        self._weights = (decay, left, right, bias, activation)
        self._constant = constant
        # Outputs as of `Network`, units x rank.
        self._outputs = np.asarray(right, dtype=np.float64).T

    def network(self, t: float) -> Network:
        """The network at a share t of the way."""
        return build_network(*self._weights, self.first + t * self.change, self._constant)

    def follow(self, z: Array, *, backward: bool) -> tuple[Array, float]:
        """Follow a fixed point from one end to the other; return where it ends and after what share of the way."""
        at, pace = (1.0, -1.0) if backward else (0.0, 1.0)
        done, stride = 0.0, 0.125
        network = self.network(at)
        sign = np.sign(np.linalg.det(-network.jacobian(z)))
        while done < 1:
            stride = min(stride, 1 - done)
            ahead = self.network(at + pace * (done + stride))
            trial = self._correct(network, ahead, z, pace * stride, sign)
            if trial is None:
                stride /= 2
                if stride < SMALLEST_STEP:
                    return z, done
                continue
            z, network, done = trial, ahead, done + stride
            stride *= 1.5
        return z, 1.0

    def _correct(self, network: Network, ahead: Network, z: Array, stride: float, sign: float) -> Array | None:
        """One step along the branch, or None if it leads off it."""
        try:
            tangent = self._tangent(network, z) * stride
            trial = z + tangent
            for _ in range(12):
                move = np.linalg.solve(ahead.jacobian(trial), ahead.value(trial))
                trial = trial - move
                if np.abs(move).max() <= 1e-13 * (1 + np.abs(trial).max()):
                    break
            after = self._tangent(ahead, trial) * stride
        except np.linalg.LinAlgError:
            return None
        residual = np.abs(ahead.value(trial)) <= 1e3 * ahead.error(trial)
        same_sign = np.sign(np.linalg.det(-ahead.jacobian(trial))) == sign
        return trial if residual.all() and same_sign and _is_one_step(z, trial, tangent, after) else None

    def _tangent(self, network: Network, z: Array) -> Array:
        """How a fixed point moves per whole way, `rank`."""
        slopes = network.rates(z)[1]
        step = np.linalg.solve(network.jacobian(z), self._outputs.T @ (slopes * self.change))
        return -np.asarray(step, dtype=np.float64)


def _is_one_step(z: Array, trial: Array, before: Array, after: Array) -> bool:
    """Whether a step is what the tangents at its ends make of it, and not a jump to another branch.

    Beyond a knot the branch goes on along the second tangent, so any mean of the two is right. Where they differ a lot
    the step must be short: on a smooth branch they do not then, and at a knot they always may.
    """
    step, size = trial - z, np.linalg.norm(before) + np.linalg.norm(after)
    turn = before - after
    share = float(np.clip((step - after) @ turn / max(float(turn @ turn), 1e-300), 0, 1))
    rest = float(np.linalg.norm(step - after - share * turn))
    tiny = 1e-12 * (1 + float(np.abs(z).max()))
    alike = np.linalg.norm(turn) <= 0.5 * size
    return bool(rest <= 0.1 * size + tiny and (alike or np.linalg.norm(step) <= 1e-2 * (1 + np.linalg.norm(z))))


def _join(
    between: _Between, here: FixedPoints, there: FixedPoints, branches: NDArray[np.int64], total: int, step: int
) -> tuple[NDArray[np.int64], int, list[Event]]:
    """Carry the branches of one input over to the next; return their numbers there, how many there are, and events."""
    numbers = np.full(len(there), -1, dtype=np.int64)
    ended: dict[int, tuple[Array, float]] = {}
    for row, z in enumerate(here.points):
        end, done = between.follow(z, backward=False)
        match = _same(there.points, end) if done == 1 else None
        if match is None or numbers[match] >= 0:
            ended[row] = (end, done)
        else:
            numbers[match] = branches[row]
    begun: dict[int, tuple[Array, float]] = {}
    for row in np.flatnonzero(numbers < 0).tolist():
        start, done = between.follow(there.points[row], backward=True)
        match = _same(here.points, start) if done == 1 else None
        if match is not None and match in ended:
            # It could be followed this way only: what stopped it the other way is too small to matter.
            numbers[row] = branches[match]
            del ended[match]
        else:
            numbers[row], total = total, total + 1
            begun[row] = (start, 1 - done)
    events = [
        Event("vanishes", step, done, end, int(branches[row]), str(here.stability[row]), None)
        for row, (end, done) in ended.items()
    ]
    for row, number in enumerate(numbers.tolist()):
        after = str(there.stability[row])
        if row in begun:
            events.append(Event("appears", step, begun[row][1], begun[row][0], number, None, after))
            continue
        before = str(here.stability[branches == number][0])
        if after != before:
            events.append(Event("changes", step, float("nan"), there.points[row], number, before, after))
    events.sort(key=lambda event: np.nan_to_num(event.fraction, nan=1.0))
    return numbers, total, events


def _same(points: Array, z: Array) -> int | None:
    """Which of some fixed points z is, or None."""
    away = np.linalg.norm(points - z, axis=1)
    match = int(away.argmin()) if len(away) else -1
    return match if match >= 0 and away[match] <= SAME * (1 + np.linalg.norm(z)) else None
