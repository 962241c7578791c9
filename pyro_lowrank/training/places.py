"""Where an array lies on the disk, so that another process can open it instead of being sent what it holds."""

from __future__ import annotations

import importlib
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Place:
    """A part of a memory-mapped file, or an array in an HDF5 file. Others, as of zarr and dask, know how to be sent.

    Attributes:
        path: of the file.
        name: of the array in it; empty for a memory-mapped one.
        dtype: of its numbers, as are all that follow of a memory-mapped one.
        shape: its shape.
        offset: bytes in the file before its first number.
        strides: bytes between neighbours along each axis.
    """

    path: str
    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    offset: int = 0
    strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Place | None:
        """Return where an array lies, or None where it is no file of these kinds.

        Example::

            >>> np.save("y.npy", np.arange(6).reshape(2, 3))
            >>> place = Place.of(np.load("y.npy", mmap_mode="r")[1:, ::2])
            >>> place.open()
            memmap([[3, 5]])
        """
        if type(value).__module__.startswith("h5py"):
            return cls(str(value.file.filename), str(value.name))
        if not isinstance(value, np.memmap) or value.mode != "r" or value.filename is None:
            return None
        whole: Any = value
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        if not isinstance(whole.base, mmap.mmap):
            return None
        begin = value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        return cls(str(value.filename), "", value.dtype.str, value.shape, whole.offset + begin, value.strides)

    def open(self) -> Any:
        """Return the array, not read."""
        if self.name:
            return importlib.import_module("h5py").File(self.path, "r")[self.name]
        size = sum((length - 1) * abs(stride) for length, stride in zip(self.shape, self.strides, strict=True))
        # Axes that run backwards begin at their end.
        before = sum((n - 1) * -stride for n, stride in zip(self.shape, self.strides, strict=True) if stride < 0)
        bytes_: Any = np.memmap(self.path, np.uint8, "r", self.offset - before, (size + np.dtype(self.dtype).itemsize,))
        found: Any = np.ndarray.__new__(np.memmap, self.shape, self.dtype, bytes_, before, self.strides)
        # What NumPy gives the views of a memory-mapped array.
        found._mmap, found.filename, found.mode, found.offset = bytes_._mmap, bytes_.filename, "r", bytes_.offset
        return found
