"""Which fits a cross-validation needs, and those that were done."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.splits import Split, split_features
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.serialization import describe
from pyro_lowrank.smc.kernels import is_built_in
from pyro_lowrank.training.tensors import as_tensors
from pyro_lowrank.validation.executors import Executor, run_jobs
from pyro_lowrank.validation.job import FitOptions, Initialise, Job, Scoring, seeded
from pyro_lowrank.validation.records import Record, read_record

logger = logging.getLogger(__name__)

Factory = Callable[[int], tuple[Any, Any]]


@dataclass
class Plan:
    """What is to be fitted to what, and scored how; fields as the arguments of `cross_validate`."""

    factory: Factory
    initialise: Initialise | None
    ranks: tuple[int, ...]
    splits: tuple[Split, ...]
    options: FitOptions
    num_filter_particles: int
    num_draws: int
    hidden: Any
    seed: int
    measure: str = "R²"

    def run(
        self, folder: Path, executor: Executor | None, num_workers: int, progress: bool
    ) -> tuple[dict[tuple[int, int], Record], bool]:
        """Fit what has no record yet; return all records, by rank and fold, and whether Ctrl-C came before the end."""
        jobs, records = self.prepare(folder)
        done = len(records)
        bar = tqdm(total=done + len(jobs), initial=done, desc="cross-validation", disable=not progress)
        try:
            with bar, closing(run_jobs(jobs, executor, num_workers)) as finished:
                for job in finished:
                    record = read_record(folder, job.rank, job.fold, job.held_out.trial_names, job.settings)
                    if record is None:
                        raise RuntimeError(
                            f"{job} is done, and there is no record of it in {folder.resolve()}: workers on other "
                            "machines need a `folder` on a file system that they share with this one."
                        )
                    records[job.rank, job.fold] = record
                    bar.set_postfix_str(f"rank {job.rank}: {sum(record.evidence) / sum(record.bins):.2f} nats/bin")
                    bar.update()
        except KeyboardInterrupt:
            logger.warning(
                "Interrupted after %d of %d fits; with a `folder`, calling it again goes on.", len(records), bar.total
            )
            return records, True
        return records, False

    def prepare(self, folder: Path) -> tuple[list[Job], dict[tuple[int, int], Record]]:
        """Return the jobs that are left, and the records of those that are done; check all there is to check."""
        first = self.splits[0].held_out
        scoring = self._scoring(first)
        digests = [_digest(split) for split in self.splits]
        common = {
            **asdict(self.options),
            "hidden": scoring.hidden.tolist(),
            "num_filter_particles": self.num_filter_particles,
            "num_draws": self.num_draws,
            "initialise": getattr(self.initialise, "__qualname__", str(self.initialise)),
            "seed": self.seed,
        }
        jobs, records = [], {}
        for rank in self.ranks:
            for fold, split in enumerate(self.splits):
                model, guide = self._build(rank, fold)
                if fold == 0:
                    self._check(model, guide, rank)
                    form = _form(model, guide)
                settings = {**common, **form, "data": digests[fold]}
                record = read_record(folder, rank, fold, split.held_out.trial_names, settings)
                if record is not None:
                    records[rank, fold] = record
                    continue
                jobs.append(
                    Job(
                        rank=rank,
                        fold=fold,
                        model=model,
                        guide=guide,
                        initialise=self.initialise,
                        train=split.train,
                        held_out=split.held_out,
                        options=self.options,
                        scoring=scoring,
                        seed=self.seed,
                        folder=folder.resolve(),
                        settings=settings,
                    )
                )
        return jobs, records

    def _build(self, rank: int, fold: int) -> tuple[Any, Any]:
        with seeded(None, self.seed, f"model/{rank}", fold):
            built = self.factory(rank)
        if not isinstance(built, tuple) or len(built) != 2:
            raise TypeError(f"`factory({rank})` must return (model, guide), got {type(built).__name__}.")
        return built

    def _check(self, model: Any, guide: Any, rank: int) -> None:
        if isinstance(model, StateSpaceModel):
            for split in self.splits:
                for part in split:
                    _check_data(model, part)
            if model.dynamics.rank != rank:
                raise ValueError(f"`factory({rank})` returned a model of rank {model.dynamics.rank}.")
            emission = model.bind().emission
            self.measure = "bits per spike" if getattr(emission, "mean_name", "") == "rates" else "R²"
        if self.hidden is not None and not is_built_in(model, guide):
            raise ValueError(
                "Co-smoothing needs a StateSpaceModel under a built-in guide, got a user-written pair: pass "
                "hidden=None."
            )

    def _scoring(self, recording: Recording) -> Scoring:
        chosen = np.empty(0, dtype=np.int64)
        null = np.empty(0)
        if self.hidden is not None:
            chosen = split_features(recording, self.hidden, seed=self.seed).held_out
            rows = [split.held_out.data[..., chosen].reshape(-1, len(chosen)) for split in self.splits]
            null = np.nanmean(np.concatenate(rows).astype(np.float64), 0)
        return Scoring(self.num_filter_particles, chosen, null, self.num_draws)


def _check_data(model: StateSpaceModel, part: Recording) -> None:
    model.check_data(*as_tensors(part, model))


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


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for part in split:
        for array in (part.data, part.inputs):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
