"""Batches that other processes read while steps are taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.training.batches import Batch, Batches
from pyro_lowrank.training.steps import Steps
from pyro_lowrank.training.stored import StoredData


@contextmanager
def reading_ahead(steps: Steps, num_workers: int, num_steps: int) -> Iterator[None]:
    """Within it, the batches of a fit are read ahead by other processes, which end with it.

    Args:
        steps: of the fit, of data that stay where they are.
        num_workers: number of processes; 0 for none.
        num_steps: of the fit: nothing is read beyond.

    Raises:
        ValueError: if there is nothing for them to read.
    """
    if check_positive_int("num_workers", num_workers, minimum=0) == 0:
        yield
        return
    batches = steps.batches
    if not isinstance(batches.data, StoredData):
        raise ValueError(
            f"`num_workers` read ahead what stays where it is (a Dataset, an array on disk), and `y` is in memory, got "
            f"num_workers={num_workers}: leave it out."
        )
    ahead = steps.batches = _Ahead(batches, steps.device, num_workers, num_steps)
    try:
        yield
    finally:
        ahead.close()
        steps.batches = batches


class _OfSteps(Dataset[Batch]):
    """Batches by step, read to the CPU: a process that was forked cannot use a GPU."""

    def __init__(self, batches: Batches) -> None:
        self.batches = copy.copy(batches)
        if isinstance(batches.data, StoredData):
            self.batches.data = batches.data.on_cpu()

    def __getitem__(self, step: int) -> Batch:
        return self.batches.draw(step)


class _Ahead:
    """Batches of which those of the next steps are on their way; arguments as of `reading_ahead`.

    What a step sees depends on its number and the seed alone, so that each process reads whole batches.
    """

    def __init__(self, batches: Batches, device: torch.device, num_workers: int, num_steps: int) -> None:
        self.batch_size, self.num_steps, self.data = batches.batch_size, batches.num_steps, batches.data
        self._of_steps, self._num_workers, self._end = _OfSteps(batches), num_workers, num_steps
        self._coming: Iterator[Batch] | None = None
        self._device, self._next = device, -1

    def draw(self, step: int) -> Batch:
        """Return the minibatch of a step."""
        if self._coming is None or step != self._next:
            self.close()
            loader = DataLoader(
                self._of_steps,
                batch_size=None,
                sampler=range(step, self._end),
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                # Its seeds are drawn from a generator of its own, and used by nobody.
                generator=torch.Generator(),
            )
            self._coming = iter(loader)
        self._next = step + 1
        return next(self._coming).to(self._device)

    def close(self) -> None:
        """End the processes."""
        # A loader ends its processes when nobody refers to its iterator.
        self._coming = None


def _as_it_is(batch: Any) -> Any:
    return batch
