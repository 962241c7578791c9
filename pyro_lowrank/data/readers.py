"""What each kind of file holds: an array, and what the file says about it."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import SECONDS, Contents, is_numeric
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.orientation import role_of

if TYPE_CHECKING:
    import xarray

Array = NDArray[np.generic]

# What the libraries that open files raise on one that is cut off or of another kind.
UNREADABLE = (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)

# Scalars that state the bin size, and the bin size in seconds they stand for.
BIN_SIZE_KEYS: Mapping[str, Callable[[float], float]] = {
    "bin_size": lambda seconds: seconds,
    "bin_s": lambda seconds: seconds,
    "dt": lambda seconds: seconds,
    "fs": lambda hertz: 1.0 / hertz,
    "sampling_rate": lambda hertz: 1.0 / hertz,
}
FEATURE_NAMES_KEYS = ("ch_names", "channel_names", "feature_names", "unit_names")

# Columns of a .csv file that are no features, in lower case.
CLOCK_COLUMNS = {"t", "time", "time_s"}
COUNTER_COLUMNS = {"", "bin", "index", "sample"}


def unreadable(path: Path, kind: str, error: Exception) -> ValueError:
    """Return the error for a file that cannot be opened as what its name says it is."""
    if "Object arrays" in str(error):
        return ValueError(
            f"{path} holds an array of Python objects, which are never unpickled; "
            "save an array of numbers (`array.astype(float)`, padded with NaN where trials differ in length)."
        )
    return ValueError(
        f"{path} cannot be read as {kind}: it is truncated, damaged or of another format; save it again. "
        f"({type(error).__name__}: {error})"
    )


def read_npy(path: Path, key: str | None) -> Contents:
    """Read a `.npy` file, which holds one array and no names."""
    _refuse_key(path, key)
    try:
        array = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(path, "a NumPy array", error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive of several arrays; rename it to end in .npz.")
    return Contents(array)


def read_npz(path: Path, key: str | None) -> Contents:
    """Read one array of a `.npz` archive, and the scalars and names that stand beside it."""
    objects = []
    arrays: dict[str, Array] = {}
    try:
        archive = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(path, "an archive of NumPy arrays", error) from error
    if isinstance(archive, np.ndarray):
        raise ValueError(f"{path} is a single array; rename it to end in .npy.")
    with archive:
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except UNREADABLE as error:
                if "Object arrays" not in str(error) or name == key:
                    raise unreadable(path, "an archive of NumPy arrays", error) from error
                objects.append(name)
    listing = ", ".join([f"{n} {a.shape}" for n, a in arrays.items()] + [f"{n} (Python objects)" for n in objects])
    chosen = choose(path, key, {name: array.ndim for name, array in arrays.items() if is_numeric(array)}, listing)
    names = next((arrays[n] for n in FEATURE_NAMES_KEYS if n in arrays and arrays[n].ndim == 1), np.empty(0))
    scalars = {name: array.item() for name, array in arrays.items() if array.size == 1 and is_numeric(array)}
    return Contents(
        arrays[chosen], feature_names=tuple(str(name) for name in names), bin_size=stated_bin_size(path, scalars)
    )


def read_csv(path: Path, key: str | None) -> Contents:
    """Read a `.csv` file: a row per time bin, with or without a header row; an empty cell is a missing entry."""
    _refuse_key(path, key)
    header, array = _parse_csv(path)
    if any(role_of(name) == "trials" for name in header):
        raise ValueError(
            f"{path} has a column of trials, but a .csv file holds one recording; "
            "save several trials as an array `trials x time x features` in a .npy file."
        )
    times = None
    left_out: dict[int, str] = {}
    for column, name in enumerate(header):
        if name.lower() in CLOCK_COLUMNS:
            times = array[:, column]
            left_out[column] = f" Column {name!r} was taken as times in seconds, not as a feature."
        elif name.lower() in COUNTER_COLUMNS and bool(np.all(np.diff(array[:, column]) == 1)):
            left_out[column] = f" Column {name!r} counts the rows and was left out."
    return Contents(
        np.delete(array, list(left_out), axis=1),
        feature_names=tuple(name for column, name in enumerate(header) if column not in left_out),
        times=times,
        remark="".join(left_out.values()),
    )


def _parse_csv(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise unreadable(path, "comma-separated text", error) from error
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
    if not rows:
        raise ValueError(f"{path} is empty; expected a row of comma-separated numbers per time bin.")
    header: list[str] = []
    if any(_number(cell) is None for cell in rows[0]):
        header = [cell.strip() for cell in rows.pop(0)]
    width = len(header or rows[0])
    numbers = [_row(path, cells, width, number + bool(header)) for number, cells in enumerate(rows, 1)]
    return header, np.array(numbers, dtype=np.float64).reshape(len(rows), width)


def read_netcdf(path: Path, key: str | None) -> Contents:
    """Read one variable of an xarray `.nc` file, with the names of its dimensions and its coordinates."""
    require("h5netcdf", "netcdf", f"Reading {path}")
    xarray = require("xarray", "netcdf", f"Reading {path}")
    try:
        # Times stay numbers with a unit, as they stand in the file, whatever xarray would make of them.
        with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as opened:
            dataset = opened.load()
    except UNREADABLE as error:
        raise unreadable(path, "an xarray netCDF file", error) from error
    listing = ", ".join(f"{name} {dict(variable.sizes)}" for name, variable in dataset.data_vars.items())
    numeric = {str(name): v.ndim for name, v in dataset.data_vars.items() if is_numeric(v.to_numpy())}
    return xarray_contents(str(path), dataset[choose(path, key, numeric, listing)], dataset.attrs)


def xarray_contents(source: str, variable: xarray.DataArray, attributes: Mapping[Any, Any]) -> Contents:
    """Return the values of one variable, with the names of its dimensions and what its coordinates say."""
    dims = tuple(str(dim) for dim in variable.dims)
    labels = [variable.coords[dim].to_numpy() for dim in dims if role_of(dim) == "features" and dim in variable.coords]
    trials = [variable.coords[dim].to_numpy() for dim in dims if role_of(dim) == "trials" and dim in variable.coords]
    return Contents(
        variable.to_numpy(),
        dims=dims,
        feature_names=tuple(str(label) for label in labels[0]) if labels else (),
        trial_labels=tuple(str(label) for label in trials[0]) if trials else (),
        unit=str(variable.attrs.get("units", "")),
        bin_size=stated_bin_size(source, {**attributes, **variable.attrs}),
        times=_xarray_times(variable),
    )


def stated_bin_size(source: Path | str, scalars: Mapping[Any, Any]) -> float | None:
    """Return the seconds per bin that one of a file's scalars states, or None.

    Raises:
        ValueError: if the scalar is not a positive number.

    Example:
        >>> stated_bin_size(Path("eeg.npz"), {"fs": 160.0})
        0.00625
    """
    for name, to_seconds in BIN_SIZE_KEYS.items():
        value = scalars.get(name)
        if isinstance(value, int | float | np.number):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` in {source} must be positive and finite, got {value}.")
            return float(to_seconds(float(value)))
    return None


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ValueError(
            f"`key` chooses among the arrays of a .npz, .nc, .mat or .nwb file; {path} holds one, got key={key!r}."
        )


def choose(path: Path, key: str | None, dims_by_name: Mapping[str, int], listing: str) -> str:
    """Return the name of the array to read: `key`, or the only one that could be meant."""
    if key is not None:
        if key not in dims_by_name:
            raise ValueError(f"`key` must name an array of numbers in {path}, got key={key!r}; it holds: {listing}.")
        return key
    candidates = [name for name, ndim in dims_by_name.items() if ndim >= 2]
    candidates = candidates or [name for name, ndim in dims_by_name.items() if ndim == 1]
    if len(candidates) != 1:
        found = f"{len(candidates)} arrays could be the recording" if candidates else "no array could be the recording"
        raise ValueError(f"In {path} {found}; pass `key` to choose one. It holds: {listing or 'nothing'}.")
    return candidates[0]


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        return None


def _row(path: Path, cells: list[str], width: int, line: int) -> list[float]:
    # In a file of one column a missing entry leaves its whole line empty.
    cells = cells or [""] * (width == 1)
    if len(cells) != width:
        raise ValueError(f"Row {line} of {path} has {len(cells)} cells, the rows above it have {width}.")
    numbers = [_number(cell) for cell in cells]
    if None in numbers:
        column = numbers.index(None)
        raise ValueError(
            f"Row {line}, column {column + 1} of {path} must be a number, got {cells[column]!r}; "
            "cells are separated by commas, and an empty cell is a missing entry."
        )
    return [number for number in numbers if number is not None]


def _xarray_times(variable: xarray.DataArray) -> NDArray[np.floating] | None:
    for dim in map(str, variable.dims):
        if role_of(dim) == "time" and dim in variable.coords and variable.coords[dim].dtype.kind in "mM":
            ticks = variable.coords[dim].to_numpy()
            elapsed: NDArray[np.floating] = (ticks - ticks[0]) / np.timedelta64(1, "s")
            return elapsed
        if role_of(dim) == "time" and dim in variable.coords and is_numeric(variable.coords[dim].to_numpy()):
            times = variable.coords[dim]
            unit = str(times.attrs.get("units", "")).split(" ")[0].lower()
            return times.to_numpy().astype(np.float64) * SECONDS[unit] if unit in SECONDS else None
    return None
