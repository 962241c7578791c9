"""Processes that fit one model together: each takes its share of every batch, and gradients are summed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_lowrank.errors import check_positive_int


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

    def check_alike(self, settings: Any) -> None:
        """Raise if processes were given different data or settings; wait for all."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, settings)
        names = sorted({name for other in found for name in settings if other.get(name) != settings[name]})
        if names:
            raise ValueError(
                f"The {self.size} processes were given different {', '.join(names)}: all need the same data, model and "
                "settings, of which each takes its share by itself."
            )

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


def draws(rows: slice, number: int) -> AbstractContextManager[Any]:
    """Return a context in which random numbers of some rows of a batch are those that the whole batch would have."""
    return nullcontext() if rows.stop - rows.start == number else _DrawsOfAll(rows, number)


class _DrawsOfAll(TorchFunctionMode):
    """Within it, random numbers of some trials of a batch are drawn for all of its trials, and theirs are kept.

    Filters draw normal numbers `time x particles x trials x rank` and uniform ones `... x trials`.

    Args:
        rows: whose are kept.
        number: of all trials.
    """

    def __init__(self, rows: slice, number: int) -> None:
        super().__init__()
        self._rows, self._number = rows, number
        self._own = rows.stop - rows.start

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn):
            return func(*args, **kwargs)
        size = _size(args, kwargs.pop("size", None))
        dim = 2 if func is torch.randn and len(size) == 4 else len(size) - 1
        if len(size) < 3 or size[dim] != self._own:
            return func(size, **kwargs)
        drawn = func([*size[:dim], self._number, *size[dim + 1 :]], **kwargs)
        return drawn.narrow(dim, self._rows.start, self._own).contiguous()


def _size(args: Sequence[Any], size: Any) -> list[int]:
    if size is not None:
        return list(size)
    return list(args[0]) if args and isinstance(args[0], list | tuple) else list(args)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
