"""What programs hold outside of their tensors and parameters, and whether a run of them has changed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

# What torch and Pyro keep for themselves. Buffers are the program's own.
_TORCHS = set(vars(nn.Module())) - {"_buffers", "training"}
# Of longer containers the number of items is looked at alone.
_LONGEST = 1000

Attributes = dict[tuple[int, str], tuple[Any, tuple[Any, ...]]]


def attributes(programs: Sequence[Any]) -> Attributes:
    """Return what programs, modules in them and plain objects among their attributes hold, containers with their items.

    Args:
        programs: of steps.

    Example::

        >>> class Program:
        ...     def __init__(self): self._seen = {"t": 0}
        >>> program = Program()
        >>> before = attributes([program])
        >>> program._seen["t"] = 1
        >>> changed(before, attributes([program]))
        '_seen'
    """
    found: Attributes = {}
    for program in programs:
        for part in program.modules() if isinstance(program, nn.Module) else (program,):
            for name, value in _own(part):
                found[id(part), name] = value, _items(value)
                if not isinstance(value, type | Tensor | nn.Module):
                    found.update(((id(value), f"{name}.{n}"), (held, _items(held))) for n, held in _own(value))
    return found


def changed(before: Attributes, after: Attributes) -> str | None:
    """Return the name of an attribute that is another one, or has other items; None where there is none."""
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old is None or new is None or old[0] is not new[0] or len(old[1]) != len(new[1]):
            return key[1]
        if any(a is not b for a, b in zip(old[1], new[1], strict=True)):
            return key[1]
    return None


def _own(part: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(getattr(part, "__dict__", {}).items()):
        if name not in _TORCHS and not name.startswith("_pyro"):
            yield name, value


def _items(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | dict | set):
        return ()
    if len(value) > _LONGEST:
        return (None,) * len(value)
    return tuple(value.values()) if isinstance(value, dict) else tuple(value)
