"""The set of fixed points as the input to a network changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.fixed_points.branches import Between
from pyro_lowrank.fixed_points.find import analyse
from pyro_lowrank.fixed_points.joining import Happening, Joiner
from pyro_lowrank.fixed_points.network import Array, build_network
from pyro_lowrank.fixed_points.options import Options, ProgressCallback
from pyro_lowrank.fixed_points.result import FixedPoints
from pyro_lowrank.piecewise import PiecewiseLinear


@dataclass(frozen=True, eq=False)
class Event:
    """A fixed point that appears, vanishes or changes stability between two inputs.

    Attributes:
        kind: `"appears"`, `"vanishes"` or `"changes"`.
        step: between which inputs: number `step` and the next.
        fraction: how far between them.
        point: where: the last, or first, point that could be followed, `rank`.
        branch: which branch of `Continuation.branches`; one that appears and vanishes between two inputs is on none
            of the lists there.
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
        what = {
            "appears": f"{self.after} appears",
            "vanishes": f"{self.before} vanishes",
            "changes": f"{self.before} becomes {self.after}",
        }[self.kind]
        return f"input {self.step + self.fraction:.4g}: branch {self.branch}, {what} at {where}"


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
    progress: ProgressCallback | None = None,
) -> Continuation:
    r"""Find the fixed points at each of a sequence of inputs, and follow each from one input to the next.

    Between two inputs a point moves along :math:`dz = (I - J)^{-1} V \phi'(x)\, dI`; Newton's method keeps it on its
    branch, and sign det(I - J) does not change along it. A branch that can be followed no further has ended there, at a
    fold or a knot, or where branches meet: at a pitchfork, or where two cross, the one that goes on in the same
    direction is the same branch, which changes stability. Branches end and begin together, with signs that add up to
    nothing. Where they do not, and both lists are proved to be complete, there are branches in between that are at
    neither input, and the fixed points half way are found as well.

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

    options = Options(method, max_boxes, max_seconds, threads, num_starts, constrained, seed, progress)
    results = tuple(analyse(network, options) for network in networks)
    branches = [np.arange(len(results[0]))]
    total = len(results[0])
    events: list[Event] = []
    for step, (here, there) in enumerate(pairwise(results)):
        between = Between(decay, left, right, bias, activation, currents[step], currents[step + 1], constant)
        joiner = Joiner(between, lambda time, between=between: analyse(between.network(time), options), total)  # type: ignore[misc]
        branches.append(joiner.join(0.0, here, 1.0, there, branches[-1]))
        total = joiner.total
        events += _events(step, joiner.happenings)
    return Continuation(results, tuple(branches), tuple(events))


def _events(step: int, happenings: list[Happening]) -> list[Event]:
    """Return what happened between two inputs, in order."""
    return [
        Event(
            happening.kind, step, happening.time, happening.point, happening.branch, happening.before, happening.after
        )
        for happening in sorted(happenings, key=lambda happening: (happening.time, happening.branch))
    ]
