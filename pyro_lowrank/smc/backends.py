"""Which loop runs a filter over whole sequences: the compiled one where it can, else the plain one."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from pyro_lowrank.compilation import HAS_NUMBA
from pyro_lowrank.smc.built_in import BuiltInKernel
from pyro_lowrank.smc.loop import History, Kernel, Scheme, run_loop

BACKENDS = ("auto", "compiled", "plain")

_log = logging.getLogger("pyro_lowrank")


def run_filter(
    kernel: Kernel[Any], args: tuple[Any, ...], kwargs: dict[str, Any], scheme: Scheme, *, store: bool, backend: str
) -> History[Any]:
    """Run the particle filter over whole sequences.

    Args:
        kernel: moves and weighs the particles.
        args: the sequences.
        kwargs: the sequences.
        scheme: when and how to resample.
        store: keep the particles, weights and ancestors of every time bin, not only of the last.
        backend: one of `BACKENDS`.

    Raises:
        SMCFailed: if all particles of a trial are dead, naming trial and time.
        ValueError: if the backend is `"compiled"` and there is no compiled form.
    """
    if backend != "plain":
        found = _run_compiled(kernel, args, kwargs, scheme, store)
        if isinstance(found, History):
            return found
        if backend == "compiled":
            raise ValueError(f"`backend` must be 'auto' or 'plain' here, got 'compiled': {found}.")
        _say_once(found)
    return run_loop(kernel, kernel.slices(*args, **kwargs), scheme, store=store)


def _run_compiled(
    kernel: Kernel[Any], args: tuple[Any, ...], kwargs: dict[str, Any], scheme: Scheme, store: bool
) -> History[Any] | str:
    if not isinstance(kernel, BuiltInKernel):
        return "the model or guide is written by the user"
    if not HAS_NUMBA:
        return "Numba is not installed"
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.smc.compiled.run import run_compiled

    return run_compiled(kernel, scheme, *args, store=store, **kwargs)


@cache
def _say_once(reason: str) -> None:
    _log.info("The filter runs on plain tensor operations, not compiled: %s.", reason)
