"""MATLAB's files of version 5 to 7.2, read here: SciPy's reader, in C, may end the interpreter on a damaged one.

Every length that a file tells is compared with the bytes that are there before anything is made of it.

References:
    MathWorks, "MAT-File Format", on level 5 files.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.opening import Refused, check_claim
from pyro_lowrank.data.variables import Variable

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _SPARSE, _OPAQUE = 1, 2, 4, 5, 17
_NUMERIC_CLASSES = range(6, 16)
_OTHER = {3: "object", 16: "function", _OPAQUE: "MATLAB object (string array, table or the like)"}
_COMPLEX = 8
# Names and dims of a variable, and of the fields of a struct, lie in this many first bytes of it.
_HEAD = 2**16
# Cells in cells in cells are no recording.
_DEEPEST = 8


class Other(NamedTuple):
    """A value that is neither numbers nor words nor a cell array: what it is."""

    kind: str


class _Header(NamedTuple):
    """What an array says of itself, and where what it holds begins."""

    kind: int
    flags: int
    shape: tuple[int, ...]
    name: str
    at: int


def variables_of(path: Path) -> dict[str, Variable]:
    """Return the variables of a file; what they hold is read when they are asked.

    Numbers are arrays of numbers, as they were stored; words arrays of text; a cell array is an array of such values,
    and of cell arrays; a struct of one element a dict of them. Anything else is an `Other`.

    Raises:
        ValueError: if the file is cut off or damaged; as far as it is looked at.
    """
    found: dict[str, Variable] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(128)
        if len(head) < 128 or head[126:128] not in (b"IM", b"MI"):
            raise ValueError("it has no header of a MATLAB file")
        order = "<" if head[126:128] == b"IM" else ">"
        while (at := file.tell()) < size:
            kind, length = np.frombuffer(file.read(8), order + "u4").tolist()
            if at + 8 + length > size or kind not in (_MATRIX, _COMPRESSED):
                raise ValueError(f"a variable at byte {at} is cut off or none")
            start = file.read(min(length, _HEAD))
            if kind == _COMPRESSED:
                start = zlib.decompressobj().decompress(start, _HEAD)[8:]
            header = _header(memoryview(start), order)
            if header.name in found:
                raise Refused(f"{path} holds two variables {header.name!r}; save it again.")
            if header.name:
                read = partial(_read, path, at, length, kind == _COMPRESSED, order)
                found[header.name] = Variable(_kind_of(memoryview(start), header, order), header.shape, read)
            file.seek(at + 8 + length)
    return found


def _read(path: Path, at: int, length: int, compressed: bool, order: str) -> Any:
    """Read the variable that stands at a byte of a file."""
    with path.open("rb") as file:
        file.seek(at + 8)
        body = file.read(length)
    if compressed:
        unpacker = zlib.decompressobj()
        head = unpacker.decompress(body, 8)
        claimed = int(np.frombuffer(head, order + "u4")[1])
        check_claim(path, "a variable", claimed, len(body))
        body = unpacker.decompress(unpacker.unconsumed_tail, claimed + 1)
        if len(body) != claimed or not unpacker.eof:
            raise ValueError("a variable is longer or shorter than it says")
    return _value(path, memoryview(body), order, 0)


def _element(data: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """Return the type and the bytes of an element, and where the next one begins."""
    if at + 8 > len(data):
        raise ValueError("an element is cut off")
    kind, length = np.frombuffer(data[at : at + 8], order + "u4").tolist()
    if kind >> 16:
        # Short ones stand in the place of their length.
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise ValueError("a short element is longer than 4 bytes")
        return kind, data[at + 4 : at + 4 + length], at + 8
    if at + 8 + length > len(data):
        raise ValueError("an element is longer than what holds it")
    return kind, data[at + 8 : at + 8 + length], at + 8 + length + -length % 8


def _numbers(data: memoryview, at: int, order: str) -> tuple[NDArray[Any], int]:
    kind, body, at = _element(data, at, order)
    if kind not in _NUMBERS:
        raise ValueError(f"numbers are of the unknown type {kind}")
    return np.frombuffer(body, order + _NUMBERS[kind]), at


def _header(data: memoryview, order: str) -> _Header:
    flags, at = _numbers(data, 0, order)
    if len(flags) != 2:
        raise ValueError("an array has no flags")
    kind = int(flags[0]) & 0xFF
    shape: tuple[int, ...] = ()
    if kind != _OPAQUE:
        dims, at = _numbers(data, at, order)
        shape = tuple(dims.astype(np.int64).tolist())
        if len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"an array has the dims {shape}")
    _, name, at = _element(data, at, order)
    return _Header(kind, int(flags[0]) >> 8 & 0xFF, shape, bytes(name).decode("latin-1"), at)


def _kind_of(data: memoryview, header: _Header, order: str) -> str:
    if header.kind in _NUMERIC_CLASSES or header.kind == _SPARSE:
        return "complex numbers" if header.flags & _COMPLEX else "numbers"
    if header.kind == _STRUCT:
        return f"struct with fields {', '.join(_fields(data, header.at, order)[0])}"
    return {_CELL: "cell", _CHAR: "words"}.get(header.kind, _OTHER.get(header.kind, f"class {header.kind}"))


def _fields(data: memoryview, at: int, order: str) -> tuple[list[str], int]:
    width, at = _numbers(data, at, order)
    _, names, at = _element(data, at, order)
    if width.size != 1 or width[0] < 1 or len(names) % int(width[0]):
        raise ValueError("the fields of a struct have no names")
    step = int(width[0])
    return [bytes(names[k : k + step]).split(b"\0")[0].decode("latin-1") for k in range(0, len(names), step)], at


def _value(path: Path, data: memoryview, order: str, depth: int) -> Any:
    if not len(data):
        # An empty cell or field may leave out even its dims.
        return np.empty((0, 0))
    if depth > _DEEPEST:
        raise Refused(f"{path} holds cells and structs nested more than {_DEEPEST} deep.")
    header = _header(data, order)
    size = math.prod(header.shape)
    if header.kind in _NUMERIC_CLASSES:
        if header.flags & _COMPLEX:
            return Other("complex numbers")
        return _shaped(_numbers(data, header.at, order)[0], header.shape)
    if header.kind == _SPARSE:
        return Other("complex numbers") if header.flags & _COMPLEX else _dense(path, data, header, order)
    if header.kind == _CHAR:
        return _words(data, header, order)
    if header.kind not in (_CELL, _STRUCT):
        return Other(_OTHER.get(header.kind, f"class {header.kind}"))
    fields, at = ([""], header.at) if header.kind == _CELL else _fields(data, header.at, order)
    # Each takes eight bytes at least: what cannot be there is not made room for.
    if size * len(fields) > len(data) // 8:
        raise ValueError("a cell array or struct is longer than what holds it")
    if header.kind == _STRUCT and size != 1:
        return Other(f"struct with fields {', '.join(fields)}")
    values = np.empty(size * len(fields), dtype=object)
    for place in range(len(values)):
        kind, body, at = _element(data, at, order)
        if kind != _MATRIX:
            raise ValueError(f"a cell holds the unknown type {kind}")
        values[place] = _value(path, body, order, depth + 1)
    return values.reshape(header.shape, order="F") if header.kind == _CELL else dict(zip(fields, values, strict=True))


def _shaped(numbers: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if numbers.size != math.prod(shape):
        raise ValueError(f"an array of the dims {shape} holds {numbers.size} numbers")
    return numbers.reshape(shape, order="F")


def _words(data: memoryview, header: _Header, order: str) -> NDArray[Any]:
    if not math.prod(header.shape):
        return np.array([""])
    kind, body, _ = _element(data, header.at, order)
    if kind in _TEXT:
        letters = list(bytes(body).decode(_TEXT[kind] + ("" if kind == 16 else "-le" if order == "<" else "-be")))
    else:
        letters = [chr(code) for code in _numbers(data, header.at, order)[0].tolist()]
    if len(letters) != math.prod(header.shape):
        raise ValueError("text is longer or shorter than it says")
    rows = np.array(letters, dtype="U1").reshape(header.shape[0], -1, order="F")
    return np.array(["".join(row) for row in rows])


def _dense(path: Path, data: memoryview, header: _Header, order: str) -> NDArray[Any]:
    rows, at = _numbers(data, header.at, order)
    starts, at = _numbers(data, at, order)
    values, _ = _numbers(data, at, order)
    return dense(path, rows, starts, values, header.shape)


def dense(
    path: Path, rows: NDArray[Any], starts: NDArray[Any], values: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return a sparse array in full.

    Args:
        path: the file.
        rows: of each entry.
        starts: of each column among the entries, and their number at the end.
        values: of each entry; more may follow.
        shape: rows and columns.

    Raises:
        ValueError: if the parts do not fit each other, or it would take far more memory than what is stored.

    Example:
        >>> dense(Path("y.mat"), np.array([1]), np.array([0, 0, 1]), np.array([5.0]), (2, 2))
        array([[0., 0.],
               [0., 5.]])
    """
    starts = starts.astype(np.int64)
    if len(shape) != 2 or len(starts) != shape[1] + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
        raise ValueError("the columns of a sparse array do not fit")
    rows, values = rows[: starts[-1]].astype(np.int64), values[: starts[-1]]
    if not len(rows) == len(values) == starts[-1] or (len(rows) and not 0 <= rows.min() <= rows.max() < shape[0]):
        raise ValueError("the entries of a sparse array do not fit")
    # Few entries stand for many here, and rightly.
    check_claim(path, "a sparse array", 8 * shape[0] * shape[1], 10 * (rows.nbytes + starts.nbytes))
    full = np.zeros(shape)
    full[rows, np.repeat(np.arange(shape[1]), np.diff(starts))] = values
    return full
