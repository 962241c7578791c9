"""What a method tells while it works."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how many boxes, regions or starts are done and how many fixed points are known."""
