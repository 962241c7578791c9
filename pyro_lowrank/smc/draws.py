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

    What models of users' own draw, and whatever else does not come by `drawn`, is drawn for these rows alone.

    Args:
        rows: of the batch that are run.
        number: of rows of the batch.
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
