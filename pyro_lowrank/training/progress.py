"""The progress bar of a fit: what it shows, and how long the steps that are left will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType

from tqdm.auto import tqdm

from pyro_lowrank.training.result import StepReport

# Without tqdm's own rate, evidence and effective size fit beside the bar in 80 columns. Its own estimate of the time
# that is left would count the first step, which may compile loops for longer than all others take.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class ProgressBar:
    """A progress bar whose estimate of the time that is left leaves out the first step of this call.

    Args:
        num_steps: steps in all.
        taken: steps before this call.
        shown: whether there is a bar.
        clock: seconds that pass.
    """

    def __init__(
        self, num_steps: int, taken: int, *, shown: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._num_steps, self._clock = num_steps, clock
        self._first: tuple[int, float] | None = None
        self._bar = tqdm(
            total=num_steps, initial=taken, desc="fit", dynamic_ncols=True, bar_format=_BAR, disable=not shown
        )
        # The first step may compile loops, for some ten seconds in which nothing moves.
        self._bar.set_postfix_str("preparing the first step")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def seconds_left(self, step: int) -> float | None:
        """Return how long the steps after `step` will take, as the ones since the first took; None after that one."""
        now = self._clock()
        if self._first is None:
            self._first = step, now
        first, then = self._first
        return None if step == first else (now - then) / (step - first) * (self._num_steps - step)

    def show(self, report: StepReport) -> None:
        """Show a step."""
        left = self.seconds_left(report.step)
        shown = {} if left is None else {"left": tqdm.format_interval(left)}
        shown["nats/bin"] = f"{report.evidence:.2f}"
        if not math.isnan(report.ess):
            shown["ESS"] = f"{100 * report.ess:.0f}%"
        if report.held_out is not None:
            shown["held out"] = f"{report.held_out:.2f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
