"""Jobs, and parts of jobs, that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Endless:
    """Leaves a file named by its process, and then works without an end."""

    folder: Path
    busy: bool

    def run(self) -> None:
        """Do it."""
        (self.folder / str(os.getpid())).touch()
        while True:
            if not self.busy:
                time.sleep(1000)


@dataclass
class KillsOnce:
    """As `initialise`: kills its process the first times that it is called, over all processes.

    Args:
        folder: where it counts.
        times: how often it kills.
    """

    folder: Path
    times: int = 1

    __qualname__ = "KillsOnce"

    def __call__(self, model: Any, recording: Any) -> None:
        for number in range(self.times):
            try:
                (self.folder / f"killed_{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)


class CannotBePickled:
    """As `initialise`: no executor can send it."""

    __qualname__ = "CannotBePickled"

    def __call__(self, model: Any, recording: Any) -> None:
        """Do nothing."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle what is here alone")
