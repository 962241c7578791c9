"""MATLAB's files of version 7.3, which are HDF5: the same variables as of the older ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.mat5 import Other, dense
from pyro_lowrank.data.opening import Refused, check_dataset, check_links
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.variables import Variable

_NUMERIC = {"", "double", "single", "logical", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64))}
# Cells of cells hold units of trials; deeper ones are no recording.
_DEEPEST = 3


def variables_of(path: Path, file: Any) -> dict[str, Variable]:
    """Return the variables of an open file, as `mat5.variables_of` does; what they hold is read when they are asked.

    The fields of a struct are variables too, `struct.field`.

    Args:
        path: the file, for messages.
        file: an `h5py.File`.

    Raises:
        ValueError: if something lies in another file.
    """
    check_links(path, file)
    found: dict[str, Variable] = {}
    for name, one in file.items():
        if not name.startswith("#"):
            found |= _variable(path, file, name, one)
    return found


def _variable(path: Path, file: Any, name: str, one: Any) -> dict[str, Variable]:
    if not hasattr(one, "dtype"):
        if "MATLAB_sparse" in one.attrs:
            return {name: Variable("numbers", _sparse_shape(one), partial(_sparse, path, one))}
        check_links(path, one)
        fields = {key: value for field, each in one.items() for key, value in _field(path, file, name, field, each)}
        kind = f"struct with fields {', '.join(one)}"
        return {name: Variable(kind, (1, 1), partial(Other, kind)), **fields}
    # MATLAB's first dimension is the last one of the file.
    shape = tuple(one.shape[::-1]) if "MATLAB_empty" not in one.attrs else (0, 0)
    return {name: Variable(_kind_of(one), shape, partial(_Reader(path, file).read, one))}


def _field(path: Path, file: Any, name: str, field: str, one: Any) -> list[tuple[str, Variable]]:
    # A struct in a struct is named, and not looked into.
    if not hasattr(one, "dtype") and "MATLAB_sparse" not in one.attrs:
        return [(f"{name}.{field}", Variable("struct", (1, 1), partial(Other, "struct")))]
    return list(_variable(path, file, f"{name}.{field}", one).items())


def _kind_of(dataset: Any) -> str:
    kind = _matlab_class(dataset)
    if kind == "char":
        return "words"
    if kind == "cell" or (not kind and dataset.dtype.kind == "O"):
        return "cell"
    if kind not in _NUMERIC or "MATLAB_object_decode" in dataset.attrs:
        return f"MATLAB object ({kind})"
    return "numbers" if dataset.dtype.kind in "fiub" else f"numbers of dtype {dataset.dtype}"


def _matlab_class(dataset: Any) -> str:
    kind = dataset.attrs.get("MATLAB_class", b"")
    return kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)


class _Reader:
    """Reads one variable, and every dataset that its cells refer to once: MATLAB never shares one."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.seen: set[int] = set()

    def read(self, dataset: Any, depth: int = 0) -> Any:
        """Return what a dataset holds."""
        h5py = require("h5py", "matlab", f"Reading {self.path}")
        if "MATLAB_empty" in dataset.attrs:
            return np.array([""]) if _kind_of(dataset) == "words" else np.empty((0, 0))
        address = h5py.h5o.get_info(dataset.id).addr
        if address in self.seen:
            raise Refused(f"Cells in {self.path} refer to the same data more than once; it is damaged or made to hang.")
        self.seen.add(address)
        check_dataset(self.path, dataset)
        kind = _kind_of(dataset)
        if kind not in ("numbers", "words", "cell"):
            return Other(kind)
        value: NDArray[Any] = np.asarray(dataset[()]).T
        if kind == "words":
            return np.array(["".join(map(chr, row)) for row in value])
        if kind == "numbers":
            return value
        if depth >= _DEEPEST:
            raise Refused(f"{self.path} holds cells nested more than {_DEEPEST} deep.")
        cells = np.empty(value.shape, dtype=object)
        for place, reference in np.ndenumerate(value):
            cell = self.file[reference]
            cells[place] = self.read(cell, depth + 1) if hasattr(cell, "dtype") else Other("struct")
        return cells


def _sparse_shape(group: Any) -> tuple[int, ...]:
    return int(group.attrs["MATLAB_sparse"]), group["jc"].size - 1


def _sparse(path: Path, group: Any) -> NDArray[Any]:
    parts: Mapping[str, Any] = {name: group[name] if name in group else np.empty(0) for name in ("ir", "jc", "data")}
    for one in parts.values():
        if hasattr(one, "id"):
            check_dataset(path, one)
    shape = _sparse_shape(group)
    if min(shape) < 0 or not math.prod(shape):
        return np.empty((0, 0))
    return dense(path, np.asarray(parts["ir"][:]), np.asarray(parts["jc"][:]), np.asarray(parts["data"][:]), shape)
