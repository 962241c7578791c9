"""Libraries that one kind of data needs, imported when it is read."""

from __future__ import annotations

import importlib
from typing import Any


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
