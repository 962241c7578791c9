"""Which fits a cross-validation needs, and those that were done."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from pyro_lowrank.data.recording import Floats, Recording
from pyro_lowrank.data.splits import split_features
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.serialization import describe
from pyro_lowrank.smc.kernels import is_built_in
from pyro_lowrank.training.baselines import Terms
from pyro_lowrank.validation.executors import Executor, run_jobs
from pyro_lowrank.validation.halving import Halving
from pyro_lowrank.validation.job import FitOptions, Initialise, Job, Scoring, seeded
from pyro_lowrank.validation.parts import Fold, Part, StoredRecording, check_part, content_of, means_over
from pyro_lowrank.validation.points import Point
from pyro_lowrank.validation.records import Record, read_record, record_path

logger = logging.getLogger(__name__)

Found = dict[tuple[int, int], Record]


@dataclass
class Plan:
    """What is to be fitted to what, and scored how; fields as the arguments of `sweep`, and how a model is built."""

    build: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    initialise: Initialise | None
    points: tuple[Point, ...]
    splits: tuple[Fold, ...]
    options: FitOptions
    num_filter_particles: int
    num_draws: int
    hidden: Any
    seed: int
    stored: StoredRecording | None = None
    halving: Halving | None = None
    measure: str = "R²"
    terms: set[Terms] = field(default_factory=set)

    def run(
        self, folder: Path, executor: Executor | None, num_workers: int, progress: bool
    ) -> tuple[Found, list[int], bool]:
        """Fit what has no record yet.

        Returns:
            The last record of each point and fold, how many steps each point took, and whether Ctrl-C came before the
            end.
        """
        alive, records, steps = list(range(len(self.points))), Found(), [0] * len(self.points)
        rungs = (None,) if self.halving is None else self.halving.rungs(self.options.num_steps)
        for rung in rungs:
            last = rung is None or rung == rungs[-1]
            found, interrupted = self._rung(alive, folder, None if last else rung, executor, num_workers, progress)
            records |= found
            for place, _ in found:
                steps[place] = self.points[place].options(self.options).num_steps if last else rung or 0
            if interrupted:
                return records, steps, True
            if self.halving is not None:
                kept = sorted(alive, key=lambda place: -_evidence(records, place))
                alive = sorted(kept[: self.halving.remaining(len(alive))])
        return records, steps, False

    def _rung(
        self,
        places: Sequence[int],
        folder: Path,
        stop_after: int | None,
        executor: Executor | None,
        num_workers: int,
        progress: bool,
    ) -> tuple[Found, bool]:
        jobs, records = self.prepare(places, folder, stop_after)
        done = len(records)
        told = "cross-validation" if stop_after is None else f"{stop_after} steps"
        bar = tqdm(total=done + len(jobs), initial=done, desc=told, disable=not progress)
        try:
            with bar, closing(run_jobs(list(jobs), executor, num_workers)) as finished:
                for job in finished:
                    record = read_record(job.path, job.rank, job.fold, job.held_out.trial_names, job.settings)
                    if record is None:
                        raise RuntimeError(
                            f"{job} is done, and there is no record of it in {folder.resolve()}: workers on other "
                            "machines need a `folder` on a file system that they share with this one."
                        )
                    records[jobs[job], job.fold] = record
                    bar.set_postfix_str(f"{job.name}: {sum(record.evidence) / sum(record.bins):.2f} nats/bin")
                    bar.update()
        except KeyboardInterrupt:
            logger.warning(
                "Interrupted after %d of %d fits; with a `folder`, calling it again goes on.", len(records), bar.total
            )
            return records, True
        return records, False

    def prepare(self, places: Sequence[int], folder: Path, stop_after: int | None) -> tuple[dict[Job, int], Found]:
        """Return the jobs that are left, and their points, and the records of others; check all there is to check."""
        scoring = self._scoring(self.splits[0].held_out)
        digests = [_digest(split) for split in self.splits]
        common = {
            "hidden": scoring.hidden.tolist(),
            "num_filter_particles": self.num_filter_particles,
            "num_draws": self.num_draws,
            "initialise": getattr(self.initialise, "__qualname__", str(self.initialise)),
        }
        jobs, records = {}, Found()
        for place in places:
            point = self.points[place]
            for fold, split in enumerate(self.splits):
                seed = point.seed(self.seed)
                with seeded(None, seed, f"model/{point.label}", fold):
                    model, guide = self.build(point.arguments)
                if fold == 0:
                    self._check(model, guide)
                    form = _form(model, guide) | point_settings(point)
                rank = _rank(point, model)
                settings = {**asdict(point.options(self.options)), "seed": seed, **common, **form}
                settings["data"] = digests[fold]
                path = record_path(folder.resolve(), point.name, fold, stop_after)
                record = read_record(path, rank, fold, split.held_out.trial_names, settings)
                if record is not None:
                    records[place, fold] = record
                    continue
                goes_on = record_path(folder.resolve(), point.name, fold).with_suffix(".safetensors")
                job = Job(
                    name=str(point),
                    label=point.label,
                    rank=rank,
                    fold=fold,
                    model=model,
                    guide=guide,
                    initialise=self.initialise,
                    train=split.train,
                    held_out=split.held_out,
                    options=point.options(self.options),
                    scoring=scoring if stop_after is None else scoring.without_hidden(),
                    seed=seed,
                    stop_after=stop_after,
                    path=path,
                    checkpoint=None if self.halving is None else goes_on,
                    settings=settings,
                )
                jobs[job] = place
        return jobs, records

    def _check(self, model: Any, guide: Any) -> None:
        if isinstance(model, StateSpaceModel):
            for split in self.splits:
                for part in split:
                    check_part(part, model)
            emission = model.bind().emission
            terms = Terms.of(model)
            self.terms |= set() if terms is None else {terms}
            self.measure = "bits per spike" if getattr(emission, "mean_name", "") == "rates" else "R²"
        if self.hidden is not None and not is_built_in(model, guide):
            raise ValueError(
                "Co-smoothing needs a StateSpaceModel under a built-in guide, got a user-written pair: pass "
                "hidden=None."
            )

    def _scoring(self, held_out: Part) -> Scoring:
        chosen = np.empty(0, dtype=np.int64)
        null: Floats = np.empty(0)
        if self.hidden is not None:
            # Of what is on disk only how many features there are counts.
            recording = held_out if isinstance(held_out, Recording) else _empty(held_out.y.shape[2])
            chosen = split_features(recording, self.hidden, seed=self.seed).held_out
            null = means_over([split.held_out for split in self.splits], self.stored, chosen)
        return Scoring(self.num_filter_particles, chosen, null, self.num_draws)


def point_settings(point: Point) -> dict[str, Any]:
    """Return what a record says of its point, beside the rank."""
    return {} if point.values.keys() == {"rank"} else {"point": dict(point.values)}


def _rank(point: Point, model: Any) -> int:
    if "rank" in point.values:
        return int(point.values["rank"])
    return model.dynamics.rank if isinstance(model, StateSpaceModel) else 0


def _evidence(records: Found, place: int) -> float:
    """Return the held-out evidence of a point per time bin, over all its folds."""
    found = [record for (other, _), record in records.items() if other == place]
    value = sum(sum(record.evidence) for record in found) / sum(sum(record.bins) for record in found)
    return value if value == value else -float("inf")


def _form(model: Any, guide: Any) -> dict[str, str]:
    """Return what tells whether two models are built alike."""
    try:
        return {"model": hashlib.sha256(repr(describe(model, guide)).encode()).hexdigest()}
    except TypeError:
        parts = [part.state_dict() for part in (model, guide) if isinstance(part, nn.Module)]
        shapes = [[(name, tuple(value.shape)) for name, value in part.items()] for part in parts]
        return {
            "model": f"{type(model).__qualname__} under {type(guide).__qualname__}",
            "shapes": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        }


def _empty(features: int) -> Recording:
    return Recording(np.zeros((1, 1, features)))


def _digest(split: Fold) -> str:
    digest = hashlib.sha256()
    for part in split:
        for content in content_of(part):
            digest.update(content)
    return digest.hexdigest()
