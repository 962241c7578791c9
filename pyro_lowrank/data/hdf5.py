"""HDF5 files of no particular kind: arrays by their paths, with names and the bin size beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_lowrank.data.contents import Contents, SpikeTrains
from pyro_lowrank.data.opening import Refused, check_dataset, check_inside, reading
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.spike_arrays import TIMES, spikes_beside
from pyro_lowrank.data.variables import Variable, beside, choose, is_beside, listing, names_time


def read_hdf5(path: Path, key: str | None) -> Contents | SpikeTrains:
    """Read one dataset of an HDF5 file, `group/name`, and what stands in the same group."""
    h5py = require("h5py", "hdf5", f"Reading {path}")
    with reading(path, "an HDF5 file"):
        check_inside(path)
        with h5py.File(path, "r") as file:
            every = _variables(path, file)
            group = (key or "").rpartition("/")[0]
            prefix = f"{group}/" if group else ""
            near = {name.removeprefix(prefix): one for name, one in every.items() if name.startswith(prefix)}
            if key in (None, f"{prefix}{TIMES}"):
                spikes = spikes_beside(path, near)
                if spikes is not None:
                    return spikes
            several = sum(one.kind == "numbers" and one.shape != () for one in every.values()) > 1
            dims = {
                name: len(one.shape)
                for name, one in every.items()
                if one.kind == "numbers"
                and one.shape
                and (key is not None or not (is_beside(name) or (several and len(one.shape) == 1 and names_time(name))))
            }
            chosen = choose(path, key, dims, listing(every))
            group = chosen.rpartition("/")[0]
            prefix = f"{group}/" if group else ""
            # A scalar may be kept as an attribute of the dataset or of its group.
            for place in (file[group] if group else file, file[chosen]):
                for name, value in place.attrs.items():
                    every[f"{prefix}{name}"] = _of_attribute(value)
            near = {name.removeprefix(prefix): one for name, one in every.items() if name.startswith(prefix)}
            return beside(path, near, chosen.removeprefix(prefix))


def _variables(path: Path, file: Any) -> dict[str, Variable]:
    found: dict[str, Variable] = {}

    def add(name: str, one: Any) -> None:
        if not hasattr(one, "dtype"):
            return
        kind = "numbers" if one.dtype.kind in "fiub" else "words" if one.dtype.kind in "OS" else str(one.dtype)
        found[name] = Variable(kind, tuple(one.shape or ()), partial(_read, path, one))

    file.visititems(add)
    return found


def _read(path: Path, dataset: Any) -> Any:
    check_dataset(path, dataset)
    value = dataset[()]
    if dataset.dtype.kind != "O":
        return np.asarray(value)
    words = np.asarray(value, dtype=object)
    if not all(isinstance(word, bytes | str) for word in words.ravel()):
        raise Refused(f"{dataset.name} in {path} holds neither numbers nor words.")
    return np.array([word.decode("utf-8", "replace") if isinstance(word, bytes) else word for word in words.ravel()])


def _of_attribute(value: Any) -> Variable:
    array = np.asarray(value)
    kind = "numbers" if array.dtype.kind in "fiub" else "words" if array.dtype.kind in "OSU" else str(array.dtype)
    return Variable(kind, array.shape, lambda: array)
