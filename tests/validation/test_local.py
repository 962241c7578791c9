"""Processes of a cross-validation end with the one that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import sys
from pathlib import Path
from pyro_lowrank.validation.executors import run_jobs
from tests.validation.jobs import Endless
list(run_jobs([Endless(Path(sys.argv[1]), False), Endless(Path(sys.argv[1]), True)], None, 2))
"""


def is_running(process: int) -> bool:
    """Whether a process is there, and not only its exit code that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: object, seconds: float) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_when_the_one_that_started_them_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT)
    try:
        assert eventually(lambda: len(list(tmp_path.iterdir())) == 2, 120)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert all(map(is_running, workers))
        parent.send_signal(how)
        parent.wait(60)
        assert eventually(lambda: not any(map(is_running, workers)), 20)
    finally:
        parent.kill()
        parent.wait()
        for path in tmp_path.iterdir():
            if is_running(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)
