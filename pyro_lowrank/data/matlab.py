"""What a MATLAB file holds: an array, or a cell array of trials or of spike times."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.arrays import distinct
from pyro_lowrank.data import mat5, mat73
from pyro_lowrank.data.clocks import names_time, words_of
from pyro_lowrank.data.contents import Contents, SpikeTrains, is_numeric
from pyro_lowrank.data.opening import Refused, reading
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.variables import (
    Variable,
    beside,
    choose,
    is_beside,
    is_small,
    labels_beside,
    listing,
    names_beside,
    stated_bin_size,
    states_bin_size,
)
from pyro_lowrank.errors import warn_user

Array = NDArray[Any]

# What begins and ends of trials, in seconds, are called where they stand beside spike times.
_EPOCHS_WORDS = {"epoch", "epochs", "trial", "trials", "interval", "intervals"}


def read_mat(path: Path, key: str | None, trials_axis: int | None = None) -> Contents | SpikeTrains:
    """Read one variable of a `.mat` file of any version, and the scalars and names that stand beside it.

    Args:
        path: the file.
        key: the variable, or `struct.field`; the only one that could be meant if None.
        trials_axis: of a cell array of spike times with two axes, that of trials.
    """
    io = require("scipy.io", "matlab", f"Reading {path}")
    with reading(path, "a MATLAB file"), ExitStack() as opened:
        with path.open("rb") as file:
            head = file.read(128)
        if head[:4] == b"\x89HDF" or b"MATLAB 7.3" in head or head[124:126] in (b"\x00\x02", b"\x02\x00"):
            h5py = require("h5py", "matlab", f"Reading {path}, of MATLAB's version 7.3,")
            variables = mat73.variables_of(path, opened.enter_context(h5py.File(path, "r")))
        elif len(head) >= 4 and 0 in head[:4]:
            # Version 4 holds matrices alone, and SciPy reads it in Python.
            variables = {name: _held(value) for name, value in io.loadmat(path).items() if not name.startswith("__")}
        else:
            variables = mat5.variables_of(path)
        variables = {name: _squeezed(one) for name, one in variables.items()}
        return _read(path, variables, key, trials_axis)


def _read(
    path: Path, variables: dict[str, Variable], key: str | None, trials_axis: int | None
) -> Contents | SpikeTrains:
    struct = (key or "").rpartition(".")[0]
    outermost, *inner = struct.split(".")
    if struct and key not in variables and outermost in variables:
        # What stands in the same struct stands beside the field.
        value = variables[outermost].read()
        for name in inner:
            value = value.get(name) if isinstance(value, dict) else None
        fields = value if isinstance(value, dict) else {}
        variables = {**variables, **{f"{struct}.{name}": _squeezed(_held(each)) for name, each in fields.items()}}
    told = listing(variables)
    told += "; `key='struct.field'` reads a field" * any(one.kind.startswith("struct") for one in variables.values())
    prefix = f"{struct}." if struct else ""
    near = {name.removeprefix(prefix): one for name, one in variables.items() if name.startswith(prefix)}
    several = sum(one.kind == "numbers" and one.shape != (1,) for one in near.values()) > 1
    has_cells = any(one.kind == "cell" for one in near.values())
    dims, cells = {}, {}
    for name, one in near.items():
        guessed_away = "." in name or (several and names_time(name) and len(one.shape) == 1)
        if has_cells and one.kind == "numbers" and len(one.shape) < 3:
            guessed_away |= bool(words_of(name) & _EPOCHS_WORDS) and (2 in one.shape or name.lower() in _EPOCHS_WORDS)
        if (key is None and (guessed_away or is_beside(name))) or (key is not None and prefix + name != key):
            continue
        if one.kind == "numbers" and one.shape not in ((1,), (0,)):
            dims[prefix + name] = len(one.shape)
        elif one.kind == "cell":
            cells[name] = one.read()
            if (
                all(isinstance(cell, np.ndarray) and is_numeric(cell) for cell in _flat(cells[name]))
                and cells[name].size
            ):
                dims[prefix + name] = 2
    name = choose(path, key, dims, told).removeprefix(prefix)
    if name not in cells:
        return beside(path, near, name)
    trials = _of_trials(cells[name])
    rest = {other: one for other, one in near.items() if other != name}
    if trials is None:
        return _spikes(path, cells[name], rest, trials_axis)
    shape = cells[name].shape if cells[name].size == len(trials) else (*cells[name].shape, "...")
    joined = f" {' x '.join(map(str, shape))} cells were taken as {len(trials)} trials, row by row." * (len(shape) > 1)
    return _trials(path, trials, rest, joined)


def _held(value: Any) -> Variable:
    """Return a value that is read already as a variable."""
    if hasattr(value, "tocsc"):
        sparse = value.tocsc()
        parts = sparse.indices, sparse.indptr, sparse.data, sparse.shape
        return Variable("numbers", sparse.shape, partial(mat5.dense, Path("A sparse array"), *parts))
    if isinstance(value, np.ndarray):
        kind = {"O": "cell", "U": "words"}.get(value.dtype.kind, "numbers" if is_numeric(value) else str(value.dtype))
        return Variable(kind, value.shape, lambda: value)
    kind = f"struct with fields {', '.join(value)}" if isinstance(value, dict) else str(value.kind)
    return Variable(kind, (1, 1), lambda: value)


def _squeezed(variable: Variable) -> Variable:
    """Return a variable without the dims that MATLAB gives vectors and scalars, in cells too."""
    shape = variable.shape
    if variable.kind in ("numbers", "cell") and len(shape) == 2 and min(shape) < 2:
        shape = (shape[0] * shape[1],)
    return variable._replace(shape=shape, read=partial(_squeezed_value, variable.read))


def _squeezed_value(read: Any) -> Any:
    value = read()
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object:
        cells = np.empty(value.shape, dtype=object)
        for place, cell in np.ndenumerate(value):
            cells[place] = _squeezed_value(partial(_same, cell))
        value = cells
    return value.reshape(-1) if value.ndim == 2 and min(value.shape) < 2 else value


def _same(value: Any) -> Any:
    return value


def _flat(cells: Array) -> list[Any]:
    """Return what cells hold, and what the cells in them hold."""
    return [one for cell in cells.flat for one in (_flat(cell) if _is_cell(cell) else [cell])]


def _is_cell(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


def _of_trials(cells: Array) -> list[Array] | None:
    """Return the cells as trials of signals, or None where they are spike times: vectors that rise."""
    held = _flat(cells)
    if any(cell.ndim > 1 for cell in held):
        return held
    steps = [np.diff(np.ravel(cell)) for cell in held]
    # Spike times out of order, here and there or from trial to trial, still rise most of the time; and hardly any is
    # told twice, as the zeros between the ones of spike trains in time bins are.
    falls = any(len(step) > 3 and 4 * int((step < 0).sum()) > len(step) for step in steps)
    ties = [2 * int((step == 0).sum()) > len(step) for step in steps if len(step) > 3]
    falls |= bool(ties) and all(ties)
    return [np.reshape(cell, (-1, 1)) for cell in held] if falls else None


def _trials(path: Path, cells: list[Array], variables: dict[str, Variable], remark: str) -> Contents:
    # A trial of a single time bin, or of a single feature, was stored as a vector like any other.
    shapes = {cell.shape for cell in cells}
    same = [axis for axis in (0, 1) if len({shape[axis] for shape in shapes if len(shape) == 2}) == 1]
    if any(len(shape) != 2 for shape in shapes) or not same:
        raise Refused(
            f"The cells in {path} must be trials with the same features, time x features or the other way round, or "
            f"vectors of spike times; got the shapes {', '.join(map(str, sorted(shapes)[:5]))}."
        )
    scalars = {name: one.read() for name, one in variables.items() if states_bin_size(name) and is_small(one)}
    known = Contents(np.empty(0), feature_names=names_beside(path, variables), bin_size=stated_bin_size(path, scalars))
    known = replace(known, remark=remark, labels=labels_beside(variables, len(cells)))
    if len(same) == 2:
        # All of one shape: which axis is time is for the usual rules to tell.
        return replace(known, array=np.stack(cells), dims=("trial", "", ""))
    time = 1 - same[0]
    lengths = tuple(cell.shape[time] for cell in cells)
    shape = [len(cells), 0, 0]
    shape[1 + time], shape[2 - time] = max(lengths), cells[0].shape[same[0]]
    joined = np.full(shape, np.nan)
    for row, cell in zip(joined, cells, strict=True):
        row[: cell.shape[0], : cell.shape[1]] = cell
    dims = ("trial", "time", "feature") if time == 0 else ("trial", "feature", "time")
    return replace(known, array=joined, dims=dims, trial_lengths=lengths)


def _spikes(path: Path, cells: Array, variables: dict[str, Variable], trials_axis: int | None) -> SpikeTrains:
    cells = _as_grid(path, cells)
    epochs, no_epochs = epochs_beside(variables)
    names = names_beside(path, variables)
    unused = {name: one for name, one in variables.items() if not (is_beside(name) or states_bin_size(name))}
    unused_too = f" Not used: {listing(unused)}." if epochs is None and unused else ""
    axis = trials_axis
    if axis is None and cells.ndim == 2:
        axis = _axis_of_trials(path, cells, len(names), epochs)
    remark = unused_too
    if axis is None:
        # As they were stored: how finely tells `bin_spikes` what rounding to expect.
        units = list(cells.flat)
        default = [f"unit_{'_'.join(map(str, place))}" for place in np.ndindex(cells.shape)]
        remark += f" The {' x '.join(map(str, cells.shape))} cells were taken as a unit each." * (cells.ndim > 1)
    else:
        if not -2 <= axis < 2 or cells.ndim < 2:
            raise Refused(f"`trials_axis` must be an axis of the cells in {path}, {cells.shape}, got {trials_axis}.")
        default = [f"unit_{place}" for place in range(cells.shape[1 - axis % 2])]
    if names and len(names) != len(default):
        warn_user(f"{path} names {len(names)} units, but {len(default)} were read; the names are left out.")
    names = distinct(names if len(names) == len(default) else default)
    if axis is None:
        labels = {} if epochs is None else labels_beside(variables, len(epochs))
        return SpikeTrains(units, names, epochs=epochs, no_epochs=no_epochs, labels=labels, remark=remark)
    grid = [[np.asarray(cell, dtype=np.float64) for cell in row] for row in np.moveaxis(cells, axis, 0)]
    if epochs is not None and len(epochs) != len(grid):
        raise Refused(f"{path} holds spike times of {len(grid)} trials, and begins and ends of {len(epochs)}.")
    if epochs is not None and _within(grid, epochs):
        # On the clock of the session, as the epochs are.
        grid = [[cell - start for cell in row] for row, (start, _) in zip(grid, epochs, strict=True)]
    remark += f" Axis {axis} of the cells was taken as trials, each with spike times since its begin."
    labels = labels_beside(variables, len(grid))
    return SpikeTrains(grid, names, by_trial=True, epochs=epochs, no_epochs=no_epochs, labels=labels, remark=remark)


def _as_grid(path: Path, cells: Array) -> Array:
    """Return cells of spike times as one or two axes; cells of as many cells each are two."""
    inner = [cell.shape for cell in cells.flat if cell.dtype == object]
    if not inner and cells.ndim < 3:
        return cells
    if len(inner) < cells.size or cells.ndim > 1 or len(set(inner)) > 1 or len(inner[0]) != 1:
        raise Refused(
            f"The cells of spike times in {path} must be a list of units, or trials x units, got {cells.shape}"
            f"{f' of cells {sorted(set(inner))[:5]}' if inner else ''}; bring them to one of these."
        )
    grid = np.empty((len(cells), inner[0][0]), dtype=object)
    for place in np.ndindex(grid.shape):
        grid[place] = cells[place[0]][place[1]]
    return grid


def _axis_of_trials(path: Path, cells: Array, num_names: int, epochs: Array | None) -> int | None:
    """Return which axis of cells is trials, None where each is a unit, as of channels x units, or ask."""
    rows, columns = cells.shape
    fitting = [axis for axis in (0, 1) if epochs is not None and len(epochs) == cells.shape[axis]]
    if epochs is not None and not fitting:
        return None
    if len(fitting) == 1 and (num_names in (0, cells.shape[1 - fitting[0]])):
        grid = np.moveaxis(cells, fitting[0], 0)
        longest = float(np.ptp(epochs, axis=-1).max()) if epochs is not None else 0.0
        if epochs is not None and (_within(grid, epochs) or max(map(_last, cells.flat)) <= longest):
            return fitting[0]
        return None
    if num_names and rows != columns and num_names in (rows, columns, rows * columns):
        return {rows: 1, columns: 0}.get(num_names)
    raise Refused(
        f"The cells of spike times in {path} are {rows} x {columns}, which may be trials x units or channels x units: "
        "pass `trials_axis=0` (on the command line, `--trials-axis 0`) if each row is a trial with times since its "
        "begin, 1 if each column is; if each cell is a unit of its own, save them as one column, `spikes(:)`."
    )


def _last(cell: Array) -> float:
    return float(np.max(cell, initial=-np.inf))


def _within(grid: Any, epochs: Array) -> bool:
    """Whether the spikes of each trial lie in its epoch, of which not all begin at zero."""
    return bool(epochs[:, 0].any()) and all(
        ((cell >= start) & (cell <= stop)).all()
        for row, (start, stop) in zip(grid, epochs, strict=True)
        for cell in row
    )


def epochs_beside(variables: Mapping[str, Variable]) -> tuple[Array | None, str]:
    """Return begins and ends of trials, `trials x 2`, or why what the file has of them cannot be used."""
    problem = ""
    for name, one in variables.items():
        if not words_of(name) & _EPOCHS_WORDS:
            continue
        shape = (1, 2) if one.shape == (2,) else one.shape
        if one.kind == "numbers" and len(shape) == 2 and 2 in shape:
            epochs = np.asarray(one.read(), dtype=np.float64).reshape(shape)
            turned = shape[1] != 2 or (shape[0] == 2 and not (epochs[:, 0] < epochs[:, 1]).all())
            epochs = epochs.T if turned else epochs
            if name.lower() in _EPOCHS_WORDS or ((np.diff(epochs) > 0).all() and (np.diff(epochs[:, 0]) > 0).all()):
                return epochs, ""
        if name.lower() in _EPOCHS_WORDS:
            problem = f"`{name}` in the file, {one.kind} {one.shape}, is not begins and ends in seconds, trials x 2"
    return None, problem
