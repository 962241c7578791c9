"""Compiled loops, by Numba, and threads that run them side by side."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import CodeType, FunctionType
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_log = logging.getLogger("pyro_lowrank")


def compiled(
    *, fastmath: bool | set[str] = False, inline: bool = False, allocates: bool = True, inner: bool = False
) -> Callable[[FunctionT], FunctionT]:
    """Compile a function of numbers and arrays with Numba when it is first called, and keep the result on disk.

    Compiled code runs without the interpreter's lock, so that threads run side by side.

    Args:
        fastmath: the liberties with rounding that the compiler may take, as for `numba.njit`.
        inline: whether the function becomes part of those that call it, however long it is: loops around a call are
            not vectorised.
        allocates: whether the function, or one that it calls, makes arrays. Where none does, the references to
            arrays are not counted, which costs more than the arithmetic of short loops: the caller keeps them alive.
        inner: whether only compiled functions call it. What Python would call it through is not made, which takes as
            long to compile as a short function of many arrays itself; a call from Python would end the process.

    Example::

        >>> @compiled()
        ... def total(values):
        ...     result = 0.0
        ...     for value in values:
        ...         result += value
        ...     return result
        >>> total((1.0, 2.0))
        3.0
    """

    def decorate(function: FunctionT) -> FunctionT:
        import numba

        options = {"nogil": True, "forceinline": inline, **_options(fastmath, allocates)}
        if inner:
            options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        return _kept_on_disk(lambda cache: numba.njit(cache=cache, **options)(function), function)

    return decorate


def first_class(signature: Any, *, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for one signature, now, as a value that compiled loops can be handed.

    A loop that is handed its parts is compiled once for all of them: only their signature is fixed. The function makes
    no arrays. What it takes from the function around it must be numbers, tuples of them or functions of a module.

    Args:
        signature: of Numba.
        fastmath: as of `compiled`.

    Example::

        >>> from numba import types
        >>> twice = first_class(types.float64(types.float64))(lambda x: 2 * x)
        >>> square = first_class(types.float64(types.float64))(lambda x: x * x)
        >>> @compiled()
        ... def apply_to_three(function):
        ...     return function(3.0)
        >>> apply_to_three(twice), apply_to_three(square)
        (6.0, 9.0)
    """

    def decorate(function: Callable[..., Any]) -> Any:
        import numba

        options = _options(fastmath, allocates=False)
        return _kept_on_disk(lambda cache: numba.cfunc(signature, cache=cache, **options)(function), function)

    return decorate


def _options(fastmath: bool | set[str], allocates: bool) -> dict[str, Any]:
    return {"fastmath": fastmath, "error_model": "numpy", "_nrt": allocates}


def _kept_on_disk(compile_it: Callable[[bool], Any], function: Callable[..., Any]) -> Any:
    """Compile with a cache on disk, or without one where there can be none."""
    # Numba names its files by this, and itself looks for changes in the function's own file only.
    function.__qualname__ += f"_{fingerprint(function)}"
    try:
        return compile_it(True)
    except RuntimeError:
        # No folder to keep it in can be written to, or the source is not a file.
        _log.debug("%s is compiled anew in every process: nowhere to keep it.", function.__qualname__)
        return compile_it(False)


def fingerprint(function: Any) -> str:
    """Return a digest of a function's code, and of the functions and numbers that it reaches by name.

    Example::

        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
        True
    """
    return hashlib.blake2b(repr(_content(function, set())).encode(), digest_size=6).hexdigest()


def _content(value: Any, seen: set[int]) -> Any:
    """Return what tells a function, or anything that one reaches, from another of the same name."""
    value = getattr(value, "py_func", value)
    if isinstance(value, CodeType):
        constants = [_content(constant, seen) for constant in value.co_consts]
        return value.co_code, value.co_names, constants
    if isinstance(value, tuple):
        return [_content(part, seen) for part in value]
    if not isinstance(value, FunctionType):
        return repr(value) if isinstance(value, int | float | str) or type(value).__module__ == "numpy" else None
    if id(value) in seen:
        return None
    seen.add(id(value))
    cells = [_content(cell.cell_contents, seen) for cell in value.__closure__ or ()]
    names = [name for name in value.__code__.co_names if name in value.__globals__]
    return _content(value.__code__, seen), cells, [_content(value.__globals__[name], seen) for name in names]


class _Workers:
    """Threads for compiled loops, made when first used, and anew in a forked process, which inherits none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, ThreadPoolExecutor] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._pools = {}

    def pool(self, size: int) -> ThreadPoolExecutor:
        """Return the pool of that many threads."""
        with self._lock:
            if size not in self._pools:
                self._pools[size] = ThreadPoolExecutor(size, thread_name_prefix="pyro_lowrank")
            return self._pools[size]


_workers = _Workers()


def run_side_by_side(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each task in a thread of its own, the first in this one, and return their results in order.

    Tasks must spend their time in compiled functions to gain anything. If some raise, all are waited for, and the
    first error is raised. Ctrl-C is a `KeyboardInterrupt`, also where it arrives in Numba's dispatch.

    Example::

        >>> run_side_by_side([lambda: 1, lambda: 2])
        [1, 2]
    """
    if len(tasks) == 1:
        return [_interruptible(tasks[0])]
    futures = [_workers.pool(len(tasks) - 1).submit(task) for task in tasks[1:]]
    try:
        first = _interruptible(tasks[0])
    finally:
        # What the threads write into belongs to the caller: never leave while they run.
        errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [first, *(future.result() for future in futures)]


def _interruptible(task: Callable[[], Any]) -> Any:
    """Run a task; a Ctrl-C that Numba's dispatch has made a SystemError of is one again."""
    try:
        return task()
    except SystemError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
