"""How much the reading of a pickle may make, and of what form: hostile ones are small, and ask for the world."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_lowrank.files import told_of

MOST_BYTES = 2**24
_MOST_INSTRUCTIONS, _MOST_ITEMS, _MOST_LEVELS = 300_000, 300_000, 100


class Refused(ValueError):
    """A pickle asks for something that plain data need not."""


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Name the file in whatever its contents make go wrong within."""
    try:
        with told_of(f"{path} is damaged, or no pickle", Refused):
            yield
    except Refused as reason:
        raise Refused(f"{path} {str(reason)[:1000]}") from None


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers of one or more tensors, in a row."""

    flat: Tensor


@dataclass
class Budget:
    """What may still be made of a file: the programs in it share one."""

    instructions: int
    bytes: int

    @classmethod
    def of(cls, size: int) -> Budget:
        """Return the budget of a file of that many bytes: what it holds may be copied a few times."""
        return cls(_MOST_INSTRUCTIONS, 6 * size + 2**20)

    def step(self) -> None:
        """Take one instruction from the budget."""
        self.instructions -= 1
        if self.instructions < 0:
            raise Refused(f"has more than {_MOST_INSTRUCTIONS} instructions: refused.")

    def spend(self, value: Any) -> None:
        """Take the size of what was made from the budget."""
        if isinstance(value, Tensor | np.ndarray):
            self.bytes -= value.nbytes
        elif isinstance(value, str | bytes | bytearray):
            self.bytes -= len(value)
        elif isinstance(value, list | tuple | dict | set | frozenset):
            self.bytes -= 64 * len(value)
        if self.bytes < 0:
            raise Refused("makes more of itself than its own size lets expect: refused.")


def check_keys(items: Iterable[Any]) -> Iterable[Any]:
    """Return keys that are quickly looked up: others may take for ever, by their depth or by equal hashes."""
    for item in items:
        if type(item) not in (str, bytes, int, float, bool, type(None)) or (type(item) is int and abs(item) >= 2**60):
            raise Refused(f"has the key {reprlib.repr(item)}, no string or number of 60 bits: refused.")
    return items


def check_tree(value: Any) -> None:
    """Refuse what is nested too deeply, in itself even, or holds too much where what is shared counts each time."""
    waiting, seen = [(value, 0)], 1
    while waiting:
        item, level = waiting.pop()
        if type(item) is dict:
            item = list(item.values())
        if type(item) in (list, tuple):
            seen += len(item)
            if level == _MOST_LEVELS or seen > _MOST_ITEMS:
                raise Refused(
                    f"holds more than {_MOST_LEVELS} containers within each other, or {_MOST_ITEMS} items: refused."
                )
            waiting += [(each, level + 1) for each in item]
