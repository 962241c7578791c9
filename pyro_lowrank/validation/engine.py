"""What cross-validation and sweeps have in common: a recording in folds, and points that are scored on them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pyro_lowrank.data.folds import time_folds, trial_folds
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.splits import Split
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.training.sources import is_stored
from pyro_lowrank.validation.beside import baselines_by_trial
from pyro_lowrank.validation.executors import Executor, check_executor
from pyro_lowrank.validation.halving import Halving
from pyro_lowrank.validation.job import FitOptions, Initialise
from pyro_lowrank.validation.parts import Fold, StoredRecording
from pyro_lowrank.validation.plan import Plan
from pyro_lowrank.validation.points import Point
from pyro_lowrank.validation.result import Scores


def scored(
    build: Callable[[Mapping[str, Any]], tuple[Any, Any]],
    points: tuple[Point, ...],
    data: Any,
    u: Any,
    *,
    folds: int | Sequence[Split],
    options: FitOptions,
    halving: Halving | None,
    initialise: Initialise | None,
    hidden: Any,
    num_filter_particles: int,
    num_draws: int,
    folder: str | os.PathLike[str] | None,
    num_workers: int,
    executor: Executor | None,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Return the entries of `Scores` of points of a grid; arguments as of `sweep`."""
    for point in points:
        check_positive_int("num_steps", point.options(options).num_steps)
        point.seed(seed)
    check_positive_int("seed", seed, minimum=0)
    stored = StoredRecording(data, u) if is_stored(data) and not isinstance(data, Dataset) else None
    plan = Plan(
        build=build,
        initialise=initialise,
        points=points,
        splits=_splits(_recording(data, u), folds, seed) if stored is None else _stored_folds(stored, folds, seed),
        stored=stored,
        options=options,
        halving=halving,
        num_filter_particles=check_positive_int("num_filter_particles", num_filter_particles),
        num_draws=check_positive_int("num_draws", num_draws),
        hidden=hidden,
        seed=seed,
    )
    check_positive_int("num_workers", num_workers)
    check_executor(executor)
    if executor is not None and num_workers > 1:
        raise ValueError(f"Pass `executor` or `num_workers`, not both: got num_workers={num_workers}.")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()) if folder is None else folder)
        place.mkdir(parents=True, exist_ok=True)
        records, steps, interrupted = plan.run(place, executor, num_workers, progress)
    entries = Scores.entries(
        records,
        steps,
        [split.held_out.trial_names for split in plan.splits],
        measure=plan.measure,
        hidden=hidden is not None,
        interrupted=interrupted,
        folder=None if folder is None else place,
    )
    return entries | {"baselines": {} if interrupted else baselines_by_trial(plan.terms, plan.splits)}


def _recording(data: Any, u: Any) -> Recording:
    """Return data in any of the forms that `plr.fit` takes as a recording."""
    if isinstance(data, Recording):
        if u is not None:
            raise ValueError("Inputs came with `data`, a Recording, which holds its own: make them part of it.")
        return data
    if isinstance(data, Tensor):
        return Recording(_array(data), None if u is None else _array(u))
    if not isinstance(data, Sequence):
        raise TypeError(f"`data` must be a Recording, a tensor or a list of trials, got {type(data).__name__}.")
    return Recording.from_trials([_array(y) for y in data], None if u is None else [_array(each) for each in u])


def _stored_folds(stored: StoredRecording, folds: int | Sequence[Split], seed: int) -> tuple[Fold, ...]:
    if isinstance(folds, Sequence):
        raise TypeError("`folds` of data on disk must be a number: splits hold recordings, which are in memory.")
    return stored.folds(folds, seed)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _splits(recording: Recording, folds: int | Sequence[Split], seed: int) -> tuple[Fold, ...]:
    return tuple(Fold(*split) for split in _in_memory(recording, folds, seed))


def _in_memory(recording: Recording, folds: int | Sequence[Split], seed: int) -> tuple[Split, ...]:
    if not isinstance(folds, Sequence):
        several = len(set(recording.trial_names)) > 1
        return trial_folds(recording, folds, seed=seed) if several else time_folds(recording, folds)
    splits = tuple(folds)
    if len(splits) < 2 or not all(isinstance(split, Split) for split in splits):
        raise TypeError(
            "`folds` must be a number, or at least two splits, as `data.trial_folds` and `data.time_folds` return them."
        )
    return splits
