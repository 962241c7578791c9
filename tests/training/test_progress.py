"""The time that is left counts no compilation, and the course of a fit says what to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.training.progress import ProgressBar
from pyro_lowrank.training.result import FitResult


def test_the_time_left_leaves_out_the_first_step() -> None:
    # Steps of this call end at these seconds: the first compiles for half a minute.
    ends = iter([30.0, 31.0, 32.0, 36.0])
    progress = ProgressBar(104, 100, shown=False, clock=lambda: next(ends))
    assert [progress.seconds_left(step) for step in (101, 102, 103, 104)] == [None, 2.0, 1.0, 0.0]


def test_the_time_left_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from pyro_lowrank.training.result import StepReport

    ends = iter([10.0, 12.0])
    with ProgressBar(5, 0, shown=True, clock=lambda: next(ends)) as progress:
        for step in (1, 2):
            progress.show(StepReport(step, 5, -1.25, 0.5, 1.0, 0.1, -2.0))
    assert "left=00:06" in capsys.readouterr().err


def result_of(held_out: list[float], **changes: Any) -> FitResult:
    """A fit of 100 steps that evaluated held-out data every 25."""
    steps = 25 * np.arange(len(held_out))
    told: dict[str, Any] = {
        "evidence": np.zeros(100),
        "ess": np.full(100, 0.5),
        "gradient_norm": np.ones(100),
        "learning_rate": np.ones(100),
        "held_out_steps": steps,
        "held_out_evidence": np.array(held_out),
        "kept_step": 100,
        "num_steps": 100,
        "interrupted": False,
        "checkpoint": Path("c"),
        "seconds": 1.0,
    }
    return FitResult(**told | changes)


def test_advice_names_what_was_seen() -> None:
    assert result_of([-9.0, -5.0, -3.0, -2.0, -1.0]).advice == (
        "Held-out evidence still rose when the fit ended: more steps (num_steps=200) may give a better model.",
    )
    assert result_of([-9.0, -5.0, -2.0, -1.01, -1.0]).advice == ()
    assert "was best after 25 of 100 steps and fell since" in result_of([-9.0, -1.0, -2.0, -3.0, -4.0]).advice[0]
    assert "! Only 5.0 % of the particles" in str(result_of([], ess=np.full(100, 0.05)))
    # The Gaussian filter has no particles.
    assert result_of([], ess=np.full(100, np.nan)).advice == ()
    poor = replace(result_of([-9.0, -5.0, -2.0, -1.01, -1.0]), without_dynamics=-0.9)
    assert "is not better on the held-out data than independent features" in poor.advice[0]
    assert "  for scale       -0.900 nats per bin held out, without any dynamics" in str(poor)
    assert replace(poor, without_dynamics=-1.1).advice == ()
    assert result_of([-9.0, -5.0, -3.0, -2.0, -1.0], interrupted=True).advice == ()
