"""Jobs that several processes share by files alone, on one machine or on many."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Seconds between two signs of life, and after how many without one a process counts as gone.
_BEAT, _GONE = 30.0, 600.0


class Claims:
    """An executor that runs a job in this process unless another one has it, or has done it.

    Every process that is given the same jobs and folder does some of them, and ends with the records of all. A job is
    claimed by making a file, which one process alone can; a claim whose process is gone (it gives a sign of life every
    half minute) is taken over.

    Example::

        >>> from types import SimpleNamespace
        >>> job = SimpleNamespace(path=Path("record.json"))
        >>> future = Claims().submit(lambda job, attempt: job.path.write_text("done"), job, 1)
        >>> future.done(), job.path.read_text(), list(Path(".").glob("*.claim"))
        (True, 'done', [])
    """

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        """Return the future of a job, the first of the arguments; it runs when it is asked whether it is done."""
        return _Claimed(function, arguments)


class _Claimed:
    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._record: Path = arguments[0].path
        self._claim = self._record.with_suffix(".claim")
        self._found: list[Any] = []

    def done(self) -> bool:
        """Return whether there is a record, having made it if nobody else does."""
        if self._found:
            return True
        if not self._record.exists():
            if not _claim(self._claim):
                return False
            with _alive(self._claim):
                # Another process may have finished it between the two looks.
                done = self._record.exists()
                self._found.append(None if done else self._function(*self._arguments))
            return True
        self._found.append(None)
        return True

    def result(self) -> Any:
        """Return what the function did, if it ran here."""
        return self._found[0]


def _claim(path: Path) -> bool:
    """Make a claim, or take over one of a process that is gone; return whether it is ours."""
    content = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
    for _ in range(2):
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not _is_stale(path):
                return False
            # Should two processes take it over at once, both do the job, and write the same record.
            with suppress(FileNotFoundError):
                path.unlink()
            continue
        with os.fdopen(file, "wb") as opened:
            opened.write(content)
        return True
    return False


def _is_stale(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        claim = json.loads(path.read_bytes())
        here = claim["host"] == socket.gethostname()
        process = int(claim["process"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        # Its process may be about to write it.
        return age > _GONE
    if here and process != os.getpid():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    return age > _GONE


@contextmanager
def _alive(claim: Path) -> Iterator[None]:
    """Within it, a claim shows signs of life; after it, it is gone."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT):
            with suppress(OSError):
                os.utime(claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        claim.unlink(missing_ok=True)
