"""Jobs one after the other, in processes of this machine, or wherever an executor sends them."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pyro_lowrank.validation.local import LocalWorkers

logger = logging.getLogger(__name__)

_KEPT = "What was finished is kept where a `folder` was given, and calling it again goes on from there."
# A worker that dies may take down others, which did no wrong; one that dies of the same job again will always.
_MOST_ATTEMPTS = 2
_SHORTEST_WAIT, _LONGEST_WAIT = 0.005, 0.5


class Executor(Protocol):
    """What runs functions elsewhere: of `concurrent.futures`, loky, Dask, submitit, mpi4py or one's own."""

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        """Return what has `done()` and `result()`."""


class Runnable(Protocol):
    """What is sent: `run` leaves its result in a file."""

    def run(self) -> None:
        """Do it."""


JobT = TypeVar("JobT", bound=Runnable)


def check_executor(executor: Any) -> None:
    """Raise unless functions can be submitted to an executor, or there is none."""
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise TypeError(
            "`executor` must have `submit(function, *arguments)`, as a loky or concurrent.futures pool, a Dask Client, "
            f"a submitit executor or an mpi4py pool has it, got {executor!r}."
        )


def run_jobs(jobs: Sequence[JobT], executor: Executor | None, num_workers: int) -> Generator[JobT, None, None]:
    """Run jobs, here or elsewhere, and yield each when it is done.

    Args:
        jobs: to be run.
        executor: that runs them; if None, this process where there is one worker, else as many processes of loky.
        num_workers: number of processes where there is no executor.

    Raises:
        TypeError: if a job cannot be sent to where it would run.
        RuntimeError: if a job failed, with its traceback; or, after all others are done, if workers were lost.
    """
    if executor is not None:
        yield from _run_elsewhere(jobs, executor)
    elif num_workers > 1:
        with LocalWorkers(min(num_workers, max(1, len(jobs)))) as workers:
            yield from _run_elsewhere(jobs, workers)
    else:
        for job in jobs:
            job.run()
            yield job


@dataclass
class _Running:
    """A job at a worker."""

    job: Any
    attempt: int
    future: Any


def _run_elsewhere(jobs: Sequence[JobT], executor: Executor) -> Generator[JobT, None, None]:
    running: list[_Running] = []
    lost: list[str] = []
    wait = _SHORTEST_WAIT
    try:
        for job in jobs:
            running.append(_submitted(job, 1, executor))
        while running:
            done = [each for each in running if each.future.done()]
            wait = _SHORTEST_WAIT if done else min(2 * wait, _LONGEST_WAIT)
            if not done:
                time.sleep(wait)
            for each in done:
                running.remove(each)
                reason = _finish(each)
                if reason is None:
                    yield each.job
                elif each.attempt < _MOST_ATTEMPTS:
                    logger.warning("A worker was lost (%s): its job is sent again.", reason)
                    running.append(_submitted(each.job, each.attempt + 1, executor))
                else:
                    lost.append(f"{each.job}: {reason}")
    finally:
        for each in running:
            if callable(cancel := getattr(each.future, "cancel", None)):
                cancel()
    if lost:
        told = "\n".join(lost)
        raise RuntimeError(
            f"{len(lost)} of {len(jobs)} jobs were lost, {_MOST_ATTEMPTS} times each (out of memory? killed by the "
            f"scheduler?); all others are done. {_KEPT}\n{told}"
        )


def _submitted(job: JobT, attempt: int, executor: Executor) -> _Running:
    try:
        # Dask takes calls of equal arguments for one, so that they must tell one attempt from the other.
        future = executor.submit(_work, job, attempt)
    except Exception as error:
        if _cannot_be_sent(error):
            raise _unsendable(error) from error
        raise RuntimeError(f"The executor takes no more jobs ({_told(error)}). {_KEPT}") from error
    for name in ("done", "result"):
        if not callable(getattr(future, name, None)):
            raise TypeError(
                f"`executor.submit` must return what has `done()` and `result()`, got {type(future).__name__} without "
                f"`{name}`."
            )
    return _Running(job, attempt, future)


def _finish(running: _Running) -> str | None:
    """Return why a job was lost, or None if it is done; raise if it failed."""
    try:
        failure = running.future.result()
    except Exception as error:
        if _cannot_be_sent(error):
            raise _unsendable(error) from error
        return _told(error)
    if failure is not None:
        raise RuntimeError(f"A job failed, {running.job}: {failure}\n{_KEPT}")
    return None


def _work(job: Runnable, attempt: int) -> str | None:
    """What a worker does: the job, or the traceback of why it failed."""
    try:
        job.run()
    except Exception:
        return traceback.format_exc()
    return None


def _cannot_be_sent(error: Exception) -> bool:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = str(error).lower()
    return "PicklingError" in kinds or (
        bool(kinds & {"AttributeError", "TypeError"}) and ("pickle" in told or "serialize" in told)
    )


def _unsendable(error: Exception) -> TypeError:
    return TypeError(
        f"The executor cannot send a job to its workers ({_told(error)}). It pickles the model and guide of `factory`, "
        "the data and `initialise`: define classes and functions of your own in a module that workers can "
        "import too, or pass an executor that sends those of a script by value (`num_workers`, loky, Dask and submitit "
        "do; concurrent.futures does not)."
    )


def _told(error: Exception) -> str:
    told = " ".join(str(error).split())
    return f"{type(error).__name__}: {told[:500]}"
