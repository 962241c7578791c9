"""Trials that are read when they are wanted: arrays on disk, and datasets of trials."""

from __future__ import annotations

import copy
import importlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pyro_lowrank.data.orientation import role_of
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.training.places import Place
from pyro_lowrank.training.standardise import Standardisation

# Numbers that are read at a time.
BLOCK = 2_000_000
# Tensors of these are there to save memory; wider ones are as large as floats.
_NARROW = {torch.uint8, torch.int8, torch.int16, torch.uint16, torch.bool}

Pair = tuple[Tensor, Tensor | None]


@runtime_checkable
class Source(Protocol):
    """A recording and its inputs, trial by trial, in the floating-point type of a model."""

    def __len__(self) -> int:
        """Return the number of trials."""

    def blocks(self, trial: int) -> Iterator[Pair]:
        """Yield a trial from its begin to its end, `time x features` and `time x inputs`."""

    def read(self, trial: int, start: int, stop: int) -> Pair:
        """Return some time bins of a trial, fewer where it ends before."""

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""

    def on_cpu(self) -> Source:
        """Return the same, read to the CPU whatever device the model is on."""


def is_stored(value: Any) -> bool:
    """Whether data are an array that is not a tensor of floats, or a dataset of trials.

    Example::

        >>> is_stored(np.zeros((2, 5, 3), dtype=np.uint8)), is_stored(torch.zeros(2, 5, 3)), is_stored([np.zeros(3)])
        (True, False, False)
    """
    if isinstance(value, Tensor):
        return value.dtype in _NARROW
    if value is None or isinstance(value, Recording | Mapping | list | tuple | str | bytes):
        return False
    return isinstance(value, Dataset | Source) or _is_array(value)


def source_of(name: str, y: Any, u: Any, like: Tensor) -> Source:
    """Return data, of which `is_stored` is true for one at least, as a source.

    Args:
        name: what the data are called.
        y: an array `trials x time x features`, or `time x features` of one trial; or a dataset of trials; or a source.
        u: inputs likewise, or None.
        like: whose floating-point type and device batches get.

    Raises:
        TypeError: if they are not arrays of numbers, or a dataset is not map-style.
        ValueError: if inputs came beside a dataset, which holds its own.
    """
    if isinstance(y, Source):
        return y
    if isinstance(y, Dataset):
        if isinstance(y, IterableDataset) or not hasattr(y, "__len__"):
            raise TypeError(
                f"`{name}` must be a map-style dataset, with `__len__` and `__getitem__`, got {type(y).__name__}: "
                "trials are drawn in a random order."
            )
        if u is not None:
            raise ValueError(f"Inputs came with `{name}`, a dataset: let its items be pairs (y, u).")
        return DatasetSource(name, y, like)
    return ArraySource(name, StoredArray(name, y), None if u is None else StoredArray("u", u), like)


def _is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))


class StoredArray:
    """An array `trials x time x columns` that is read in parts: NumPy, memory-mapped, zarr, HDF5, dask or xarray.

    Args:
        name: what it is called.
        value: the array; of two axes it is one trial. Names of the axes of an xarray count.
    """

    def __init__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if not _is_array(value):
            raise TypeError(f"`{name}` must be an array, as the data are, got {type(value).__name__}.")
        if len(value.shape) not in (2, 3) or 0 in value.shape:
            raise ValueError(
                f"`{name}` must be trials x time x features, or time x features of one trial, none of them empty, got "
                f"the shape {tuple(value.shape)}."
            )
        if np.dtype(value.dtype).kind not in "fiub":
            raise TypeError(f"`{name}` must hold real numbers, got an array of dtype {value.dtype}.")
        self.name, self._value = name, _in_order(value)
        self._is_one_trial = len(value.shape) == 2
        shape = (1, *self._value.shape) if self._is_one_trial else tuple(self._value.shape)
        self.shape: tuple[int, int, int] = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._path = _path_of(value)
        self._process, self._stamp = os.getpid(), _stamp(self._path)

    def read(self, trial: int, start: int, stop: int) -> NDArray[np.generic]:
        """Return some time bins of a trial, as they are stored."""
        self._open_anew()
        place = slice(start, stop) if self._is_one_trial else (trial, slice(start, stop))
        return np.asarray(self._value[place])

    def release(self) -> None:
        """Let go of the pages of a memory-mapped file that were read: they lie on the disk."""
        pages = getattr(self._value, "_mmap", None)
        # Of mode "c" pages may have been written to, and would lose that.
        if pages is not None and getattr(self._value, "mode", "") == "r" and hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""
        if _stamp(self._path) != self._stamp:
            raise ValueError(
                f"The file {self._path} of `{self.name}` was written to, or is gone, while a model was being fitted to "
                "it: let no other program change it, and begin anew (a checkpoint is of the data as they were)."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Say where the array is, not what it holds: another process opens the file itself."""
        return {**self.__dict__, "_value": Place.of(self._value) or self._value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file."""
        self.__dict__ |= state
        if isinstance(self._value, Place):
            self.check_unchanged()
            self._value = self._value.open()
            self._process = os.getpid()

    def _open_anew(self) -> None:
        """Open an HDF5 file in a process that has it from a fork: the two would move each other's place in it."""
        if self._process != os.getpid() and type(self._value).__module__.startswith("h5py"):
            h5py = importlib.import_module("h5py")
            self._value = h5py.File(self._path, "r")[self._value.name]
        self._process = os.getpid()


def _in_order(value: Any) -> Any:
    """Return an array whose axes have names with these in order: trials, time, features."""
    dims = getattr(value, "dims", ())
    if not (isinstance(dims, tuple) and dims and all(isinstance(dim, str) for dim in dims)):
        return value
    roles = {role_of(dim): dim for dim in dims}
    wanted = [roles[role] for role in ("trials", "time", "features") if role in roles]
    return value.transpose(*wanted) if len(wanted) == len(dims) else value


def _path_of(value: Any) -> Path | None:
    path = getattr(value, "filename", None)
    if path is None and type(value).__module__.startswith("h5py"):
        path = value.file.filename
    return None if path is None else Path(path)


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


class ArraySource:
    """Trials of an array, or a part of them.

    Args:
        name: what the data are called.
        y: the recording.
        u: the inputs, or None.
        like: whose floating-point type and device it has.
        trials: which trials; all if None.
        times: which time bins; all if None.
        standardisation: of the recording, or None; applied in double precision.
    """

    def __init__(
        self,
        name: str,
        y: StoredArray,
        u: StoredArray | None,
        like: Tensor,
        *,
        trials: Sequence[int] | None = None,
        times: range | None = None,
        standardisation: Standardisation | None = None,
    ) -> None:
        if u is not None and u.shape[:2] != y.shape[:2]:
            raise ValueError(f"`u` must have the trials and time bins of `{name}`, {y.shape[:2]}, got {u.shape[:2]}.")
        self.name, self._y, self._u, self._like = name, y, u, like
        self._standardisation = standardisation
        self._trials = range(y.shape[0]) if trials is None else trials
        self._times = range(y.shape[1]) if times is None else times

    def __len__(self) -> int:
        return len(self._trials)

    @property
    def lengths(self) -> list[int]:
        """The number of time bins of each trial."""
        return [len(self._times)] * len(self._trials)

    def blocks(self, trial: int) -> Iterator[Pair]:
        """Yield a trial from its begin to its end."""
        return self.blocks_of(trial, 0, len(self._times))

    def blocks_of(self, trial: int, begin: int, end: int) -> Iterator[Pair]:
        """Yield a piece of a trial from its begin to its end."""
        length = max(1, BLOCK // self._y.shape[2])
        for start in range(begin, end, length):
            yield self.read(trial, start, min(start + length, end))
            self._release()

    def read(self, trial: int, start: int, stop: int) -> Pair:
        """Return some time bins of a trial, fewer where it ends before."""
        times = self._times[start:stop]
        place = self._trials[trial], times.start, times.stop
        u = None if self._u is None else converted("u", self._u.read(*place), self._like)
        if self._standardisation is None:
            return converted(self.name, self._y.read(*place), self._like), u
        y = self._standardisation.apply(converted(self.name, self._y.read(*place), self._like.double()))
        return y.to(self._like.dtype), u

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""
        for each in (self._y, self._u):
            if each is not None:
                each.check_unchanged()
        self._release()

    def on_cpu(self) -> ArraySource:
        """Return the same, read to the CPU."""
        found = copy.copy(self)
        found._like = self._like.cpu()
        return found

    def _release(self) -> None:
        for each in (self._y, self._u):
            if each is not None:
                each.release()


class PiecesSource:
    """Pieces of the trials of an array, each of which counts as a trial.

    Args:
        array: the trials.
        pieces: trial, begin and end of each.
    """

    def __init__(self, array: ArraySource, pieces: Sequence[tuple[int, int, int]]) -> None:
        self.name, self._array, self._pieces = array.name, array, pieces

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def lengths(self) -> list[int]:
        """The number of time bins of each piece."""
        return [stop - start for _, start, stop in self._pieces]

    def blocks(self, trial: int) -> Iterator[Pair]:
        """Yield a piece from its begin to its end."""
        return self._array.blocks_of(*self._pieces[trial])

    def read(self, trial: int, start: int, stop: int) -> Pair:
        """Return some time bins of a piece, fewer where it ends before."""
        whole, first, last = self._pieces[trial]
        return self._array.read(whole, first + start, min(first + stop, last))

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""
        self._array.check_unchanged()

    def on_cpu(self) -> PiecesSource:
        """Return the same, read to the CPU."""
        return PiecesSource(self._array.on_cpu(), self._pieces)


class DatasetSource:
    """Trials of a map-style dataset: items are `time x features`, or pairs of these and `time x inputs`.

    Args:
        name: what the data are called.
        dataset: the trials.
        like: whose floating-point type and device they get.
    """

    def __init__(self, name: str, dataset: Any, like: Tensor) -> None:
        self.name, self._dataset, self._like = name, dataset, like

    def __len__(self) -> int:
        return len(self._dataset)

    def blocks(self, trial: int) -> Iterator[Pair]:
        """Yield a trial, as a whole."""
        item = self._dataset[trial]
        y, u = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        found: list[Tensor | None] = []
        for each in (y, u):
            if each is not None and getattr(each, "ndim", None) != 2:
                raise TypeError(
                    f"Item {trial} of the dataset `{self.name}` must be an array time x features, or a pair of it and "
                    f"an array time x inputs, got {_form(item)}."
                )
            found.append(None if each is None else converted(f"{self.name}[{trial}]", each, self._like))
        assert found[0] is not None
        yield found[0], found[1]

    def read(self, trial: int, start: int, stop: int) -> Pair:
        """Return some time bins of a trial, fewer where it ends before."""
        y, u = next(self.blocks(trial))
        return y[start:stop], None if u is None else u[start:stop]

    def check_unchanged(self) -> None:
        """Nothing is known of its files."""

    def on_cpu(self) -> DatasetSource:
        """Return the same, read to the CPU."""
        return DatasetSource(self.name, self._dataset, self._like.cpu())


def _form(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"{type(item).__name__} of {len(item)}: ({', '.join(map(_form, item[:3]))})"
    shape = getattr(item, "shape", None)
    return type(item).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")


def converted(name: str, value: Any, like: Tensor) -> Tensor:
    """Return real numbers of any type as a new tensor with the floating-point type and device of another.

    Example::

        >>> converted("y", np.array([[1, 200]], dtype=np.uint8), torch.zeros(1))
        tensor([[  1., 200.]])
    """
    if isinstance(value, Tensor):
        return value.detach().to(device=like.device, dtype=like.dtype, copy=True)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got an array of dtype {array.dtype}.")
    wide = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(array.astype(wide)).to(device=like.device, dtype=like.dtype)
