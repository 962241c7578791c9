"""The fixed points at two inputs joined to branches, and where branches begin, end and change stability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.branches import Between, Path, same_point
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.result import FixedPoints

NEAR = 1e-3
"""Share of the way between two inputs within which branches that begin or end do so together."""

DEEPEST = 10
"""How often a way is halved where a branch between two inputs is at neither of them."""

APART = 0.02
"""Share of the way over which the directions of branches that meet are compared."""


@dataclass
class Step:
    """How the fixed points at one share of the way are those of another.

    Attributes:
        numbers: branch of each fixed point at the later input.
        ended: the paths of branches that end, by branch.
        begun: the paths, backwards, of branches that begin, by branch.
        followed: the paths of the others, by branch.
    """

    numbers: NDArray[np.int64]
    ended: dict[int, Path] = field(default_factory=dict)
    begun: dict[int, Path] = field(default_factory=dict)
    followed: dict[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Happening:
    """A branch that begins, ends or changes stability at a share of the way between two inputs."""

    kind: str
    time: float
    point: Array
    branch: int
    before: str | None
    after: str | None


class Joiner:
    """Joins fixed points between two inputs, and looks in between where branches come and go unpaired.

    Args:
        between: the networks on the way.
        analyse: finds the fixed points at a share of the way.
        total: number of branches so far.
    """

    def __init__(self, between: Between, analyse: Callable[[float], FixedPoints], total: int) -> None:
        self.between, self.analyse, self.total = between, analyse, total
        self.happenings: list[Happening] = []

    def join(
        self,
        start: float,
        here: FixedPoints,
        end: float,
        there: FixedPoints,
        branches: NDArray[np.int64],
        depth: int = 0,
    ) -> NDArray[np.int64]:
        """Return the branches of the fixed points at the end of a stretch; note what happens on the way."""
        before = self.total
        step = self._match(start, here, end, there, branches)
        is_known = here.certificate.complete and there.certificate.complete
        if is_known and depth < DEEPEST and not self._is_balanced(step):
            self.total = before
            middle = 0.5 * (start + end)
            between = self.analyse(middle)
            numbers = self.join(start, here, middle, between, branches, depth + 1)
            return self.join(middle, between, end, there, numbers, depth + 1)
        self._carry_over(step)
        for number, path in step.followed.items():
            self.happenings += [Happening("changes", t, z, number, old, new) for t, z, old, new in self._turns(path)]
        labels = dict(zip(branches.tolist(), here.stability.tolist(), strict=True))
        for number, path in step.ended.items():
            # Its stability may have changed on the way.
            turns = self._turns(path)
            self.happenings += [Happening("changes", t, z, number, old, new) for t, z, old, new in turns]
            label = turns[-1][3] if turns else labels[number]
            self.happenings.append(Happening("vanishes", *_tip(path), number, label, None))
        labels = dict(zip(step.numbers.tolist(), there.stability.tolist(), strict=True))
        for number, path in step.begun.items():
            turns = self._turns(path)
            self.happenings += [Happening("changes", t, z, number, new, old) for t, z, old, new in turns]
            label = turns[-1][3] if turns else labels[number]
            self.happenings.append(Happening("appears", *_tip(path), number, None, label))
        return step.numbers

    def _turns(self, path: Path) -> list[tuple[float, Array, str, str]]:
        return self.between.changes(path)

    def _match(
        self, start: float, here: FixedPoints, end: float, there: FixedPoints, branches: NDArray[np.int64]
    ) -> Step:
        step = Step(np.full(len(there), -1, dtype=np.int64))
        for number, z in zip(branches.tolist(), here.points, strict=True):
            path = self.between.follow(z, start, end)
            match = same_point(there.points, path.points[-1]) if path.has_arrived else None
            if match is not None and step.numbers[match] >= 0:
                step.ended[number] = path.until(step.followed[int(step.numbers[match])])
            elif match is None:
                step.ended[number] = path
            else:
                step.numbers[match] = number
                step.followed[number] = path
        for row in np.flatnonzero(step.numbers < 0).tolist():
            path = self.between.follow(there.points[row], end, start)
            match = same_point(here.points, path.points[-1]) if path.has_arrived else None
            number = -1 if match is None else int(branches[match])
            if number in step.ended:
                # It could be followed this way only: what stopped it the other way is too small to matter.
                del step.ended[number]
                step.followed[number] = Path(path.times[::-1], path.points[::-1], True)
            else:
                number, self.total = self.total, self.total + 1
                step.begun[number] = path
            step.numbers[row] = number
        return step

    def _is_balanced(self, step: Step) -> bool:
        """Whether the signs of the branches that begin at a place on the way add up to those of the ones that end."""
        tips = [(float(path.times[-1]), 1, path) for path in step.begun.values()]
        tips += [(float(path.times[-1]), -1, path) for path in step.ended.values()]
        tips.sort(key=lambda tip: tip[0])
        total, last = 0, -np.inf
        for time, direction, path in tips:
            if time - last > NEAR and total:
                return False
            # Of its other end, where the sign is clear.
            total += direction * self.between.sign(float(path.times[0]), path.points[0])
            last = time
        return total == 0

    def _carry_over(self, step: Step) -> None:
        """Let branches that end go on in those that begin there in the same direction.

        At a pitchfork and where two branches cross, sign det(I - J) changes along a branch, which cannot be followed
        through the singular point.
        """
        for old, path in list(step.ended.items()):
            fits = [(misfit, new) for new, other in step.begun.items() if (misfit := _misfit(path, other)) < 0.3]
            if not fits:
                continue
            new = min(fits)[1]
            back = step.begun.pop(new)
            del step.ended[old]
            step.numbers[step.numbers == new] = old
            step.followed[old] = Path(
                np.concatenate([path.times, back.times[::-1]]), np.concatenate([path.points, back.points[::-1]]), True
            )


def _tip(path: Path) -> tuple[float, Array]:
    return float(path.times[-1]), path.points[-1]


def _misfit(path: Path, other: Path) -> float:
    """How much two branches, one up to a place and one back to it, differ in direction there: 0 not at all, 1 much."""
    (time, z), (begin, start) = _tip(path), _tip(other)
    size = 1 + float(np.abs(z).max())
    if abs(begin - time) > NEAR or np.linalg.norm(z - start) > 0.05 * size:
        return np.inf
    share = min(APART, abs(float(path.times[0]) - time), abs(float(other.times[0]) - begin))
    if share <= 0:
        return np.inf
    first, second = z - path.at(time - share), other.at(begin + share) - start
    rest = float(np.linalg.norm(first - second) + np.linalg.norm(z - start))
    return rest / (float(np.linalg.norm(first) + np.linalg.norm(second)) + 1e-3 * size)
