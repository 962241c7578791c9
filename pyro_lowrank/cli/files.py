"""The files that commands write."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_lowrank.files import check_writable, write_whole
from pyro_lowrank.plots.figures import save_figure


def output_files(folder: Path, *names: str) -> dict[str, Path]:
    """Return the paths of the files to be written, after making sure that they can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be made: {error.strerror}; choose another `--out`.") from error
    files = {name: folder / name for name in names}
    for path in files.values():
        check_writable(path)
    return files


def draw(path: Path, make: Callable[[], Any]) -> list[str]:
    """Save a figure, as PNG, if matplotlib is there; return the names of the files written."""
    content = io.BytesIO()
    try:
        save_figure(make(), content)
    except ModuleNotFoundError as error:
        print(error)
        return []
    write_whole(path, content.getvalue())
    return [path.name]


def list_files(folder: Path, names: list[str]) -> None:
    """Say where the files are."""
    print(f"\nWritten to {folder}: {', '.join(names)}")
