"""Files that are not what they say: whatever reading them raises, one kind of error tells it with their name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A file may unpack to so much more than it holds, above a size that no machine minds.
_MOST_RATIO, _HARMLESS_BYTES = 500, 2**26
# Groups within groups of an HDF5 file: each is found from the root, which takes a time that grows with their square.
_DEEPEST = 64


class Refused(ValueError):
    """What a file that can be opened does not hold, or must not do; its message is for the user as it stands."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever opening or reading a file raises into a `ValueError` that names it.

    A library that meets a damaged file may raise anything, so everything is caught but what stops the program; what was
    raised is the error's cause.

    Args:
        path: the file.
        kind: what its name says it is.

    Raises:
        ValueError: if the file cannot be read.

    Example:
        >>> with reading(Path("y.npy"), "a NumPy array"):
        ...     raise IndexError("list index out of range")
        Traceback (most recent call last):
        ValueError: y.npy cannot be read as a NumPy array: it is truncated, damaged or of another format; ...
    """
    try:
        yield
    except (Refused, ModuleNotFoundError, PermissionError):
        raise
    except Exception as error:
        if "Object arrays" in str(error):
            raise holds_objects(path) from error
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} cannot be read as {kind}: it is truncated, damaged or of another format; save it again. "
            f"({type(error).__name__}: {told})"
        ) from error


def holds_objects(path: Path) -> Refused:
    """Return the error for an array of Python objects."""
    return Refused(
        f"{path} holds an array of Python objects, which are never unpickled; "
        "save an array of numbers (`array.astype(float)`, padded with NaN where trials differ in length)."
    )


def check_claim(path: Path, name: str, claimed: int, stored: int) -> None:
    """Raise if an array would take far more memory than the bytes that are stored of it can stand for.

    Args:
        path: the file.
        name: of the array.
        claimed: bytes that it would take.
        stored: bytes that the file holds of it, compressed perhaps.

    Raises:
        ValueError: if so; nothing has been read by then.

    Example:
        >>> check_claim(Path("y.npz"), "y", 10**12, 400)
        Traceback (most recent call last):
        pyro_lowrank.data.opening.Refused: y.npz claims 931 GiB for y, and stores 400 bytes of it: it is damaged or ...
    """
    if claimed > _HARMLESS_BYTES and claimed > _MOST_RATIO * stored:
        raise Refused(
            f"{path} claims {claimed / 2**30:.3g} GiB for {name}, and stores {stored} bytes of it: it is damaged or "
            "made to exhaust the memory, and was not read."
        )


def check_dataset(path: Path, dataset: Any, *, claim: bool = True) -> None:
    """Raise if an HDF5 dataset lies in other files, or claims far more than it stores.

    Args:
        path: the file.
        dataset: an `h5py.Dataset`.
        claim: whether it is to be read, so that its size counts.

    Raises:
        ValueError: if so; nothing has been read by then.
    """
    if dataset.external or dataset.is_virtual:
        raise Refused(
            f"{dataset.name} in {path} takes its numbers from another file, which is not read; save it in one file."
        )
    if claim:
        claimed = (dataset.size or 0) * dataset.dtype.itemsize
        check_claim(path, str(dataset.name), claimed, int(dataset.id.get_storage_size()))


def check_links(path: Path, group: Any) -> None:
    """Raise if something in an HDF5 group is a link to another file.

    Args:
        path: the file.
        group: an `h5py.Group`.

    Raises:
        ValueError: if so.
    """
    h5py = importlib.import_module("h5py")
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise Refused(f"{name} in {path} is a link to another file, which is not followed; save it in one file.")


def check_inside(path: Path, *, links: bool = False, read: Callable[[Any], bool] = lambda dataset: False) -> None:
    """Raise if a dataset in an HDF5 file lies in another file, or one that will be read claims more than it stores.

    Args:
        path: the file.
        links: whether links to other files are as they should be.
        read: whether a dataset will be read, whatever is asked for.

    Raises:
        ValueError: if so, or if its groups are nested without end; nothing has been read by then.
    """
    h5py = importlib.import_module("h5py")

    def check(name: str, one: Any) -> None:
        if name.count("/") > _DEEPEST:
            raise Refused(
                f"{path} holds groups within groups, more than {_DEEPEST} deep: it is damaged or made to hang, and was "
                "not read."
            )
        if isinstance(one, h5py.Dataset):
            check_dataset(path, one, claim=read(one))
        elif not links:
            check_links(path, one)

    with h5py.File(path, "r") as file:
        if not links:
            check_links(path, file)
        file.visititems(check)


def check_claims(path: Path, names: Iterable[str]) -> None:
    """Raise if one of some datasets, at the root of an HDF5 file, claims far more than it stores.

    Args:
        path: the file.
        names: of the datasets.

    Raises:
        ValueError: if so; nothing has been read by then.
    """
    h5py = importlib.import_module("h5py")
    with h5py.File(path, "r") as file:
        for name in names:
            if name in file:
                check_dataset(path, file[name])
