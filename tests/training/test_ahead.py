"""Batches that other processes read: the same numbers with any number of them, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_lowrank.errors import unsaid, warn_user
from tests.training.builders import assert_same_state, pair, small_fit, state
from tests.training.test_stored import Trials, hdf5, memory_mapped, recording
from tests.validation.test_local import eventually, is_running

ROOT = Path(__file__).resolve().parents[2]


class Noted(Trials):
    """Notes which processes read its trials."""

    def __init__(self, items: list[Any], folder: Path) -> None:
        super().__init__(items)
        self.folder = folder

    def __getitem__(self, index: int) -> Any:
        (self.folder / str(os.getpid())).touch()
        return super().__getitem__(index)


def noted(y: Tensor, folder: Path) -> Any:
    return Noted(list(y), folder)


@pytest.mark.parametrize(
    ("holder", "options"),
    [
        (noted, {"batch_size": 2}),
        (noted, {"window": 5, "batch_size": 3}),
        (memory_mapped, {"batch_size": 2}),
        (hdf5, {"window": 5}),
    ],
)
def test_numbers_do_not_depend_on_who_reads(holder: Any, options: dict[str, Any], tmp_path: Path) -> None:
    y = recording()
    y[1, 3], y[2, 8:] = float("nan"), float("nan")
    expected, guide = pair()
    small_fit(expected, guide, y, **options)
    for num_workers in (1, 2):
        model, guide = pair()
        folder = tmp_path / str(num_workers)
        folder.mkdir()
        before = torch.get_rng_state()
        small_fit(model, guide, holder(y, folder), num_workers=num_workers, **options)
        assert_same_state(model, state(expected))
        assert torch.equal(torch.get_rng_state(), before)
        if holder is noted:
            # This one looked through the data before the first step.
            readers = {int(path.name) for path in folder.iterdir()}
            assert len(readers) == 1 + num_workers
            assert not any(is_running(reader) for reader in readers - {os.getpid()})


def test_a_fit_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    y = recording()
    expected, guide = pair()
    small_fit(expected, guide, y, batch_size=2)
    options: dict[str, Any] = {"batch_size": 2, "checkpoint": tmp_path / "c.safetensors", "resume": True}

    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    model, guide = pair()
    assert small_fit(model, guide, Trials(list(y)), num_workers=2, callback=stop, **options).interrupted
    model, guide = pair(seed=9)
    small_fit(model, guide, Trials(list(y)), num_workers=1, **options)
    assert_same_state(model, state(expected))


class Spoilt(Trials):
    """A dataset that cannot be read any more once a file is there."""

    def __init__(self, items: list[Any], file: Path) -> None:
        super().__init__(items)
        self.file = file

    def __getitem__(self, index: int) -> Any:
        if self.file.exists():
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def test_what_goes_wrong_elsewhere_is_told_here(tmp_path: Path) -> None:
    y = recording()
    model, guide = pair()
    file = memory_mapped(y, tmp_path)

    def change(report: Any) -> None:
        if report.step == 2:
            np.save(tmp_path / "y.npy", np.zeros((5, 12, 3), dtype=np.float32))

    with pytest.raises(ValueError, match=r"(?s)The file .*y\.npy of `y` was written to, or is gone"):
        small_fit(model, guide, file, batch_size=2, num_steps=20, num_workers=1, callback=change)
    with pytest.raises(OSError, match="the disk is gone"):
        small_fit(
            *pair(), Spoilt(list(y), tmp_path / "gone"), batch_size=2, num_steps=20, num_workers=1,
            callback=lambda report: (tmp_path / "gone").touch(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="`num_workers` read ahead what stays where it is"):
        small_fit(*pair(), y, num_workers=1)
    with pytest.raises(ValueError, match="`num_workers` must be at least 0"):
        small_fit(*pair(), y, num_workers=-1)


PROGRAM = """
import signal, sys, torch
from pathlib import Path
from tests.training.builders import pair, recording, small_fit
from tests.training.test_ahead import Noted
# A shell in the background has its children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
def tell(report):
    if report.step == 5:
        (folder / "begun").touch()
data = Noted(list(recording()), folder)
found = small_fit(*pair(), data, batch_size=2, num_steps=10**6, num_workers=2, callback=tell)
print("interrupted", found.interrupted, found.steps < 10**6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_processes_end_with_ctrl_c(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert eventually((tmp_path / "begun").exists, 120)
        # As a terminal does it: to all processes of the group.
        os.killpg(parent.pid, signal.SIGINT)
        told, _ = parent.communicate(timeout=60)
        assert "interrupted True True" in told
        assert parent.returncode == 0, told
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
        assert len(workers) == 3
        assert eventually(lambda: not any(map(is_running, workers)), 20)
    finally:
        parent.kill()
        parent.wait()


def test_silence_is_of_one_thread_alone() -> None:
    heard: list[str] = []

    def speak() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_user("from another thread")
        heard.extend(str(each.message) for each in caught)

    with unsaid():
        thread = threading.Thread(target=speak)
        thread.start()
        thread.join()
        warn_user("from here")
    assert heard == ["from another thread"]
    with pytest.warns(UserWarning, match="again"):
        warn_user("again")
