"""Jobs that other processes can import."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


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
