"""Libraries that one kind of data needs, imported when it is read."""

from __future__ import annotations

from pyro_lowrank.errors import require

__all__ = ["require"]
