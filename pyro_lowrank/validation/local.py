"""Processes of this machine, kept for all jobs of a call."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class LocalWorkers:
    """An executor of loky processes, with one thread each unless the environment says otherwise.

    Threads of several processes would wait for each other. A process takes one job after the other, so that it imports
    and compiles once. Processes that are lost are replaced. All end with the one that started them, even if that is
    killed, and none listens to Ctrl-C, which is for that one.

    Args:
        number: of processes.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool: Any = None

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *reason: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        """Return the future of a call."""
        import loky

        try:
            return self._running().submit(function, *arguments)
        except (loky.BrokenProcessPool, loky.process_executor.ShutdownExecutorError):
            self._pool = None
            return self._running().submit(function, *arguments)

    def _running(self) -> Any:
        import loky

        if self._pool is None:
            self._pool = loky.ProcessPoolExecutor(
                max_workers=self._number,
                initializer=_begin,
                initargs=(os.getpid(),),
                env={name: "1" for name in _THREADS if name not in os.environ},
            )
        return self._pool


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process as soon as its parent is gone: nobody waits for the job."""
    while os.name == "nt" or os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
