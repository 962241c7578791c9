"""Torch's global generators, which Pyro draws from, lent to those who bring numbers of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

RNG = torch.Generator | None
"""Where random numbers come from: a generator, or torch's global one."""

_lent = threading.RLock()
# Those whose numbers are drawn, by device, the innermost last: of the thread that holds the lock.
_in_use: dict[str, list[torch.Generator]] = {}


@contextmanager
def lent_generators() -> Iterator[None]:
    """Within it, this thread alone may set the states of torch's global generators, and puts them back.

    Pyro draws from these, and keeps its handlers for all threads of a process in one place: two threads at once would
    take each other's numbers.

    Raises:
        RuntimeError: if another thread of the process is within it.
    """
    if not _lent.acquire(blocking=False):
        raise RuntimeError(
            "Another thread of this process is fitting a model, or draws by a seed or generator. Both would draw from "
            "torch's global generator, which Pyro uses, and neither would get its numbers: run them one after the "
            "other, or in processes (multiprocessing, joblib's loky, concurrent.futures.ProcessPoolExecutor)."
        )
    try:
        yield
    finally:
        _lent.release()


@contextmanager
def drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within it random numbers are those of a generator, which moves on; torch's global ones are as before after it.

    Blocks may be nested, of one generator, too, whose numbers go on then. It serves whatever draws: filters, smoothing,
    forecasts, `svi.step`, NUTS, programs of one's own. `fit` has a seed of its own.

    Args:
        generator: of the device that draws; None for torch's global one.

    Raises:
        TypeError: if it is no generator.
        RuntimeError: if another thread draws by a seed or generator at the same time.

    Example::

        >>> import torch, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=9), plr.PoissonObservation(rank=1, features=3))
        >>> generator = torch.Generator().manual_seed(0)
        >>> with plr.drawn_from(generator):
        ...     y = model.simulate(5, 20).y
        >>> torch.equal(y, model.simulate(5, 20, generator=torch.Generator().manual_seed(0)).y)
        True
    """
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator, got {type(generator).__name__}; for a seed pass "
            "torch.Generator().manual_seed(seed)."
        )
    own = _own(generator.device)
    if own is generator:
        yield
        return
    with lent_generators():
        in_use = _in_use.setdefault(str(own.device), [])
        around = in_use[-1] if in_use else None
        if around is generator:
            yield
            return
        before = own.get_state()
        if around is not None:
            # It may be the one of a block further out, or be drawn from within.
            around.set_state(before)
        own.set_state(generator.get_state())
        in_use.append(generator)
        try:
            yield
        finally:
            in_use.pop()
            generator.set_state(own.get_state())
            own.set_state(before if around is None else around.get_state())


def _own(device: torch.device) -> torch.Generator:
    """Return torch's global generator of a device."""
    if device.type != "cuda":
        return torch.default_generator
    found: torch.Generator = torch.cuda.default_generators[device.index or 0]
    return found
