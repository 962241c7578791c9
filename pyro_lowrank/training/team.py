"""Processes that fit one model together: each takes its share of every batch, and gradients are summed."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.smc.draws import rows_of


class Team:
    """The processes of a fit, of which this is one; without others there is nothing to be agreed on.

    Args:
        rank: of this process.
        size: number of processes.

    Example::

        >>> Team(1, 2).share(5), Team(0, 1).share(5)
        (slice(3, 5, None), slice(0, 5, None))
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def of_environment(cls, device: torch.device) -> Team:
        """Return the team that torch.distributed, or `torchrun`, has made."""
        distributed = torch.distributed
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
                return cls()
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether it is this process that logs, evaluates and saves."""
        return self.rank == 0

    def share(self, number: int) -> slice:
        """Return which of so many rows of a batch are this process's."""
        least, more = divmod(number, self.size)
        first = self.rank * least + min(self.rank, more)
        return slice(first, first + least + (self.rank < more))

    def check_batch(self, number: int) -> None:
        """Raise if a process would have no row of a batch."""
        if number < self.size:
            raise ValueError(
                f"Each of {self.size} processes takes its share of a batch, and one of {number} trials or windows "
                f"leaves some without: pass a `batch_size` of at least {self.size}, or start fewer processes."
            )

    def check_alike(self, settings: Mapping[str, Any], device: torch.device) -> None:
        """Raise if processes were given different data or settings; wait for all.

        Args:
            settings: that JSON can hold.
            device: of the model, by which processes speak to each other.
        """
        if self.size == 1:
            return
        found = [json.loads(text) for text in self._texts(json.dumps(settings), device)]
        settings = json.loads(json.dumps(settings))
        names = sorted(
            {
                name
                for other in found
                for name in settings.keys() | other.keys()
                if other.get(name) != settings.get(name)
            }
        )
        if names:
            raise ValueError(
                f"The {self.size} processes were given different {', '.join(names)}: all need the same data, model and "
                "settings, of which each takes its share by itself."
            )

    def _texts(self, text: str, device: torch.device) -> list[bytes]:
        """Return a text of every process, as bytes: what others send is read, and never run."""
        own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        lengths = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, torch.tensor([len(own)], device=device))
        longest = max(int(length) for length in lengths)
        found = [own.new_zeros(longest) for _ in range(self.size)]
        torch.distributed.all_gather(found, torch.nn.functional.pad(own, (0, longest - len(own))))
        return [bytes(each[: int(length)].tolist()) for each, length in zip(found, lengths, strict=True)]

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, the same of every process, by their sums over processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def lead_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the process that leads."""
        if self.size == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Raise after it in all processes if it raised in one: the others would wait for this one."""
        if self.size == 1:
            yield
            return
        reason: BaseException | None = None
        try:
            yield
        except Exception as error:
            reason = error
        failed = torch.tensor(float(reason is not None), device=device)
        self.sum_([failed])
        if reason is not None:
            raise reason
        if failed > 0:
            raise RuntimeError("Another process of the fit failed; its own error says why.")


ALONE = Team()


def rows_of_parts(team: Team, number: int, parts: int) -> list[slice]:
    """Return the rows of a batch of each part of this process's share.

    Raises:
        ValueError: if there are more parts than rows.

    Example::

        >>> rows_of_parts(Team(1, 2), 10, 2)
        [slice(5, 8, None), slice(8, 10, None)]
    """
    share = team.share(number)
    own = share.stop - share.start
    if check_positive_int("parts", parts) > own:
        raise ValueError(f"`parts` must be at most the trials, or windows, of a step in a process, {own}, got {parts}.")
    found = [Team(part, parts).share(own) for part in range(parts)]
    return [slice(share.start + rows.start, share.start + rows.stop) for rows in found]


def draws(rows: slice, number: int) -> AbstractContextManager[None]:
    """Return a context in which random numbers of some rows of a batch are those that the whole batch would have."""
    return nullcontext() if rows.stop - rows.start == number else rows_of(rows, number)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
