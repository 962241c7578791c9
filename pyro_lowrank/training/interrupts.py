"""Ctrl-C at a safe moment, and Ctrl-C that compiled code lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Stopped(KeyboardInterrupt):
    """A fit that is stopped on purpose, to go on later: nobody need be warned."""


@dataclass
class Noted:
    """Whether Ctrl-C has raised `KeyboardInterrupt`."""

    came: bool = False


@contextmanager
def interrupts_kept() -> Iterator[Noted]:
    """Within it, a Ctrl-C that code in C makes a SystemError of ends in `KeyboardInterrupt`, as any other.

    Such code, as Numba's dispatch, may also drop the exception that interrupts it: then `came` tells.

    Example::

        >>> with interrupts_kept() as noted:
        ...     pass
        >>> noted.came
        False
    """
    noted = Noted()
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield noted
        return

    def noting(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except KeyboardInterrupt:
            noted.came = True
            raise

    signal.signal(signal.SIGINT, noting)
    try:
        yield noted
    except SystemError as error:
        if noted.came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, so that it never leaves parameters half updated.

    Example::

        >>> with interrupts_deferred():
        ...     pass
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[0])
