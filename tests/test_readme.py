"""README.md shows what runs: its commands have the agreed form, and its Python is executed."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from pyro_lowrank.cli import main
from tests.markdown import Block, fenced_blocks, python_blocks, run

README = Path(__file__).resolve().parents[1] / "README.md"

BLOCKS = fenced_blocks(README.read_text(encoding="utf-8"))
PYTHON_BLOCKS = python_blocks(README)


def test_the_first_two_blocks_are_the_two_commands() -> None:
    demo, tests = BLOCKS[:2]
    assert (demo.language, tests.language) == ("bash", "bash")
    assert "pyro-lowrank demo" in demo.code
    assert "pytest" in tests.code
    for command in (demo.code, tests.code):
        assert "torch==2.13.0" in command
        assert "venv" in command, "each command is complete in itself: it makes its own environment"


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: f"line{block.line}")
def test_python_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run([block], README)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "console"], ids=lambda block: f"line{block.line}")
def test_console_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for the number of steps; on a recording of the name that they have."""
    monkeypatch.chdir(tmp_path)
    np.save("recording.npy", np.random.default_rng(0).standard_normal((200, 6), dtype=np.float32))
    for line in block.code.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "pyro-lowrank"
        if arguments[0] == "fit":
            # The last one counts.
            arguments += ["--steps", "3"]
        assert main(arguments) == 0
    assert any((tmp_path / "fitted").iterdir())
