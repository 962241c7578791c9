"""Whether particles of all trials and time bins fit into memory."""

from __future__ import annotations

import os

from torch import Tensor

# Latents, means of the next ones, weights and ancestors of every time bin.
_ARRAYS_OF_RANK, _OTHERS = 2, 2


def check_room(num_particles: int, rank: int, y: Tensor) -> None:
    """Raise unless what a run of the filter stores fits into half of the machine's memory, as far as that is known.

    Raises:
        ValueError: if it does not.
    """
    needed = num_particles * y.shape[0] * y.shape[1] * (_ARRAYS_OF_RANK * rank + _OTHERS) * y.element_size()
    there = _memory()
    if there is not None and needed > there / 2:
        most = int(num_particles * there / 2 / needed)
        raise ValueError(
            f"{num_particles:,} particles of {y.shape[0]} trials x {y.shape[1]} time bins take "
            f"{needed / 2**30:,.1f} GiB per chain, of {there / 2**30:,.1f} GiB that this machine has: at most "
            f"{most:,} fit into half of it."
        )


def _memory() -> int | None:
    """Return the bytes of the machine's memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
