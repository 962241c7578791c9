"""Fixed points followed from one input to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from pyro_lowrank.fixed_points.stability import classify, knots_at, spectra
from pyro_lowrank.piecewise import PiecewiseLinear

SMALLEST_STEP = 1e-6
"""Share of the way between two inputs below which a branch that cannot be followed further has ended."""

SAME = 1e-6
"""Relative distance at which the end of a branch is one of the fixed points there."""

STILL = 1e-6
"""Relative size of a step below which its direction says nothing."""

PASSING = ("boundary", "marginal")
"""Labels that a branch has where it passes from one to another."""


class Path(NamedTuple):
    """Where a fixed point was followed to."""

    times: Array
    """Shares of the way between the two inputs, in the order they were reached, `steps`."""
    points: Array
    """`steps x rank`."""
    has_arrived: bool
    """Whether it got to the other input."""

    def until(self, other: Path) -> Path:
        """Return it up to where it meets another path, which it is on from there."""
        if len(other.times) < 2:
            return self
        gaps = [np.linalg.norm(z - other.at(float(t))) for t, z in zip(self.times, self.points, strict=True)]
        apart = np.array(gaps) > SAME * (1 + np.abs(self.points).max(1))
        last = int(np.flatnonzero(apart)[-1]) if apart.any() else 0
        return Path(self.times[: last + 1], self.points[: last + 1], False)

    def at(self, time: float) -> Array:
        """Return where it was at that share of the way, between the points that it was followed to."""
        order = np.argsort(self.times, kind="stable")
        return np.array([np.interp(time, self.times[order], column[order]) for column in self.points.T])


class Between:
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
        # Outputs as of `LatentMap`, units x rank.
        self._outputs = np.asarray(right, dtype=np.float64).T

    def network(self, t: float) -> LatentMap:
        """The network at a share t of the way."""
        return build_network(*self._weights, self.first + t * self.change, self._constant)

    def follow(self, z: Array, start: float, end: float) -> Path:
        """Follow a fixed point at a share `start` of the way towards `end`, before or after it."""
        pace, done, stride = end - start, 0.0, 0.125
        network = self.network(start)
        sign = np.sign(np.linalg.det(-network.jacobian(z)))
        times, points = [start], [z]
        while done < 1:
            stride = min(stride, 1 - done)
            ahead = self.network(start + pace * (done + stride))
            trial = self._correct(network, ahead, z, pace * stride, sign)
            if trial is None:
                stride /= 2
                if stride < SMALLEST_STEP:
                    break
                continue
            z, network, done = trial, ahead, done + stride
            times.append(start + pace * done)
            points.append(z)
            stride *= 1.5
        return Path(np.array(times), np.array(points), done >= 1)

    def changes(self, path: Path) -> list[tuple[float, Array, str, str]]:
        """Return where stability changes along a path: share of the way, point, label before and label after."""
        labels = [self._label(t, z) for t, z in zip(path.times.tolist(), path.points, strict=True)]
        ends = (0, len(labels) - 1) if path.has_arrived else (0,)
        rows = [row for row, label in enumerate(labels) if label not in PASSING or row in ends]
        found = []
        for row, after in pairwise(rows):
            if labels[row] != labels[after]:
                time, z = self._bisect(path, row, after, labels[row])
                found.append((time, z, labels[row], labels[after]))
        return found

    def _bisect(self, path: Path, row: int, after: int, label: str) -> tuple[float, Array]:
        """Return where a path has a label no more, between two of its points."""
        low, z, high = float(path.times[row]), path.points[row], float(path.times[after])
        best = path.points[after]
        for _ in range(30):
            middle = 0.5 * (low + high)
            network, ahead = self.network(low), self.network(middle)
            sign = np.sign(np.linalg.det(-network.jacobian(z)))
            trial = self._correct(network, ahead, z, middle - low, sign)
            if trial is None:
                break
            best = trial
            if self._label(middle, trial) == label:
                low, z = middle, trial
            else:
                high = middle
        return high, best

    def _label(self, time: float, z: Array) -> str:
        network = self.network(time)
        eigenvalues = spectra(network.jacobian(z) + np.eye(network.rank))
        return str(classify(eigenvalues[None], np.asarray(knots_at(network, z[None]).any(1))).labels[0])

    def sign(self, time: float, z: Array) -> int:
        """Return sign det(I - J) of a fixed point."""
        return int(np.sign(np.linalg.det(-self.network(time).jacobian(z))))

    def _correct(self, network: LatentMap, ahead: LatentMap, z: Array, stride: float, sign: float) -> Array | None:
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
        over_knots = bool((network.rates(z)[2] != ahead.rates(trial)[2]).any())
        return trial if residual.all() and same_sign and _is_one_step(z, trial, tangent, after, over_knots) else None

    def _tangent(self, network: LatentMap, z: Array) -> Array:
        """How a fixed point moves per whole way, `rank`."""
        slopes = network.rates(z)[1]
        step = np.linalg.solve(network.jacobian(z), self._outputs.T @ (slopes * self.change))
        return -np.asarray(step, dtype=np.float64)


def _is_one_step(z: Array, trial: Array, before: Array, after: Array, over_knots: bool) -> bool:
    """Whether a step is what the tangents at its ends make of it, and not a jump to another branch.

    Beyond a knot the branch goes on along the second tangent, so any mean of the two is right. Where they differ a lot
    the step must be short and over a knot: elsewhere the branch is smooth, and what turns sharply is another branch.
    """
    step, size = trial - z, float(np.linalg.norm(before) + np.linalg.norm(after))
    turn, scale = before - after, 1 + float(np.linalg.norm(z))
    share = float(np.clip((step - after) @ turn / max(float(turn @ turn), 1e-300), 0, 1))
    rest = float(np.linalg.norm(step - after - share * turn))
    # Where a branch hardly moves, its direction is rounding.
    is_alike = np.linalg.norm(turn) <= 0.5 * size + STILL * scale
    is_bent = over_knots and np.linalg.norm(step) <= 1e-2 * scale
    return bool(rest <= 0.1 * size + 1e-12 * scale and (is_alike or is_bent))


def same_point(points: Array, z: Array) -> int | None:
    """Which of some fixed points z is, or None."""
    away = np.linalg.norm(points - z, axis=1)
    match = int(away.argmin()) if len(away) else -1
    return match if match >= 0 and away[match] <= SAME * (1 + np.linalg.norm(z)) else None
