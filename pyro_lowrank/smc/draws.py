"""Random numbers of trials, which are theirs whichever trials are run beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_share: ContextVar[tuple[slice, int] | None] = ContextVar("_share", default=None)


@contextmanager
def rows_of(rows: slice, number: int) -> Iterator[None]:
    """Within it, and in this thread, trials that are run are these rows of a batch, and draw what they would in it.

    For batches that go through the objective in parts, or in several processes: with the same seed each row has the
    numbers that it has in the whole batch. `fit` does this by itself. What models of users' own draw, and noise with
    heavy tails, is drawn for these rows alone.

    Args:
        rows: of the batch that are run.
        number: of rows of the batch.

    Example::

        >>> import pyro, torch, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=9), plr.PoissonObservation(rank=1, features=3))
        >>> elbo, guide, y = plr.SMC_ELBO(8, backend="plain"), plr.BootstrapGuide(model), torch.ones(4, 5, 3)
        >>> pyro.set_rng_seed(0)
        >>> whole = elbo.log_evidence(model, guide, y)
        >>> pyro.set_rng_seed(0)
        >>> with plr.rows_of(slice(2, 4), 4):
        ...     half = elbo.log_evidence(model, guide, y[2:4])
        >>> torch.allclose(half, whole[2:4])
        True
    """
    token = _share.set((rows, number))
    try:
        yield
    finally:
        _share.reset(token)


def drawn(draw: Callable[[int], Tensor], trials: int, dim: int) -> Tensor:
    """Return random numbers of trials.

    Args:
        draw: returns those of a number of trials.
        trials: how many are run.
        dim: of the trials in what is drawn.

    Example::

        >>> import torch
        >>> whole = drawn(lambda trials: torch.arange(3 * trials).reshape(3, trials), 4, 1)
        >>> with rows_of(slice(1, 3), 4):
        ...     part = drawn(lambda trials: torch.arange(3 * trials).reshape(3, trials), 2, 1)
        >>> torch.equal(part, whole[:, 1:3])
        True
    """
    share = _share.get()
    if share is None:
        return draw(trials)
    rows, number = share
    own = rows.stop - rows.start
    if trials == 1 < own:
        # A model without a plate of trials weighs all of them together: there are no numbers of one of them.
        return draw(trials)
    if own != trials:
        raise ValueError(
            f"{own} rows of a batch of {number} are run, from row {rows.start} on, and random numbers of {trials} "
            "trials are asked for: call the objective with these rows, and with nothing else."
        )
    return draw(number).narrow(dim, rows.start, trials).contiguous()
