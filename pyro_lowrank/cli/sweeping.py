"""`pyro-lowrank sweep`: fit the points of a grid that no other process is at."""

from __future__ import annotations

import argparse
import csv
import io
import runpy
from pathlib import Path
from typing import Any

from pyro_lowrank.cli.codes import INTERRUPTED
from pyro_lowrank.data import read_recording
from pyro_lowrank.files import write_whole
from pyro_lowrank.validation.claims import Claims
from pyro_lowrank.validation.sweep import Sweep, sweep

_FILE = "sweep.py"


def run(options: argparse.Namespace) -> int:
    """Fit what is left, wait for what others are at, and write the table; return the exit code."""
    given = _definitions(options.folder)
    data = given["data"]
    if isinstance(data, str | Path):
        # As from the folder, wherever the command was started.
        data = read_recording(options.folder / data)
    further = dict(given.get("options", {}))
    for name in ("folder", "executor", "num_workers", "grid"):
        if name in further:
            raise ValueError(f"`options` in {options.folder / _FILE} must not hold {name!r}: the command sets it.")
    found = sweep(
        given["factory"],
        data,
        grid=given["grid"],
        folder=options.folder / "records",
        executor=Claims(),
        **{"progress": True, **further},
    )
    print(found)
    if found.interrupted:
        print("Interrupted: the same command goes on.")
        return INTERRUPTED
    _write_table(options.folder / "table.csv", found)
    print(f"\nWritten to {options.folder}: table.csv")
    return 0


def _definitions(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {_FILE} in {folder}: write one that defines factory, grid and data.")
    given = runpy.run_path(str(path), run_name="sweep")
    missing = [name for name in ("factory", "grid", "data") if name not in given]
    if missing:
        raise ValueError(f"{path} must define factory, grid and data; it lacks {', '.join(missing)}.")
    return given


def _write_table(path: Path, found: Sweep) -> None:
    columns = found.columns()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_whole(path, text.getvalue().encode())
