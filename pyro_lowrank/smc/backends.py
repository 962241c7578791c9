"""Which loop runs a filter over whole sequences: the compiled one where it can, else the plain one."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from pyro_lowrank.compilation import HAS_NUMBA, NO_NUMBA
from pyro_lowrank.dynamics.means import Mean, compiled_mean
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.bootstrap import BootstrapProposal
from pyro_lowrank.guides.laplace import LaplaceProposal
from pyro_lowrank.smc.built_in import BuiltInKernel
from pyro_lowrank.smc.loop import History, Kernel, Scheme, run_loop

BACKENDS = ("auto", "compiled", "plain")

_USERS_OWN = "the model or guide is written by the user"
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
        return _USERS_OWN
    if not HAS_NUMBA:
        return NO_NUMBA
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.smc.compiled.run import run_compiled

    return run_compiled(kernel, scheme, *args, store=store, **kwargs)


def prepare_online(kernel: Kernel[Any], backend: str) -> None:
    """Let a kernel that runs time bin by time bin, without gradients, use compiled loops where it can.

    Raises:
        ValueError: if the backend is `"compiled"` and there is no compiled form.
    """
    if backend == "plain":
        return
    reason = _compile_steps(kernel)
    if reason is not None and backend == "compiled":
        raise ValueError(f"`backend` must be 'auto' or 'plain' here, got 'compiled': {reason}.")


def mean_of(transition: Transition, backend: str) -> Mean:
    """Return what computes the means of the next latents without gradients: compiled loops where they can."""
    mean = transition.mean if backend == "plain" else compiled_mean(transition)
    return transition.mean if isinstance(mean, str) else mean


def _compile_steps(kernel: Kernel[Any]) -> str | None:
    """Give a kernel its compiled mean, and proposal if there is one; or return why there is no mean."""
    if not isinstance(kernel, BuiltInKernel):
        return _USERS_OWN
    mean = compiled_mean(kernel.transition)
    if isinstance(mean, str):
        return mean
    kernel.mean = mean
    gaussian = not isinstance(kernel.transition.noise, StudentTNoise)
    if gaussian and isinstance(kernel.proposal, (BootstrapProposal, LaplaceProposal)):
        # Deferred: importing Numba takes longer than the rest of the package.
        from pyro_lowrank.smc.compiled.online import CompiledProposal

        kernel.propose = CompiledProposal(kernel.transition, kernel.emission, kernel.proposal)
    return None


@cache
def _say_once(reason: str) -> None:
    level = logging.WARNING if reason == NO_NUMBA else logging.INFO
    _log.log(level, "The filter runs on plain tensor operations, not compiled: %s.", reason)
