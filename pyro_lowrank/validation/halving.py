"""Successive halving: most steps go to what promises most."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_lowrank.errors import check_positive_int


@dataclass(frozen=True)
class Halving:
    """Fit all points for a few steps, the better part of them for more, and so on.

    Args:
        first_steps: after how many steps points are compared for the first time, on what is held out of all folds.
        factor: the share of points that go on is one over this, and each time they take this times as many steps.

    Example::

        >>> Halving(100, factor=3).rungs(1000), Halving(100).remaining(8)
        ((100, 300, 900, 1000), 3)

    References:
        Jamieson and Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter optimization",
        AISTATS.
    """

    first_steps: int
    factor: int = 3

    def __post_init__(self) -> None:
        check_positive_int("first_steps", self.first_steps)
        check_positive_int("factor", self.factor, minimum=2)

    def rungs(self, num_steps: int) -> tuple[int, ...]:
        """Return after how many steps points are compared, the last being all."""
        found = [self.first_steps]
        while found[-1] < num_steps:
            found.append(min(num_steps, self.factor * found[-1]))
        return tuple(steps for steps in found if steps < num_steps) + (num_steps,)

    def remaining(self, number: int) -> int:
        """Return how many of so many points go on."""
        return math.ceil(number / self.factor)
