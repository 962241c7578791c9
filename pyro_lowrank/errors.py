"""Checks of what a user passes in: each raises with what was expected, what came and how to mend it."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class NoCompiledForm(ValueError):
    """A model, guide or option for which there are no compiled loops; the message says why."""


class CannotBeReplayed(ValueError):
    """A model of the user's own cannot be run along paths."""


class NoMean(ValueError):
    """An observation model whose distribution has no mean, such as one of categories."""


def said_of(error: TypeError | ValueError, message: str) -> TypeError | ValueError:
    """Return a plain TypeError or ValueError with another message: a user's subclass may want further arguments.

    Example::

        >>> said_of(UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), "In part 'a': bad")
        ValueError("In part 'a': bad")
    """
    return (TypeError if isinstance(error, TypeError) else ValueError)(message)


_NOT_THE_USERS = {"pyro_lowrank", "pyro", "torch", "contextlib"}


_unsaid: ContextVar[bool] = ContextVar("_unsaid", default=False)


@contextmanager
def unsaid() -> Iterator[None]:
    """Within it, and in this thread alone, `warn_user` says nothing: of parts it need not hold what does of the whole.

    Example::

        >>> with unsaid():
        ...     warn_user("Nobody hears this.")
    """
    token = _unsaid.set(True)
    try:
        yield
    finally:
        _unsaid.reset(token)


def warn_user(message: str) -> None:
    """Warn at the line of the user's code that led here, past the frames of this package, Pyro and torch."""
    if _unsaid.get():
        return
    level, _ = _users_frame()
    warnings.warn(message, UserWarning, stacklevel=level - 1)


def _users_frame() -> tuple[int, FrameType]:
    """Return the innermost frame of the user's code, past those of this package, Pyro and torch, and how far it is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    return level, frame


def users_line() -> str:
    """Return the function, file and line of the user's code that led here.

    Example::

        >>> ", line " in users_line()
        True
    """
    _, frame = _users_frame()
    return f"{frame.f_code.co_name}, line {frame.f_lineno} of {frame.f_code.co_filename}"


def check_positive_int(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int, or raise if it is not an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__} {value!r}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {name}={value}.")
    return int(value)


def check_indices(name: str, value: Any, *, below: int | None = None) -> tuple[int, ...]:
    """Return `value` as distinct indices from 0 on, or raise if it is none, or if some reach `below`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a sequence of indices, got {type(value).__name__} {value!r}.")
    indices = tuple(check_positive_int(name, index, minimum=0) for index in value)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"`{name}` must hold distinct indices, at least one, got {list(indices)}.")
    if below is not None and max(indices) >= below:
        raise ValueError(f"`{name}` must hold indices from 0 to {below - 1}, got {max(indices)}.")
    return indices


def check_positive(name: str, value: Any) -> float:
    """Return `value` as a float, or raise if it is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__} {value!r}.")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`{name}` must be finite and above zero, got {name}={number}.")
    return number


def check_share(name: str, value: Any) -> float:
    """Return `value` as a float, or raise if it is not a number above zero and below one."""
    number = check_positive(name, value)
    if number >= 1:
        raise ValueError(f"`{name}` must be a share, above 0 and below 1, got {number}.")
    return number


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


def check_same_type(name: str, value: Tensor, like: Tensor) -> None:
    """Raise unless the tensor has the floating-point type and the device of the model's parameters, `like`."""
    if value.dtype != like.dtype:
        raise TypeError(
            f"`{name}` holds {value.dtype}, the model {like.dtype}; pass {name}.to({like.dtype}), or turn the model "
            f"with model.to({value.dtype})."
        )
    if value.device != like.device:
        raise ValueError(
            f"`{name}` lies on {value.device}, the model on {like.device}; pass {name}.to({str(like.device)!r}), or "
            f"move the model with model.to({str(value.device)!r})."
        )


def check_trackable(name: str, value: Tensor) -> None:
    """Raise if gradients cannot pass by a tensor, because it was made under `torch.inference_mode`."""
    if value.is_inference():
        raise ValueError(
            f"{name} is an inference tensor, made under torch.inference_mode(), which cannot be in a computation whose "
            "gradient is taken: pass its `.clone()`, made outside of inference mode."
        )


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


def require(library: str, extra: str, purpose: str) -> Any:
    """Import and return an optional library, or raise with the extra that brings it.

    Args:
        library: its name, as it is imported.
        extra: the extra of this package that has it.
        purpose: what it is needed for, to begin the message with.

    Raises:
        ModuleNotFoundError: if it is not installed.

    Example:
        >>> require("numpy", "numbers", "Counting").__name__
        'numpy'
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{purpose} needs {library}, and {error.name} is not installed: pip install "pyro-lowrank[{extra}]".',
            name=error.name,
        ) from error
