"""What a MATLAB file holds: an array, or a cell array of trials or of spike times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import Contents, SpikeTrains, is_numeric
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.readers import FEATURE_NAMES_KEYS, UNREADABLE, choose, stated_bin_size, unreadable

Array = NDArray[Any]

# What begins and ends of trials, in seconds, are called where they stand beside spike times.
_EPOCHS_KEYS = ("epochs", "trials", "intervals")


def read_mat(path: Path, key: str | None) -> Contents | SpikeTrains:
    """Read one variable of a `.mat` file of any version, and the scalars and names that stand beside it."""
    variables = _load(path)
    listing = ", ".join(f"{name} {'cell ' * (array.dtype == object)}{array.shape}" for name, array in variables.items())
    dims_by_name = {}
    for name, array in variables.items():
        if name in FEATURE_NAMES_KEYS or (key is None and name in _EPOCHS_KEYS) or array.size < 2:
            continue
        if array.dtype == object and all(is_numeric(cell) for cell in array.flat):
            dims_by_name[name] = 2
        elif is_numeric(array):
            dims_by_name[name] = array.ndim
    chosen = variables[choose(path, key, dims_by_name, listing)]
    names = next((_words(variables[name]) for name in FEATURE_NAMES_KEYS if name in variables), ())
    if chosen.dtype == object:
        return _cells(path, list(chosen.flat), names, variables)
    scalars = {name: array.item() for name, array in variables.items() if array.size == 1 and is_numeric(array)}
    return Contents(chosen, feature_names=names, bin_size=stated_bin_size(path, scalars))


def _cells(
    path: Path, cells: list[Array], names: tuple[str, ...], variables: dict[str, Array]
) -> Contents | SpikeTrains:
    """Return a cell array as spike times, if its cells are vectors, or as trials, if they are matrices."""
    if all(cell.ndim <= 1 for cell in cells):
        epochs = next((variables[name] for name in _EPOCHS_KEYS if name in variables), None)
        if epochs is not None and (epochs.ndim != 2 or epochs.shape[1] != 2 or not is_numeric(epochs)):
            epochs = None
        units = names if len(names) == len(cells) else tuple(f"unit_{index}" for index in range(len(cells)))
        trains = {unit: np.atleast_1d(cell).astype(np.float64) for unit, cell in zip(units, cells, strict=True)}
        return SpikeTrains(trains, epochs=None if epochs is None else epochs.astype(np.float64))
    # A trial of a single time bin, or of a single feature, was stored as a vector like any other.
    shapes = {cell.shape for cell in cells}
    same = [axis for axis in (0, 1) if len({shape[axis] for shape in shapes if len(shape) == 2}) == 1]
    if any(len(shape) != 2 for shape in shapes) or not same:
        raise ValueError(
            f"The cells in {path} must be trials with the same features, time x features or the other way round, or "
            f"vectors of spike times; got the shapes {', '.join(map(str, sorted(shapes)[:5]))}."
        )
    scalars = {name: array.item() for name, array in variables.items() if array.size == 1 and is_numeric(array)}
    bin_size = stated_bin_size(path, scalars)
    if len(same) == 2:
        # All of one shape: which axis is time is for the usual rules to tell.
        return Contents(np.stack(cells), dims=("trial", "", ""), feature_names=names, bin_size=bin_size)
    time = 1 - same[0]
    lengths = tuple(cell.shape[time] for cell in cells)
    shape = [len(cells), 0, 0]
    shape[1 + time], shape[2 - time] = max(lengths), cells[0].shape[same[0]]
    joined = np.full(shape, np.nan)
    for row, cell in zip(joined, cells, strict=True):
        row[: cell.shape[0], : cell.shape[1]] = cell
    dims = ("trial", "time", "feature") if time == 0 else ("trial", "feature", "time")
    return Contents(joined, dims=dims, feature_names=names, bin_size=bin_size, trial_lengths=lengths)


def _load(path: Path) -> dict[str, Array]:
    """Return the variables of a file: numbers, text, and cell arrays (of Python's objects); structs are left out."""
    io = require("scipy.io", "matlab", f"Reading {path}")
    try:
        raw = io.loadmat(path, squeeze_me=False, chars_as_strings=True)
    except NotImplementedError:
        # Version 7.3 is HDF5.
        return _load_hdf5(path)
    except (*UNREADABLE, io.matlab.MatReadError, IndexError, MemoryError) as error:
        if path.read_bytes()[:4] == b"\x89HDF":
            return _load_hdf5(path)
        raise unreadable(path, "a MATLAB file", error) from error
    variables = {name: value for name, value in raw.items() if isinstance(value, np.ndarray)}
    return {name: _squeezed(value) for name, value in variables.items() if value.dtype.kind != "V"}


def _load_hdf5(path: Path) -> dict[str, Array]:
    h5py = require("h5py", "matlab", f"Reading {path}, of MATLAB's version 7.3,")
    try:
        with h5py.File(path, "r") as file:
            read = {name: _from_hdf5(file, one) for name, one in file.items() if isinstance(one, h5py.Dataset)}
    except (*UNREADABLE, RuntimeError) as error:
        raise unreadable(path, "a MATLAB file", error) from error
    return {name: _squeezed(value) for name, value in read.items() if value is not None}


def _from_hdf5(file: Any, dataset: Any) -> Array | None:
    kind = dataset.attrs.get("MATLAB_class", b"")
    if "MATLAB_empty" in dataset.attrs:
        return np.empty((0, 0))
    # MATLAB's first dimension is the last one of the file.
    value = np.asarray(dataset[()]).T
    if kind == b"char":
        return np.array(["".join(map(chr, row)) for row in value])
    if value.dtype != object:
        return value
    cells = np.empty(value.shape, dtype=object)
    for place, reference in np.ndenumerate(value):
        cell = file[reference]
        cells[place] = _from_hdf5(file, cell) if hasattr(cell, "dtype") else np.array("struct")
    return cells


def _squeezed(array: Array) -> Array:
    """Return an array without the dims that MATLAB gives vectors and scalars, in cells too."""
    if array.dtype == object:
        cells = np.empty(array.size, dtype=object)
        for index, cell in enumerate(array.flat):
            cells[index] = _squeezed(np.asarray(cell))
        return cells
    return array.reshape(-1) if array.ndim == 2 and min(array.shape) < 2 else array


def _words(array: Array) -> tuple[str, ...]:
    """Return the text in a cell array of strings or in the rows of a matrix of characters."""
    words = [str(cell.item()) if isinstance(cell, np.ndarray) and cell.size == 1 else str(cell) for cell in array.flat]
    return tuple(word.strip() for word in words)
