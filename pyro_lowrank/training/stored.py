"""Data that are larger than memory, looked through once and then read a batch at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.errors import said_of, unsaid
from pyro_lowrank.training.batches import Batch, observed_bins
from pyro_lowrank.training.silence import Silence
from pyro_lowrank.training.sources import Source

# Numbers of which a recording is held in memory at once, where a fit needs more of it than a batch.
AT_ONCE = 5_000_000
# Time bins of a part of a recording that is not.
PIECE = 1000


class StoredData:
    """A recording in a source: what was found in one pass, and its batches.

    Args:
        name: what it is called.
        source: the trials.
        check: called with parts of it, `1 x time x features` and `1 x time x inputs`; raises if a model cannot take
            them.

    Raises:
        TypeError: if trials do not hold numbers, or what `check` raises.
        ValueError: if there is no trial, trials differ in features, or what `check` raises.
    """

    def __init__(self, name: str, source: Source, check: Callable[[Tensor, Tensor | None], None]) -> None:
        if not len(source):
            raise ValueError(f"`{name}` holds no trial: a recording needs at least one.")
        self.name, self.source = name, source
        # One buffer: small tensors that stay, between large ones that go, would keep these from being freed.
        seen, self._lengths = bytearray(), []
        digests = hashlib.sha256(), hashlib.sha256()
        self.silence = Silence()
        for trial in range(len(source)):
            start = 0
            for y, u in source.blocks(trial):
                self._check(trial, start, y, u, check)
                for digest, value in zip(digests, (y, u), strict=True):
                    digest.update(b"" if value is None else value.cpu().contiguous().numpy().data)
                seen += observed_bins(y).cpu().numpy().tobytes()
                self.silence.see(trial, y)
                start += len(y)
            self._lengths.append(start)
        digests[0].update(digests[1].digest() if u is not None else b"")
        self.digest = digests[0].hexdigest()
        whole = torch.frombuffer(seen, dtype=torch.bool)
        bins = whole.split(self._lengths)
        self.observed = torch.nn.utils.rnn.pad_sequence(list(bins), batch_first=True, padding_value=False)
        self.shape = (len(self._lengths), max(self._lengths), int(y.shape[-1]))
        self.dtype = y.dtype

    def _check(
        self, trial: int, start: int, y: Tensor, u: Tensor | None, check: Callable[[Tensor, Tensor | None], None]
    ) -> None:
        try:
            # What does not change in a part may well in another: the sample is looked at for what is to be warned of.
            with unsaid():
                check(y.unsqueeze(0), None if u is None else u.unsqueeze(0))
        except (TypeError, ValueError) as error:
            where = f"In `{self.name}`, trial {trial}" + (f" from time {start} on" if start else "")
            raise said_of(error, f"{where}: {error}") from error

    def of_trials(self, rows: Tensor) -> Batch:
        """Return whole trials."""
        places = [(int(trial), 0) for trial in rows]
        return self._read(places, max(self._lengths))

    def of_windows(self, trials: Tensor, starts: Tensor, window: int) -> Batch:
        """Return windows of trials."""
        return self._read(list(zip(trials.tolist(), starts.tolist(), strict=True)), window)

    def _read(self, places: list[tuple[int, int]], length: int) -> Batch:
        self.source.check_unchanged()
        return read_parts(self.source, places, length, self._lengths)

    def on_cpu(self) -> StoredData:
        """Return the same, read to the CPU whatever device the model is on."""
        found = copy.copy(self)
        found.source = self.source.on_cpu()
        return found

    @property
    def is_small(self) -> bool:
        """Whether all of it may be in memory at once."""
        return self.observed.numel() * self.shape[-1] <= AT_ONCE

    @cached_property
    def _tiles(self) -> list[tuple[int, int]]:
        return tiles(self._lengths)

    @property
    def _tile(self) -> int:
        return min(PIECE, max(self._lengths))

    @property
    def sample(self) -> Batch:
        """All of it, or parts that lie evenly in it, as many as may be in memory at once."""
        return sample_of(self.source, self._lengths)

    def pieces(self) -> Iterator[Batch]:
        """Yield all of it, in parts of trials where they would not be in memory together."""
        if self.is_small:
            yield self.of_trials(torch.arange(self.shape[0]))
            return
        number = max(1, AT_ONCE // 4 // (self._tile * self.shape[-1]))
        for first in range(0, len(self._tiles), number):
            yield self._read(self._tiles[first : first + number], self._tile)

    def told(self, evaluated: bool) -> tuple[str, ...]:
        """Return what is to be said of how it is looked at.

        Args:
            evaluated: whether it is held out, or what a fit is trained on.
        """
        if self.is_small:
            return ()
        if evaluated:
            long = max(self._lengths) > PIECE
            how = f"of {PIECE} time bins, each filtered as a trial that begins there" if long else "of some trials"
            return (f"`{self.name}` is evaluated in parts {how}: it is too large to be in memory at once.",)
        bins = self._tile * len(spread_evenly(self._tiles, AT_ONCE // (self._tile * self.shape[-1])))
        return (
            f"Start and units are those of {bins} of {sum(self._lengths)} time bins that lie evenly in `{self.name}`: "
            "it is too large to be in memory at once.",
        )


def tiles(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return trial and begin of parts of at most `PIECE` time bins that together are trials of these lengths.

    Example::

        >>> tiles([1500, 200])
        [(0, 0), (0, 1000), (1, 0)]
    """
    return [(trial, start) for trial, length in enumerate(lengths) for start in range(0, length, PIECE)]


def spread_evenly(places: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Return so many of the places, at least one, evenly from the first to the last."""
    number = min(len(places), max(1, number))
    chosen = torch.linspace(0, len(places) - 1, number, dtype=torch.float64).round().long()
    return [places[place] for place in chosen.tolist()]


def sample_of(source: Source, lengths: Sequence[int]) -> Batch:
    """Return all of a source whose trials have these lengths, or as many parts of it as may be in memory at once."""
    source.check_unchanged()
    longest, features = max(lengths), source.read(0, 0, 1)[0].shape[-1]
    if len(lengths) * longest * features <= AT_ONCE:
        return read_parts(source, [(trial, 0) for trial in range(len(lengths))], longest, lengths)
    tile = min(PIECE, longest)
    return read_parts(source, spread_evenly(tiles(lengths), AT_ONCE // (tile * features)), tile, lengths)


def read_parts(source: Source, places: Sequence[tuple[int, int]], length: int, lengths: Sequence[int]) -> Batch:
    """Return parts of trials by trial and begin, of at most a length, padded at their ends."""
    found = [source.read(trial, start, min(start + length, lengths[trial])) for trial, start in places]
    (y, u), number = found[0], len(found)
    whole = y.new_full((number, length, y.shape[-1]), torch.nan)
    inputs = None if u is None else u.new_zeros((number, length, u.shape[-1]))
    for row, (y, u) in enumerate(found):
        whole[row, : len(y)] = y
        if inputs is not None and u is not None:
            inputs[row, : len(u)] = u
    trials, starts = (torch.tensor(each, dtype=torch.long) for each in zip(*places, strict=True))
    return Batch(whole, inputs, trials, starts)
