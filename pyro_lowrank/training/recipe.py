"""How a fit goes where nothing else is asked for: one recipe, for `fit`, the command line and cross-validation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.guides.base import Guide

# Of windows, and of cross-validation. Held-out evidence of EEG was as good after 400 as after 4,000.
NUM_STEPS = 2000
# Of whole trials: with these, and twice the particles, held-out evidence of a chaotic network rose by 0.02 to 0.04 nats
# per bin over 2,000 steps.
NUM_STEPS_OF_TRIALS = 3000
LONGEST_TRIAL = 300
WINDOW = 100
LEARNING_RATE = 1e-2
DECAY = 0.1


@dataclass(frozen=True)
class Recipe:
    """The numbers of a fit.

    Attributes:
        num_steps: steps in all.
        window: time bins of a window; None for whole trials.
        batch_size: windows or trials per step; None for all trials.
        num_particles: of the filter.
        learning_rate: of the first step.
        final_learning_rate: of the last step.
        chosen: what was not asked for but chosen, and why, a line each.
    """

    num_steps: int
    window: int | None
    batch_size: int | None
    num_particles: int
    learning_rate: float
    final_learning_rate: float
    chosen: tuple[str, ...]

    @classmethod
    def of(
        cls,
        observed: Tensor,
        guide: Any,
        *,
        num_steps: int | None,
        window: int | Literal["auto"] | None,
        batch_size: int | None,
        num_particles: int | None,
        learning_rate: float | None,
        final_learning_rate: float | None,
    ) -> Recipe:
        """Choose what was left open, from the guide and which time bins hold anything, `trials x time`."""
        recipe = cls(NUM_STEPS, None, 1, 1, LEARNING_RATE, 0.0, ())
        recipe = recipe._with_batches(observed, window, batch_size, _asked(guide).bins_to_train)
        recipe = recipe._with_steps(num_steps)._with_particles(guide, num_particles)
        return recipe._with_rates(learning_rate, final_learning_rate)

    def _told(self, line: str, **chosen: Any) -> Recipe:
        return replace(self, chosen=(*self.chosen, line), **chosen)

    def _with_steps(self, num_steps: int | None) -> Recipe:
        if num_steps is not None:
            return replace(self, num_steps=check_positive_int("num_steps", num_steps))
        what, wanted = ("whole trials", NUM_STEPS_OF_TRIALS) if self.window is None else ("windows", NUM_STEPS)
        return self._told(
            f"num_steps={wanted}: of {what}; pass more where held-out evidence still rises.", num_steps=wanted
        )

    def _with_batches(
        self, observed: Tensor, window: int | Literal["auto"] | None, batch_size: int | None, bins: int
    ) -> Recipe:
        recipe = self
        if isinstance(window, str) and window != "auto":
            raise ValueError(f"`window` must be a number of time bins, 'auto' or None, got {window!r}.")
        if window == "auto":
            longest = int(recorded_lengths(observed).amax())
            window = WINDOW if longest > LONGEST_TRIAL else None
            if window is None:
                line = f"window=None: trials of at most {longest} time bins are trained on whole."
            else:
                line = f"window={window}: trials have up to {longest} time bins; windows of them are drawn."
            recipe = recipe._told(line)
        window = None if window is None else check_positive_int("window", window)
        if batch_size is not None:
            return replace(recipe, window=window, batch_size=check_positive_int("batch_size", batch_size))
        length = max(1.0, float(recorded_lengths(observed).double().mean())) if window is None else float(window)
        fitting, what = max(1, round(bins / length)), "trials" if window is None else "windows"
        if window is None and fitting >= len(observed):
            return recipe._told(
                f"batch_size=None: all {len(observed)} trials in each step.", window=None, batch_size=None
            )
        line = f"batch_size={fitting}: {what} of some {bins} time bins together in each step."
        return recipe._told(line, window=window, batch_size=fitting)

    def _with_particles(self, guide: Any, num_particles: int | None) -> Recipe:
        if num_particles is not None:
            return replace(self, num_particles=num_particles)
        wanted = _asked(guide).particles_to_train
        name = "no guide" if guide is None else type(guide).__name__
        return self._told(
            f"num_particles={wanted}: of {name}; the better a guide aims, the fewer do.", num_particles=wanted
        )

    def _with_rates(self, learning_rate: float | None, final_learning_rate: float | None) -> Recipe:
        recipe = self
        if learning_rate is None:
            recipe = recipe._told(f"learning_rate={LEARNING_RATE:g}: in units of the standardised recording.")
        first = check_positive("learning_rate", LEARNING_RATE if learning_rate is None else learning_rate)
        if final_learning_rate is None:
            recipe = recipe._told(f"final_learning_rate={DECAY * first:g}: a tenth of the first.")
        last = check_positive(
            "final_learning_rate", DECAY * first if final_learning_rate is None else final_learning_rate
        )
        return replace(recipe, learning_rate=first, final_learning_rate=last)


def _asked(guide: Any) -> Guide | type[Guide]:
    """Return who is asked how many particles and time bins are wanted: a guide of the user's own does not say."""
    return guide if isinstance(guide, Guide) else Guide


def recorded_lengths(seen: Tensor) -> Tensor:
    """Return the number of time bins from the first to the last recorded one of each trial, `trials`."""
    bins = torch.arange(seen.shape[1], device=seen.device)
    first = torch.where(seen, bins, seen.shape[1]).amin(1)
    last = torch.where(seen, bins, -1).amax(1)
    return (last - first + 1).clamp(min=0)
