"""Tables of comma-separated numbers, with names above them or not."""

from __future__ import annotations

import csv
import itertools
import math
import re
from array import array
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.clocks import COUNTER_WORDS, Column, column_of, names_time, rises_evenly, words_of
from pyro_lowrank.data.contents import Contents
from pyro_lowrank.data.opening import Refused, reading
from pyro_lowrank.data.orientation import DIM_NAMES
from pyro_lowrank.data.readers import refuse_key
from pyro_lowrank.errors import warn_user

Floats = NDArray[np.float64]

# What pandas, R, MATLAB and spreadsheets write for a missing entry.
_MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "none"}
# Beyond these what their names and values tell would take minutes to find out.
_MOST_COLUMNS = 50_000
# Rows that tell whether the first one holds names.
_ROWS_SEEN = 50


def read_csv(path: Path, key: str | None) -> Contents:
    """Read a `.csv` file: a row per time bin, with or without names in the first; an empty cell is a missing entry.

    Columns that hold times or count the rows are no features, see `clocks.column_of`.
    """
    refuse_key(path, key)
    with reading(path, "comma-separated text"):
        header, table, dated, remark = _parse(path)
    _check_form(path, header, table)
    names: list[str | None] = [*header] or [None] * table.shape[1]
    times: list[NDArray[np.floating]] = []
    left_out = []
    # Where the second column rises evenly too, that of the first tells nothing.
    tells = table.shape[1] > 1 and not rises_evenly(table[:, 1])
    for place, (name, values) in enumerate(zip(names, table.T, strict=True)):
        if name == "" and np.isnan(values).all():
            left_out.append(place)
            remark += f" Column {place + 1} has neither a name nor an entry, and was left out."
            continue
        found = column_of(name, values, first=tells and place == 0)
        if place in dated:
            found = Column(f" Column {name or place + 1!r} was taken as dates, not as a feature.", values)
        if found is None:
            continue
        left_out.append(place)
        remark += found.what
        times += [] if found.times is None else [found.times]
    # The clock that ticks most evenly, if there are several.
    times.sort(key=lambda each: float(np.ptp(np.diff(each))) if len(each) > 1 else 0.0)
    return Contents(
        np.delete(table, left_out, axis=1),
        feature_names=tuple(name for place, name in enumerate(header) if place not in left_out),
        times=times[0] if times else None,
        remark=remark,
    )


def _check_form(path: Path, header: list[str], table: Floats) -> None:
    """Raise if the rows of a table are not one per time bin of one recording, as far as its names tell."""
    trials = any(_all_say(name, "trials") for name in header)
    if trials or header[:2] == ["", ""]:
        what = "a column of trials" if trials else "several columns of row numbers, as of trials and time bins"
        raise ValueError(
            f"{path} has {what}, but a .csv file holds one recording; "
            "save several trials as an array `trials x time x features` in a .npy file."
        )
    labels = [place for place, name in enumerate(header) if _all_say(name, "features")]
    clocks = [place for place, name in enumerate(header) if names_time(name)]
    if labels and clocks and 3 * len(set(table[:, clocks[0]].tolist())) <= 2 * len(table):
        raise ValueError(
            f"{path} has a row for each entry, by its columns {header[clocks[0]]!r} and {header[labels[0]]!r}, and "
            "must have one for each time bin, with a column for each feature: pivot it (`pandas.DataFrame.pivot`)."
        )


def _all_say(name: str, role: str) -> bool:
    """Whether all that a name says is the role of a dimension, or the number of one."""
    words = words_of(name)
    return bool(words & DIM_NAMES[role]) and words <= DIM_NAMES[role] | COUNTER_WORDS


def _parse(path: Path) -> tuple[list[str], Floats, set[int], str]:
    """Return the names, or nothing, the numbers, the columns of dates, and a sentence on what was decided."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        head = list(itertools.islice(rows, _ROWS_SEEN))
        if not any(cell.strip() for cells in head for cell in cells):
            raise Refused(f"{path} is empty; expected a row of comma-separated numbers per time bin.")
        if len(head[0]) > _MOST_COLUMNS:
            raise Refused(
                f"{path} has {len(head[0])} columns, and a table is read up to {_MOST_COLUMNS}; save it as a .npy file."
            )
        remark = _names_in(head)
        if remark is None and _has_decimal_commas(head):
            raise Refused(
                f"{path} seems to have commas in its numbers, such as {','.join(head[0][:2])}, which are read as two "
                "cells: write them with decimal points."
            )
        header = [] if remark is None else [cell.strip() for cell in head.pop(0)]
        if header and header[0].startswith("#"):
            header[0] = header[0][1:].strip()
        body = _Body(path, header, len(head[0]) if head else len(header), bool(header))
        for cells in itertools.chain(head, rows):
            body.add(cells)
    return *body.finished(), remark or ""


class _Body:
    """The rows below the names, as they are read."""

    def __init__(self, path: Path, header: list[str], width: int, has_header: bool) -> None:
        # A comma at the end of each row, in the header as well or not there, makes an empty column. R leaves the names
        # of rows without a name of their own: which of the two it is, the last column tells.
        self.is_longer = bool(header) and width == len(header) + 1
        if self.is_longer:
            header = [*header, ""]
        elif header and not header[-1] and width == len(header) - 1:
            header = header[:-1]
        self.path, self.header, self.width = path, header, len(header) or width
        self.numbers = array("d")
        self.dated: set[int] = set()
        self.line = int(has_header)
        self.blank_lines = 0
        self.last_is_used = False

    def add(self, cells: list[str]) -> None:
        """Take one more row, or raise with its place."""
        self.line += 1
        if not any(cell.strip() for cell in cells) and len(cells) <= 1:
            # At the end they mean nothing; in a file of one column each is a missing entry.
            self.blank_lines += 1
            return
        for _ in range(self.blank_lines):
            self._append([""] if self.width == 1 else [], self.line - self.blank_lines)
        self.blank_lines = 0
        self._append(cells, self.line)

    def _append(self, cells: list[str], line: int) -> None:
        if len(cells) != self.width:
            otherwise = _separated_otherwise(",".join(cells))
            raise Refused(
                f"Row {line} of {self.path} has {len(cells)} cells, the rows above it have {self.width}.{otherwise}"
            )
        try:
            # As most rows are; Python takes 1_2 for 12.
            row = [float(cell) for cell in cells] if "_" not in "".join(cells) else None
        except ValueError:
            row = None
        self.numbers.extend(row or [self._number(cell, column, line) for column, cell in enumerate(cells)])
        self.last_is_used = self.last_is_used or bool(cells[-1].strip())

    def _number(self, cell: str, column: int, line: int) -> float:
        number = number_in(cell)
        if number is None:
            number = _date_in(cell)
            self.dated.add(column)
        if number is None:
            raise Refused(
                f"Row {line}, column {column + 1} of {self.path} must be a number, got {cell[:40]!r}; "
                f"cells are separated by commas, and an empty cell is a missing entry.{_separated_otherwise(cell)}"
            )
        return number

    def finished(self) -> tuple[list[str], Floats, set[int]]:
        """Return the names, the table and the columns of dates."""
        table = np.array(self.numbers, dtype=np.float64).reshape(-1, self.width)
        if self.is_longer and self.last_is_used:
            if not _tells_rows(table[:, 0]):
                raise Refused(
                    f"The first row of {self.path} has {self.width - 1} names, and those below it have {self.width} "
                    "cells: name each column. (If commas are those of decimal numbers, write these with points.)"
                )
            return ["", *self.header[:-1]], table, self.dated
        if len(table) and self.width > 1 and not self.last_is_used and not (self.header and self.header[-1]):
            return self.header[:-1], table[:, :-1], self.dated
        return self.header, table, self.dated


def _separated_otherwise(text: str) -> str:
    """A sentence on what seems to separate the cells, if that is no comma; or nothing."""
    found = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")) if mark in text), None)
    return f" Its cells seem to be separated by {found}: save it with commas, and with decimal points." if found else ""


def number_in(cell: str) -> float | None:
    """Return the number that a cell stands for, NaN where it is missing, or None where it is no number.

    Example:
        >>> number_in("1e3"), number_in("NA"), number_in("1_2")
        (1000.0, nan, None)
    """
    cell = cell.strip()
    if cell.lower() in _MISSING:
        return math.nan
    try:
        # Python takes 1_2 for 12; in a file it is a name.
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _date_in(cell: str) -> float | None:
    """Seconds since 1970."""
    try:
        date = datetime.fromisoformat(cell.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()


def _names_in(rows: Sequence[list[str]]) -> str | None:
    """Return None if the first row holds numbers like those below it, or else a sentence that says that it names them.

    A word makes it names. So do numbers that only names are: whole ones above fractions, ones that count the columns,
    a row that rises evenly above rows that do not, or an empty cell above a column that counts the rows.
    """
    cells = [cell.strip() for cell in rows[0]]
    numbers = [number_in(cell) for cell in cells]
    if any(number is None for number in numbers):
        words = [cell for cell, number in zip(cells, numbers, strict=True) if number is None]
        return "" if any(_date_in(word) is None for word in words) else None
    below = [[cell.strip() for cell in row] for row in rows[1:] if len(row) == len(cells)]
    labels = [cell for cell in cells if cell.lower() not in _MISSING]
    if not labels or not below:
        return None
    told = f" The first row ({', '.join(cells[:5])}{', ...' if len(cells) > 5 else ''}) was taken as names."
    if cells[0] == "" and _is_index(labels, below):
        if below[0][0] == "":
            raise Refused("The table has several rows of names; write it with one.")
        return told
    if len(set(labels)) < len(cells):
        return None
    values = [float(label) for label in labels]
    counting = _whole(labels) and values in (list(range(len(values))), list(range(1, len(values) + 1)))
    fractions = all(re.search(r"[.eE]", cell) for row in below for cell in row if cell.lower() not in _MISSING)
    if _whole(labels) and fractions and (counting or (len(values) > 2 and values == sorted(values))):
        return told
    alone = _rises(values) and not any(_rises([number_in(cell) for cell in row]) for row in below)
    if alone and (len(values) > 3 or (counting and len(values) > 2)):
        return told
    if (counting and len(values) == 2 and not fractions) or (alone and len(values) == 3):
        warn_user(
            f"The first row, {', '.join(cells)}, was read as numbers; if these are names, write them with letters."
        )
    return None


def _has_decimal_commas(rows: Sequence[list[str]]) -> bool:
    """Whether every second cell is the digits behind a decimal comma: whole numbers of which some begin with 0."""
    width = len(rows[0])
    if width % 2 or any(len(row) != width or not all(re.fullmatch(r"\s*[-+]?\d+\s*", c) for c in row) for row in rows):
        return False
    columns = [[row[place].strip() for row in rows] for place in range(1, width, 2)]
    return all(all(c.isdecimal() for c in cells) and any(re.match(r"0\d", c) for c in cells) for cells in columns)


def _is_index(labels: Sequence[str], below: Sequence[list[str]]) -> bool:
    """Whether the first cells of rows are what pandas writes beside its names: numbers of rows, or times."""
    # Names of several levels stand in several rows.
    rest = [row[0] for row in itertools.dropwhile(lambda row: row[0] == "", below)]
    index = np.array([_date_in(cell) or number_in(cell) for cell in rest], dtype=np.float64)
    if not len(index) or (not _whole(labels) and not (index == np.arange(len(index))).all()):
        return False
    counting = list(map(float, labels)) in (list(range(len(labels))), list(range(1, len(labels) + 1)))
    rows = bool((index == np.round(index)).all()) and len(set(rest)) == len(rest)
    return bool((np.diff(index) > 0).all()) or (counting and rows)


def _tells_rows(values: Floats) -> bool:
    """Whether the numbers of a column tell the rows apart, as those that R writes without a name of the column."""
    steps = np.diff(values)
    return bool((steps > 0).all()) and (len(steps) < 1 or bool((steps == steps[0]).all()))


def _whole(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d+", cell) for cell in cells)


def _rises(row: Sequence[float | None]) -> bool:
    steps = np.diff(np.array(row, dtype=np.float64))
    return bool(len(steps) and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0.0))
