"""Parts of a recording that jobs are sent: what they hold, or where it lies on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.data.folds import time_folds, trial_folds
from pyro_lowrank.data.recording import Floats, Integers, Recording
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.training.checks import stored_data
from pyro_lowrank.training.sources import ArraySource, PiecesSource, StoredArray
from pyro_lowrank.training.tensors import as_tensors


class Rows(NamedTuple):
    """Trials, or parts of trials, that are scored together.

    Attributes:
        trials: which they are, or are of.
        arguments: what a model is called with.
    """

    trials: Integers
    arguments: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class StoredPart:
    """Some of an array on disk. A process that it is sent to opens the file itself.

    Attributes:
        y: the array.
        u: the inputs, or None.
        pieces: trial, begin and end of what counts as a trial each.
        digest: of the whole array and inputs.
    """

    y: StoredArray
    u: StoredArray | None
    pieces: tuple[tuple[int, int, int], ...]
    digest: str

    @property
    def trial_names(self) -> tuple[str, ...]:
        """Which trial each piece is of."""
        return tuple(f"trial_{trial}" for trial, _, _ in self.pieces)

    def source(self, like: Tensor) -> PiecesSource:
        """Return it as what a fit reads."""
        return PiecesSource(ArraySource("data", self.y, self.u, like), self.pieces)


Part = Recording | StoredPart


class Fold(NamedTuple):
    """Two parts of a recording that share nothing: to train on, and held out."""

    train: Part
    held_out: Part


def to_fit(part: Part, model: torch.nn.Module) -> Any:
    """Return a part as `fit` takes it."""
    return part if isinstance(part, Recording) else part.source(_like(model))


def check_part(part: Part, model: Any) -> None:
    """Raise if a model cannot be run on a part; of one on disk its begin alone is looked at here."""
    if isinstance(part, Recording):
        model.check_data(*as_tensors(part, model))
        return
    y, u = part.source(_like(model)).read(0, 0, 1)
    model.check_data(y.unsqueeze(0), None if u is None else u.unsqueeze(0))


def rows_of(part: Part, model: Any, guide: Any) -> Iterator[Rows]:
    """Yield what is scored together: all of it, or as much of what stays on disk as may be in memory at once."""
    if isinstance(part, Recording):
        yield Rows(np.arange(part.num_trials), as_tensors(part, model))
        return
    for batch in stored_data("held_out", model, guide, part.source(_like(model)), None).pieces():
        yield Rows(batch.trials.numpy(), batch.arguments)


def content_of(part: Part) -> Iterator[bytes]:
    """Yield what tells a part from any other, for a digest."""
    if isinstance(part, StoredPart):
        yield f"{part.digest} {part.pieces}".encode()
        return
    for array in (part.data, part.inputs):
        yield b"" if array is None else np.ascontiguousarray(array).tobytes()


class StoredRecording:
    """An array on disk, to be cut into folds as a recording in memory is.

    Args:
        y: the array, `trials x time x features`, or `time x features` of one trial.
        u: inputs likewise, or None.
    """

    def __init__(self, y: Any, u: Any) -> None:
        self.y, self.u = StoredArray("data", y), None if u is None else StoredArray("u", u)
        self._source = ArraySource("data", self.y, self.u, torch.zeros((), dtype=torch.float64))

    def folds(self, number: int, seed: int) -> tuple[Fold, ...]:
        """Return folds of whole trials, at random, or of blocks of time where there is one trial."""
        trials, time, _ = self.y.shape
        check_positive_int("folds", number, minimum=2)
        if trials > 1:
            # Of as many trials that hold nothing: who is held out does not depend on what they hold.
            splits = trial_folds(Recording(np.zeros((trials, 1, 1))), number, seed=seed)
            chosen = [{int(name.rpartition("_")[2]) for name in split.held_out.trial_names} for split in splits]
            whole, found = [(trial, 0, time) for trial in range(trials)], []
            for held in chosen:
                train, held_out = ([each for each in whole if (each[0] in held) == side] for side in (False, True))
                found.append(Fold(self._part(train), self._part(held_out)))
            return tuple(found)
        time_folds(Recording(np.zeros((1, time, 1))), number)
        edges = [block * time // number for block in range(number + 1)]
        blocks = []
        for begin, end in pairwise(edges):
            around = [(0, first, last) for first, last in ((0, begin), (end, time)) if last > first]
            blocks.append(Fold(self._part(around), self._part([(0, begin, end)])))
        return tuple(blocks)

    def _part(self, pieces: Sequence[tuple[int, int, int]]) -> StoredPart:
        return StoredPart(self.y, self.u, tuple(pieces), self._looked_through[0])

    @cached_property
    def _looked_through(self) -> tuple[str, Floats]:
        """A digest of all there is, and the mean of each feature."""
        digest, total, number = hashlib.sha256(), torch.zeros(()), torch.zeros(())
        for trial in range(len(self._source)):
            for y, u in self._source.blocks(trial):
                digest.update(y.numpy().data)
                digest.update(b"" if u is None else u.numpy().data)
                total, number = total + y.nansum(0), number + (~y.isnan()).sum(0)
        return digest.hexdigest(), (total / number).numpy()

    @property
    def means(self) -> Floats:
        """The mean of each feature over all that there is, `features`."""
        return self._looked_through[1]


def means_over(parts: Sequence[Part], whole: StoredRecording | None, features: Integers) -> Floats:
    """Return means of features over parts that are the whole together, `features`."""
    if whole is not None:
        return whole.means[features]
    rows = [part.data[..., features].reshape(-1, len(features)) for part in parts if isinstance(part, Recording)]
    found: Floats = np.nanmean(np.concatenate(rows).astype(np.float64), 0)
    return found


def _like(model: torch.nn.Module) -> Tensor:
    return next(model.parameters())
