"""Jobs one after the other, or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_KEPT = "What was finished is kept where a `folder` was given."


class Runnable(Protocol):
    """What a process can be given: `run` leaves its result in a file."""

    def run(self) -> None:
        """Do it."""


JobT = TypeVar("JobT", bound=Runnable)


def run_jobs(jobs: Iterator[JobT], num_workers: int) -> Generator[JobT, None, None]:
    """Run jobs, as many at a time as there are workers, and yield each when it is done.

    One worker is this process; more are new ones, started afresh for each job (`spawn`), with one thread each: threads
    of torch and Numba do not survive a fork, and those of several processes would wait for each other.

    Raises:
        RuntimeError: if a process failed, with its traceback.
    """
    if num_workers == 1:
        for job in jobs:
            job.run()
            yield job
        return
    running: dict[Any, tuple[Any, JobT]] = {}
    try:
        while True:
            for started in islice(jobs, num_workers - len(running)):
                process, connection = _start(started)
                running[connection] = process, started
            if not running:
                return
            for connection in wait(list(running)):
                process, job = running.pop(connection)
                _finish(process, connection)
                yield job
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _start(job: Runnable) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    try:
        with _one_thread_each():
            process.start()
    except (AttributeError, TypeError, multiprocessing.ProcessError) as error:
        raise TypeError(
            f"The model, guide or data cannot be sent to another process ({error}): define classes of your own in a "
            "module that can be imported, or pass num_workers=1."
        ) from error
    theirs.close()
    return process, ours


def _finish(process: Any, connection: Any) -> None:
    try:
        failure = connection.recv()
    except EOFError:
        process.join()
        failure = (
            f"it ended with code {process.exitcode}, before it could say why (out of memory? a script that calls "
            "`cross_validate` outside `if __name__ == '__main__':`?)"
        )
    process.join()
    if failure is not None:
        raise RuntimeError(f"A process of the cross-validation failed: {failure}\n{_KEPT}")


def _work(job: Runnable, connection: Connection) -> None:
    """What a new process does; Ctrl-C is for the process that started it, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    failure = None
    try:
        job.run()
    except Exception:
        failure = traceback.format_exc()
    connection.send(failure)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, killed as it may be: nobody waits for the job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The pipe closes with the parent, unless a process that it forked holds it open too; then its number tells.
    while not wait([parent.sentinel], timeout=1) and (os.name == "nt" or os.getppid() == parent.pid):
        pass
    os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started here have one thread each; the user's own settings go first."""
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
