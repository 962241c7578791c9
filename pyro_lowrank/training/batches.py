"""Minibatches: which trials, or which windows of them, each step of a fit sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.training.randomness import seed_of
from pyro_lowrank.training.team import ALONE, Team


@dataclass(frozen=True)
class Batch:
    """A part of the data, and where it stands in the whole.

    Attributes:
        y: recording, `trials x time x features`.
        u: inputs, `trials x time x inputs`, or None.
        trials: index of each of its trials in the data, `trials`.
        starts: time bin of the data at which each begins, `trials`.
    """

    y: Tensor
    u: Tensor | None
    trials: Tensor
    starts: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What a model is called with."""
        return (self.y,) if self.u is None else (self.y, self.u)

    @property
    def size(self) -> int:
        """The number of trials times time bins, padding included."""
        return self.y.shape[0] * self.y.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device; where its rows come from is known on the CPU."""
        u = None if self.u is None else self.u.to(device)
        return Batch(self.y.to(device), u, self.trials, self.starts)

    def part(self, first: int, number: int) -> Batch:
        """Return some of its rows."""
        rows = slice(first, first + number)
        return Batch(self.y[rows], None if self.u is None else self.u[rows], self.trials[rows], self.starts[rows])

    @classmethod
    def whole(cls, y: Tensor, u: Tensor | None) -> Batch:
        """Return all data as one batch."""
        return cls(y, u, torch.arange(y.shape[0]), torch.zeros(y.shape[0], dtype=torch.long))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of trials, time bins and features."""
        return tuple(self.y.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the recording."""
        return self.y.dtype

    @property
    def observed(self) -> Tensor:
        """Which time bins hold anything, `trials x time`."""
        return observed_bins(self.y)

    @property
    def digest(self) -> str:
        """A digest of all that it holds."""
        digest = hashlib.sha256()
        for value in self.arguments:
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def sample(self) -> Batch:
        """What statistics are taken of: all of it."""
        return self

    def pieces(self) -> Iterator[Batch]:
        """Yield what is evaluated at once: all of it."""
        yield self

    def of_trials(self, rows: Tensor) -> Batch:
        """Return some of its trials; itself if they are all, in their order."""
        if len(rows) == len(self.trials) and torch.equal(rows, torch.arange(len(rows))):
            return self
        there = rows.to(self.y.device)
        u = None if self.u is None else self.u[there]
        return Batch(self.y[there], u, rows, torch.zeros_like(rows))

    def of_windows(self, trials: Tensor, starts: Tensor, window: int) -> Batch:
        """Return windows of its trials."""
        rows = trials.to(self.y.device).unsqueeze(-1)
        times = (starts.unsqueeze(-1) + torch.arange(window)).to(self.y.device)
        u = None if self.u is None else self.u[rows, times]
        return Batch(self.y[rows, times], u, trials, starts)

    def told(self, evaluated: bool) -> tuple[str, ...]:
        """Return what is to be said of how it is looked at: nothing."""
        return ()


class Data(Protocol):
    """A recording and its inputs, in memory (`Batch`) or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of trials, time bins and features."""

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the recording."""

    @property
    def observed(self) -> Tensor:
        """Which time bins hold anything, `trials x time`."""

    @property
    def digest(self) -> str:
        """A digest of all that it holds."""

    @property
    def sample(self) -> Batch:
        """What statistics are taken of."""

    def pieces(self) -> Iterator[Batch]:
        """Yield what is evaluated at once."""

    def of_trials(self, rows: Tensor) -> Batch:
        """Return whole trials."""

    def of_windows(self, trials: Tensor, starts: Tensor, window: int) -> Batch:
        """Return windows of trials."""

    def told(self, evaluated: bool) -> tuple[str, ...]:
        """Return what is to be said of how it is looked at."""


class Batches(Protocol):
    """Minibatches by step: what a step sees depends on its number and the seed alone.

    Attributes:
        batch_size: trials, or windows, of a step, those of all processes together.
        num_steps: time bins of each.
        data: that they are drawn of.
    """

    batch_size: int
    num_steps: int
    data: Data

    def draw(self, step: int) -> Batch:
        """Return the minibatch of a step, 0, 1, 2, ..."""


class TrialBatches:
    """Whole trials, without replacement: every trial once per epoch, in an order drawn anew for each.

    What an epoch leaves over (the number of trials modulo `batch_size`) comes in a later one.

    Args:
        data: the recording.
        batch_size: trials per step; all if None.
        seed: of the order.
        team: the processes of the fit, each of which sees its share.

    Raises:
        ValueError: if there are fewer trials than `batch_size`.

    Example::

        >>> batches = TrialBatches(Batch.whole(torch.zeros(6, 20, 3), None), batch_size=2, seed=0)
        >>> sorted(torch.cat([batches.draw(step).trials for step in range(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, data: Data, *, batch_size: int | None, seed: int, team: Team = ALONE) -> None:
        num_trials, self.num_steps = data.shape[:2]
        self.batch_size = num_trials if batch_size is None else check_positive_int("batch_size", batch_size)
        if self.batch_size > num_trials:
            hint = "; pass `window` to train on windows of a long recording" if num_trials == 1 else ""
            raise ValueError(
                f"`batch_size` must be at most the number of trials, {num_trials}, got {self.batch_size}{hint}."
            )
        team.check_batch(self.batch_size)
        self.data, self.seed, self.share = data, seed, team.share(self.batch_size)

    def draw(self, step: int) -> Batch:
        """Return the trials of a step."""
        num_trials = self.data.shape[0]
        if self.batch_size == num_trials:
            return self.data.of_trials(torch.arange(num_trials)[self.share])
        epoch, position = divmod(step, num_trials // self.batch_size)
        order = torch.randperm(num_trials, generator=_generator(self.seed, epoch))
        trials = order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.data.of_trials(trials[self.share])


class WindowBatches:
    """Windows of long recordings: a random trial and a random start for each, all equally likely.

    A window lies within what was recorded of its trial, so that padding is never drawn; a trial shorter than the window
    comes whole, with its padding. A window in which everything is missing is never drawn.

    Args:
        data: the recording.
        window: time bins per window.
        batch_size: windows per step; 10 if None.
        seed: of the windows.
        team: the processes of the fit, each of which sees its share.

    Raises:
        ValueError: if the recording is shorter than `window`.

    Example::

        >>> data = Batch.whole(torch.arange(100.0).reshape(1, 100, 1), None)
        >>> batches = WindowBatches(data, window=5, batch_size=2, seed=0)
        >>> batch = batches.draw(0)
        >>> batch.y.shape, bool((batch.y[:, 0, 0] == batch.starts).all())
        (torch.Size([2, 5, 1]), True)
    """

    def __init__(self, data: Data, *, window: int, batch_size: int | None, seed: int, team: Team = ALONE) -> None:
        self.num_steps = self.window = check_positive_int("window", window)
        self.batch_size = 10 if batch_size is None else check_positive_int("batch_size", batch_size)
        if window > data.shape[1]:
            raise ValueError(
                f"`window` must be at most the number of time bins, {data.shape[1]}, got {window}; leave it out to "
                "train on whole trials."
            )
        team.check_batch(self.batch_size)
        self.data, self.seed, self.share = data, seed, team.share(self.batch_size)
        self.places = _window_places(data.observed, window)

    def draw(self, step: int) -> Batch:
        """Return the windows of a step."""
        return self._at(_some(self.places, self.batch_size, _generator(self.seed, step)))

    def _at(self, places: Tensor) -> Batch:
        trials, starts = places.unbind(-1)
        return self.data.of_windows(trials[self.share], starts[self.share], self.window)


class FirstAndOtherWindows(WindowBatches):
    """Windows of which in each batch some, in front, are the first of their trials, and the others none.

    Args:
        data: the recording.
        window: time bins per window.
        batch_size: windows per step.
        num_first: how many of these are the first windows of random trials.
        seed: of the windows.
        team: the processes of the fit, each of which sees its share.

    Raises:
        ValueError: if the recording is shorter than `window`, or all windows would be of one kind.

    Example::

        >>> data = Batch.whole(torch.zeros(3, 100, 1), None)
        >>> batch = FirstAndOtherWindows(data, window=5, batch_size=4, num_first=2, seed=0).draw(0)
        >>> (batch.starts == 0).tolist()
        [True, True, False, False]
    """

    def __init__(
        self, data: Data, *, window: int, batch_size: int, num_first: int, seed: int, team: Team = ALONE
    ) -> None:
        super().__init__(data, window=window, batch_size=batch_size, seed=seed, team=team)
        trials = self.places[:, 0]
        is_first = torch.nn.functional.pad(trials[1:] != trials[:-1], (1, 0), value=True)
        self.kinds = self.places[is_first], self.places[~is_first]
        if not len(self.kinds[1]):
            raise ValueError(f"All windows of {window} time bins are the first of their trials: pass a shorter window.")
        if not 0 < num_first < batch_size:
            raise ValueError(f"`num_first` must be at least 1 and below `batch_size`={batch_size}, got {num_first}.")
        self.num_first = num_first

    def draw(self, step: int) -> Batch:
        """Return the windows of a step."""
        generator = _generator(self.seed, step)
        numbers = self.num_first, self.batch_size - self.num_first
        drawn = [_some(kind, number, generator) for kind, number in zip(self.kinds, numbers, strict=True)]
        return self._at(torch.cat(drawn))


def observed_bins(y: Tensor) -> Tensor:
    """Return which time bins of a recording hold anything, `trials x time`."""
    missing = y.isnan()
    if not missing.any():
        # As in most recordings, and much faster.
        return torch.ones(y.shape[:-1], dtype=torch.bool, device=y.device)
    return ~missing.all(-1)


def _window_places(observed: Tensor, window: int) -> Tensor:
    """Return the trial and the first time bin of every window that may be drawn, `places x 2`."""
    observed = observed.to("cpu", torch.long)
    num_steps = observed.shape[1]
    counts = torch.nn.functional.pad(observed.cumsum(1), (1, 0))
    holds_some = counts[:, window:] > counts[:, :-window]
    starts = torch.arange(num_steps - window + 1)
    first = observed.argmax(1, keepdim=True)
    end = num_steps - observed.flip(1).argmax(1, keepdim=True)
    first = first.clamp(max=num_steps - window)
    last = torch.maximum(first, end - window)
    return (holds_some & (starts >= first) & (starts <= last)).nonzero()


def _some(places: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return places[torch.randint(len(places), (number,), generator=generator)]


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, "batch", number))
