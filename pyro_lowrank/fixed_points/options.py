"""What a user may choose about how fixed points are looked for, and when a search stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyro_lowrank.errors import check_choice, check_positive, check_positive_int

METHODS = ("certified", "enumerate", "search")

ProgressCallback = Callable[[int, int], None]
"""Called with how many boxes, regions or starts are done and how many fixed points are known."""


@dataclass(frozen=True)
class Options:
    """The options of `find_fixed_points`, checked.

    Attributes:
        method: `"certified"`, `"enumerate"` or `"search"`.
        max_boxes: most boxes, linear regions or starts of Newton's method; as many as it takes if None.
        max_seconds: most time, in seconds; as much as it takes if None. Compiling is not counted.
        threads: of the certified method; as many as there are cores if None.
        num_starts: most starts of a search.
        constrained: whether a search starts only in linear regions that exist.
        seed: of the random starts of a search.
        progress: called now and then with the numbers of boxes (or regions, or starts) and of fixed points so far.

    Raises:
        ValueError: if there is no such method, or a number is not above zero.
        TypeError: if something is not a number.

    Example::

        >>> Options(max_seconds=10).method
        'certified'
    """

    method: str = "certified"
    max_boxes: int | None = None
    max_seconds: float | None = None
    threads: int | None = None
    num_starts: int = 10_000
    constrained: bool = True
    seed: int = 0
    progress: ProgressCallback | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.max_boxes is not None:
            check_positive_int("max_boxes", self.max_boxes)
        if self.max_seconds is not None:
            check_positive("max_seconds", self.max_seconds)
        if self.threads is not None:
            check_positive_int("threads", self.threads)
        check_positive_int("num_starts", self.num_starts)
        check_positive_int("seed", self.seed, minimum=0)

    def until(self, share: float = 1.0) -> float:
        """Return when a share of the time from now on will be over, by `time.monotonic`."""
        return math.inf if self.max_seconds is None else time.monotonic() + share * self.max_seconds

    def tell(self, count: int, known: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(count, known)
