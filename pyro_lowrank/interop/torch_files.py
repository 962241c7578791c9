"""Tensors by name from files of torch, read without unpickling and without `torch.load`, whose bounds are none."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.interop.bounds import MOST_BYTES, Budget, Refused, Storage, refusing
from pyro_lowrank.interop.plain_pickle import Machine, read_stream


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that `torch.save` wrote, in either of its formats.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything but tensors by name, which is named and not touched, or is damaged.

    Example::

        >>> torch.save({"weight": torch.ones(2)}, "weights.pt")
        >>> read_tensors("weights.pt")
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with refusing(path):
        budget = Budget.of(path.stat().st_size)
        try:
            found = _read_zip(path, budget) if zipfile.is_zipfile(path) else _read_stream(path, budget)
        except OSError as error:  # A damaged file points to places that it does not have.
            raise ValueError(f"its parts are not to be found ({error})") from error
        if type(found) is not dict or not all(type(value) is Tensor for value in found.values()):
            raise Refused("does not hold tensors by name: refused.")
        return {str(name): value for name, value in found.items()}


def _read_stream(path: Path, budget: Budget) -> Any:
    return read_stream(io.BytesIO(path.read_bytes()), budget)


def _read_zip(path: Path, budget: Budget) -> Any:
    with zipfile.ZipFile(path) as archive:
        (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickle.removesuffix("data.pkl")

        def read(name: str, most: int) -> bytes:
            member = archive.getinfo(folder + name)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > most:
                raise Refused(f"holds {member.filename}, which is compressed or too large: refused.")
            content = archive.read(member)
            budget.spend(content)
            return content

        if f"{folder}byteorder" in archive.namelist() and read("byteorder", 8) != b"little":
            raise ValueError("it was written on a machine of another byte order.")
        storages: dict[str, Storage] = {}

        def load(dtype: torch.dtype, key: str, length: int) -> Storage:
            if key not in storages:
                content = bytearray(read(f"data/{key}", length * dtype.itemsize))
                if len(content) != length * dtype.itemsize:
                    raise ValueError("its tensors are cut off.")
                flat = torch.frombuffer(content, dtype=dtype) if length else torch.empty(0, dtype=dtype)
                storages[key] = Storage(flat)
            return storages[key]

        return Machine(budget, load).run(io.BytesIO(read("data.pkl", MOST_BYTES)))
