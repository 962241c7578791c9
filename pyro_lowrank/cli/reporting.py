"""`pyro-lowrank report`: one page with pictures on a model and its recording."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pyro_lowrank.cli.files import list_files, output_files
from pyro_lowrank.cli.filtering import load_both
from pyro_lowrank.data import read_recording
from pyro_lowrank.reports.report import report
from pyro_lowrank.training.baselines import Baselines
from pyro_lowrank.training.result import FitResult

# Settings of a fit that its page tells, by the names of the options.
_TOLD = ("likelihood", "steps", "window", "batch_size", "learning_rate", "seed")


def run(options: argparse.Namespace) -> int:
    """Read, make the page; return the exit code."""
    files = output_files(options.out, "report.html")
    loaded = load_both(options)
    folder = options.model if options.model.is_dir() else options.model.parent
    summary = _summary(folder)
    behaviour = None
    if options.behaviour is not None:
        behaviour = read_recording(options.behaviour, key=options.behaviour_key)
        print(f"Behaviour: {behaviour.orientation}")
    report(
        files["report.html"],
        loaded.model,
        loaded.guide,
        loaded.recording,
        fit=_course(summary),
        behaviour=None if behaviour is None else behaviour.data,
        behaviour_names=() if behaviour is None else behaviour.feature_names,
        num_particles=options.particles,
        num_draws=options.draws,
        settings={name: value for name, value in summary.get("options", {}).items() if name in _TOLD},
        title=options.title or options.data.stem,
        seed=options.seed,
    )
    list_files(options.out, ["report.html"])
    return 0


def _summary(folder: Path) -> dict[str, Any]:
    """Return what `fit` wrote of itself beside the model, or nothing.

    Raises:
        ValueError: if the file is not what `fit` wrote.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not what `pyro-lowrank fit` wrote: {error}; remove it.") from error
    return found if isinstance(found, dict) else {}


def _course(summary: dict[str, Any]) -> FitResult | None:
    """Return how a fit went, as its summary tells."""
    if not summary.get("evidence"):
        return None
    arrays: dict[str, Any] = {
        name: np.asarray(summary.get(name) or [], dtype=np.float64)
        for name in ("evidence", "ess", "gradient_norm", "learning_rate", "held_out_evidence")
    }
    steps = len(arrays["evidence"])
    return FitResult(
        **arrays,
        held_out_steps=np.asarray(summary.get("held_out_steps") or [], dtype=np.int64),
        kept_step=int(summary.get("kept_step", steps)),
        num_steps=int(summary.get("num_steps", steps)),
        interrupted=bool(summary.get("interrupted", False)),
        checkpoint=None,
        seconds=float(summary.get("seconds", 0.0)),
        without_dynamics=summary.get("without_dynamics"),
        baselines=Baselines.of_records(summary["baselines"]) if summary.get("baselines") else None,
    )
