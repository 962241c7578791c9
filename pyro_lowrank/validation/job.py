"""One fit of a cross-validation, and what it says of what was held out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_lowrank.data.recording import Floats, Integers, Recording
from pyro_lowrank.infer.filter import SMCFilter
from pyro_lowrank.metrics.prediction import spike_gains, variance_gains
from pyro_lowrank.training.checkpoint import steps_in
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.interrupts import Stopped
from pyro_lowrank.training.randomness import own_generators, seed_generators, seed_of
from pyro_lowrank.training.result import StepReport
from pyro_lowrank.training.steps import parameters_of
from pyro_lowrank.training.tensors import as_tensors
from pyro_lowrank.validation.records import Record, write_record

Initialise = Callable[[Any, Recording], object]


@dataclass(frozen=True)
class FitOptions:
    """How every model is fitted, as of `plr.fit`."""

    num_steps: int
    batch_size: int | None
    window: int | Literal["auto"] | None
    num_particles: int | None
    learning_rate: float | None
    final_learning_rate: float | None


@dataclass(frozen=True)
class Scoring:
    """How every fitted model is scored.

    Args:
        num_particles: of the filter.
        hidden: indices of the features that are predicted from the others; empty for none.
        null: means of these over all held-out parts, `hidden`.
        num_draws: smoothed paths that the prediction averages over.
    """

    num_particles: int
    hidden: Integers
    null: Floats
    num_draws: int

    def without_hidden(self) -> Scoring:
        """Return the same, by the evidence alone."""
        return replace(self, hidden=self.hidden[:0], null=self.null[:0])


@dataclass(frozen=True, eq=False)
class Job:
    """All that one fit needs, so that it can run in a process of its own.

    Args:
        name: of the point of the grid, as files are called by it and people read it.
        label: what its random numbers depend on, beside seed and fold.
        rank: of the model.
        fold: number of the fold.
        model: to be fitted, in place.
        guide: its guide.
        initialise: called with the model and what it is fitted to, or None.
        train: what it is fitted to.
        held_out: what it is scored on.
        options: how it is fitted.
        scoring: how it is scored.
        seed: of the cross-validation; the numbers depend on it, the rank and the fold alone.
        stop_after: after how many steps it is scored, to go on later; None for all.
        path: where the record goes.
        checkpoint: from which it goes on, or None.
        settings: what determines the numbers.
    """

    name: str
    label: str
    rank: int
    fold: int
    model: Any
    guide: Any
    initialise: Initialise | None
    train: Recording
    held_out: Recording
    options: FitOptions
    scoring: Scoring
    seed: int
    stop_after: int | None
    path: Path
    checkpoint: Path | None
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}, fold {self.fold}"

    def run(self) -> None:
        """Start, fit, score and write the record.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended the fit; then there is no record.
        """
        started = time.perf_counter()
        options = self.options
        if self.checkpoint is not None and self.stop_after is not None and steps_in(self.checkpoint) >= self.stop_after:
            # It ended between its last step and its record.
            self.checkpoint.unlink()
        if self.initialise is not None:
            with seeded(self.model, self.seed, f"initialise/{self.label}", self.fold):
                self.initialise(self.model, self.train)
        fitted = fit(
            self.model,
            self.guide,
            self.train,
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            window=options.window,
            num_particles=options.num_particles,
            learning_rate=options.learning_rate,
            final_learning_rate=options.final_learning_rate,
            seed=seed_of(self.seed, f"fit/{self.label}", self.fold),
            progress=False,
            checkpoint=self.checkpoint,
            checkpoint_every=max(1, options.num_steps // 10),
            resume=self.checkpoint is not None,
            callback=self._stop,
        )
        if fitted.interrupted and fitted.steps != self.stop_after:
            raise KeyboardInterrupt
        arguments = as_tensors(self.held_out, self.model)
        with torch.no_grad(), own_generators(arguments[0].device):
            seed_generators(arguments[0].device, seed_of(self.seed, f"score/{self.label}", self.fold))
            evidence = self._filter(*arguments).log_evidence.reshape(-1)
            gains, weights = self._predict(*arguments)
        record = Record(
            rank=self.rank,
            fold=self.fold,
            trials=self.held_out.trial_names,
            bins=tuple((~arguments[0].isnan().all(-1)).sum(-1).tolist()),
            evidence=tuple(evidence.tolist()),
            gains=tuple(gains),
            weights=tuple(weights),
            train_evidence=float(fitted.evidence[-max(1, fitted.steps // 10) :].mean()),
            seconds=time.perf_counter() - started,
        )
        write_record(self.path, record, self.settings)
        if self.checkpoint is not None and self.stop_after is None:
            self.checkpoint.unlink(missing_ok=True)

    def _stop(self, report: StepReport) -> None:
        if report.step == self.stop_after:
            raise Stopped

    def _filter(self, *arguments: Tensor) -> Any:
        return SMCFilter(self.model, self.guide, self.scoring.num_particles).run(*arguments)

    def _predict(self, y: Tensor, *inputs: Tensor) -> tuple[list[float], list[float]]:
        """Return gains and weights, by trial, of features that the filter does not see."""
        hidden = self.scoring.hidden
        if not len(hidden):
            return [], []
        seen = y.clone()
        seen[..., hidden] = torch.nan
        posterior = self._filter(seen, *inputs)
        predicted = posterior.predict(posterior.smooth(self.scoring.num_draws))
        gains = spike_gains if posterior.mean_name == "rates" else variance_gains
        target, guess = (x[..., hidden].double().cpu().numpy() for x in (y, predicted))
        gain, weight = gains(target, guess, self.scoring.null)
        return gain.tolist(), weight.tolist()


def seeded(model: Any, seed: int, purpose: str, number: int) -> ExitStack:
    """Return a context in which torch's generators are seeded, and after which they are as they were."""
    parameters = [] if model is None else list(parameters_of(model, None, trainable=True).values())
    device = parameters[0].device if parameters else torch.device("cpu")
    stack = ExitStack()
    stack.enter_context(own_generators(device))
    seed_generators(device, seed_of(seed, purpose, number))
    return stack
