"""Checks of what a user passes in: each raises with what was expected, what came and how to mend it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def check_positive_int(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int, or raise if it is not an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__} {value!r}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {name}={value}.")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Return `value` as a float, or raise if it is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__} {value!r}.")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be finite and above zero, got {name}={value}.")
    return float(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value`, or raise with the list of choices if it is not one of them."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return str(value)


def check_sequence(name: str, value: Any, *, last: int, last_name: str) -> Tensor:
    """Return `value` if it is a non-empty `trials x time x last` tensor of floats, or raise."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor of shape trials x time x {last_name}, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name}, dtype=torch.float32)."
        )
    if value.dim() != 3:
        hint = f"; for a single trial pass {name}[None]" if value.dim() == 2 else ""
        raise ValueError(
            f"`{name}` must have 3 dims, trials x time x {last_name}, got {value.dim()} with shape "
            f"{tuple(value.shape)}{hint}."
        )
    if not value.is_floating_point():
        raise TypeError(
            f"`{name}` must hold floats (NaN marks a missing entry), got {value.dtype}; use {name}.float()."
        )
    if value.numel() == 0:
        raise ValueError(
            f"`{name}` is empty: expected at least one trial, time bin and {last_name}, got {tuple(value.shape)}."
        )
    if value.shape[-1] != last:
        hint = f"; its time dim may be last: try {name}.mT" if value.shape[-2] == last else ""
        raise ValueError(
            f"`{name}` must have {last} {last_name} in its last dim, as the model was built with, got "
            f"{value.shape[-1]} (shape {tuple(value.shape)}){hint}."
        )
    return value


def check_no_infinities(name: str, value: Tensor) -> None:
    """Raise if `value` holds an infinity, naming the first place."""
    import torch

    infinite = torch.isinf(value)
    if infinite.any():
        where = tuple(int(i) for i in infinite.nonzero()[0])
        raise ValueError(
            f"`{name}` holds {int(infinite.sum())} infinite values, the first at index {where}; "
            "replace them (NaN marks a missing entry)."
        )
