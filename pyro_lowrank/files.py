"""Files written all or nothing, digests of what they hold, and errors that say what is wrong with one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.overrides import TorchFunctionMode

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows, which neither locks like this nor moves files that are open.
    _LOCKS = False

_FORMAT = "pyro_lowrank"
_VERSION = 1
_ENTRIES = {"format", "version", "configuration", "layout"}


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, all or nothing: beside its final place, then moved there; through a link, to what it points to.

    Raises:
        OSError: if it cannot be written, or what stands at `path` is a folder, a pipe or a device, or write-protected.

    Example::

        >>> write_whole("notes.txt", b"whole")
        >>> Path("notes.txt").read_bytes()
        b'whole'
    """
    final = _destination(path)
    _remove_leftovers(final)
    file = _temporary(final)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):
                os.chmod(file.name, stat.S_IMODE(final.stat().st_mode))
            if _LOCKS:
                # Under the lock, so that no other process takes the file for a leftover.
                os.replace(file.name, final)
        if not _LOCKS:
            os.replace(file.name, final)
    finally:
        Path(file.name).unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless a file can be written at `path`, which is left as it is."""
    final = _destination(path)
    try:
        file = _temporary(final)
    except OSError as error:
        raise type(error)(f"No file can be written at {path}: {error}. Choose another folder.") from error
    file.close()
    Path(file.name).unlink(missing_ok=True)


def _destination(path: str | os.PathLike[str]) -> Path:
    """Return where a file at `path` really goes, if one may stand there."""
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(f"The folder of {final} does not exist; make it first.")
    try:
        mode = final.lstat().st_mode
    except FileNotFoundError:
        return final
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"`path` must be a file, but {final} is a folder; give the file a name in it.")
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"`path` must be a file, but {final} is a pipe, a device or a socket; choose another.")
    if not os.access(final, os.W_OK):
        raise PermissionError(f"{final} is write-protected; allow writing to it, or choose another name.")
    return final


def _beginning(final: Path) -> str:
    """Return how the names of temporaries of a file begin: short, however long its own name is."""
    return f".{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]}."


def _temporary(final: Path) -> BinaryIO:
    """Return a new file, open and locked, beside its final place."""
    while True:
        file = final.with_name(f"{_beginning(final)}{uuid.uuid4().hex}.tmp").open("xb")
        # Before the lock, another process may have taken it for a leftover.
        if not _lock(file, wait=True) or os.fstat(file.fileno()).st_nlink > 0:
            return file
        file.close()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file, until it is closed or its process ends; return whether that could be done."""
    if not _LOCKS:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # It is locked, or lies where there are no locks.
        return False
    return True


def _remove_leftovers(final: Path) -> None:
    """Remove what killed processes left of this file: temporaries that no living one has locked."""
    # Best effort: a leftover is in nobody's way.
    with suppress(OSError):
        for leftover in final.parent.glob(f"{_beginning(final)}*.tmp"):
            with suppress(OSError), leftover.open("rb") as file:
                if _lock(file, wait=False):
                    leftover.unlink()


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return the sorted names under which two mappings differ; what is missing is None.

    Example::

        >>> differing({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None})
        ['b']
    """
    return sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))


def check_same_settings(beginning: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], advice: str) -> None:
    """Raise ValueError, with what differs, unless the settings that a file was written under are those of now.

    Example::

        >>> check_same_settings("The file is of another fit", {"seed": 1}, {"seed": 2}, "Choose another name.")
        Traceback (most recent call last):
        ...
        ValueError: The file is of another fit: seed was 1, is 2. Choose another name.
    """
    names = differing(theirs, ours)
    if names:
        told = "; ".join(
            f"{name} was {reprlib.repr(theirs.get(name))}, is {reprlib.repr(ours.get(name))}" for name in names
        )
        raise ValueError(f"{beginning}: {told}. {advice}")


@contextmanager
def told_of(beginning: str, *passing: type[Exception]) -> Iterator[None]:
    """Turn whatever a file's contents make go wrong within into a ValueError that begins by naming the file.

    Errors of the operating system, and those in `passing`, stay what they are.

    Example::

        >>> with told_of("model.json cannot be read"):
        ...     {}["rank"]
        Traceback (most recent call last):
        ...
        ValueError: model.json cannot be read: it lacks 'rank'.
    """
    untouched: tuple[type[Exception], ...] = (OSError, *passing)
    try:
        yield
    except untouched:
        raise
    except KeyError as error:
        raise ValueError(f"{beginning}: it lacks {reprlib.repr(error.args[0] if error.args else None)}.") from error
    except Exception as error:  # Contents that are not what they should be fail in every way there is.
        told = str(error).strip() or type(error).__name__
        raise ValueError(f"{beginning}: {told if len(told) < 1000 else told[:1000] + ' ...'}") from error


@dataclass(frozen=True)
class Archive:
    """What one file holds: tensors by name, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    configuration: Mapping[str, Any]


def write_archive(path: str | os.PathLike[str], archive: Archive) -> None:
    """Write one safetensors file, all or nothing."""
    tensors = {name: tensor.detach().cpu() for name, tensor in archive.tensors.items()}
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "configuration": json.dumps(archive.configuration),
        # A safetensors file keeps no memory layout, but matrix products round differently in another one.
        "layout": json.dumps({name: _layout(tensor) for name, tensor in tensors.items() if not tensor.is_contiguous()}),
    }
    metadata["digest"] = _digest(metadata, tensors)
    write_whole(path, to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of all that a file holds, whatever the order in which it does."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _layout(tensor: Tensor) -> list[int]:
    """Return the dims of a tensor in the order of its memory, the slowest first."""
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride()[dim])


def _lay_out(tensor: Tensor, layout: list[int]) -> Tensor:
    inverse = [layout.index(dim) for dim in range(tensor.dim())]
    return tensor.permute(layout).contiguous().permute(inverse)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a file that `write_archive` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, of another kind or of an unknown version.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise FileNotFoundError(f"`path` must be a file that `pyro_lowrank.save` wrote, but there is {what} at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file: it is truncated, damaged or of another kind ({error})."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not one that `pyro_lowrank.save` wrote.")
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this library reads version {_VERSION}; "
            "use the release that wrote it."
        )
    # Files of earlier releases have no digest; an entry by any other name is a damaged one.
    digest = metadata.pop("digest", None)
    if metadata.keys() != _ENTRIES or digest not in (None, _digest(metadata, tensors)):
        raise ValueError(f"{path} is damaged: what it holds is not what was written, by its digest. Use a copy of it.")
    with told_of(f"{path} is damaged: its header cannot be read"):
        configuration = json.loads(metadata["configuration"])
        layouts = json.loads(metadata["layout"])
        tensors |= {name: _lay_out(tensors[name], layout) for name, layout in layouts.items()}
    if not isinstance(configuration, dict):
        raise ValueError(f"{path} is damaged: its configuration is not a JSON object.")
    return Archive(tensors, configuration)


class SizesOf(TorchFunctionMode):
    """Within it, tensors are made only as large, and as many, as those of a file let expect.

    A configuration that was changed may describe a model of any size: it shall not be built to find that out.
    """

    # While a model is built, some of its tensors are made several times over.
    TIMES, MORE = 32, 1024

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.held = sum(tensor.numel() for tensor in tensors.values())
        self.left = self.TIMES * self.held + self.MORE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _MAKES_TENSORS:
            self.left -= _number_of(*args, **kwargs) ** (2 if name == "eye" else 1)
            if self.left < 0:
                raise ValueError(
                    f"its configuration describes larger tensors than the file has, which are of {self.held} numbers "
                    "in all."
                )
        return func(*args, **kwargs)


_FACTORIES = ("empty", "eye", "full", "ones", "rand", "randn", "zeros")
_MAKES_TENSORS = {*_FACTORIES, *(f"new_{name}" for name in _FACTORIES)}


def _number_of(*args: Any, size: Any = (), n: int = 0, **options: Any) -> int:
    """Return how many numbers a tensor has that is made with these arguments; of a square matrix, one side."""
    places = [place for place in (*args, size) if not isinstance(place, Tensor | float)]
    sequences = [place for place in places if isinstance(place, tuple | list) and place]
    return math.prod(sequences[0]) if sequences else math.prod([p for p in (*places, n) if isinstance(p, int) and p])


def check_finite(beginning: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if any of the tensors is NaN or infinite, with their names."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{beginning}: {', '.join(bad)} hold NaN or infinite numbers. Fit it anew, or replace them.")
