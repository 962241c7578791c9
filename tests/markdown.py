"""Code blocks of Markdown texts, and how the tests run those in Python."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced code block, and the line of its text on which its code starts."""

    language: str
    line: int
    code: str


def fenced_blocks(text: str) -> list[Block]:
    """Fenced code blocks of a Markdown text, from top to bottom."""
    fences = re.finditer(
        r"^```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^```[ \t]*$", text, flags=re.MULTILINE | re.DOTALL
    )
    return [Block(f["language"], text.count("\n", 0, f.start("code")) + 1, f["code"]) for f in fences]


def python_blocks(path: Path) -> list[Block]:
    """Blocks in Python of a Markdown file."""
    return [block for block in fenced_blocks(path.read_text(encoding="utf-8")) if block.language == "python"]


def run(blocks: Iterable[Block], path: Path) -> None:
    """Run blocks of a file one after another in one namespace; they must leave something behind."""
    namespace: dict[str, object] = {"__name__": path.stem}
    for block in blocks:
        # The blank lines make a traceback name the line of the file.
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)
    made = [value for name, value in namespace.items() if not name.startswith("__")]
    assert any(not isinstance(value, types.ModuleType) for value in made), "the blocks make nothing"
