"""A file is written whole or not at all, wherever it may go, and what killed processes leave is in nobody's way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyro_lowrank.files import check_same_settings, check_writable, differing, told_of, write_whole

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")

# Is killed while it writes, before the file is in its place.
KILLED = """
import os, signal, sys
from pyro_lowrank import files
files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(sys.argv[1], b"half")
"""


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


@needs_locks
def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=120, check=False)
        assert done.returncode == -9
        assert len(names(tmp_path)) == 1, "one that was killed removes what the one before left"
    write_whole(tmp_path / "other", b"other")
    assert len(names(tmp_path)) == 2, "leftovers of other files are those files' matter"
    write_whole(path, b"whole")
    assert names(tmp_path) == ["model", "other"]
    assert path.read_bytes() == b"whole"


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = tmp_path / "model", os.fsync
    started, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            started.set()
            assert go_on.wait(60)
        original(number)

    monkeypatch.setattr(os, "fsync", wait)
    slow = threading.Thread(target=write_whole, args=(path, b"slow"))
    slow.start()
    assert started.wait(60)
    write_whole(path, b"fast")
    assert path.read_bytes() == b"fast"
    go_on.set()
    slow.join()
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("length", [1, 220, 255])
def test_names_may_be_as_long_as_the_system_takes(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("n" * length)
    check_writable(path)
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    assert names(tmp_path) == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes there")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        for write in (lambda to: write_whole(to, b"content"), check_writable):
            with pytest.raises(FileExistsError, match="must be a file, but .* is a pipe, a device or a socket; choose"):
                write(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_whole(path, b"one")
    path.chmod(0o640)
    write_whole(path, b"two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_write_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_whole(path, b"precious")
    monkeypatch.setattr(os, "access", lambda *_: False)  # To an administrator, nothing is protected.
    with pytest.raises(PermissionError, match="write-protected; allow writing to it"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"precious"


def test_settings_that_differ_are_told() -> None:
    assert differing({"a": [1], "b": 2}, {"a": [1], "b": 3, "c": 0, "d": None}) == ["b", "c"]
    check_same_settings("It is another", {"a": 1}, {"a": 1}, "Go.")
    with pytest.raises(ValueError, match=r"^It is another: b was 2, is 3; c was None, is 0\. Go\.$"):
        check_same_settings("It is another", {"b": 2}, {"b": 3, "c": 0}, "Go.")


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), AttributeError("none"), RecursionError("deep")])
def test_whatever_contents_make_go_wrong_is_one_error_with_the_name(error: Exception) -> None:
    with pytest.raises(ValueError, match=f"file.json is damaged: {error}"), told_of("file.json is damaged"):
        raise error
    with pytest.raises(ValueError, match=r"damaged: it lacks 'rank'\."), told_of("damaged"):
        raise KeyError("rank")
    with pytest.raises(FileNotFoundError), told_of("damaged"):
        raise FileNotFoundError
