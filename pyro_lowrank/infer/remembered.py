"""What an online filter remembers of the time bins that it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_lowrank.smc.loop import Particles, State


@dataclass(frozen=True)
class FilteredBin:
    """One time bin: the particles, what the filter was given, and what it knew before."""

    particles: Particles
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slice: Any
    memory: State


def copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy what came: a caller may read the next time bin into the same tensors, and steps look back at them."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}


def bin_arguments(y_t: Tensor, u_t: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the data and inputs of a time bin, however they were named in the call."""
    return y_t, u_t
