"""Pickles that hold plain data, read without pickle: nothing in the file is called, only what is listed here is built.

A pickle is a program for a small stack machine, of which some instructions call what the file names. The machine here
knows the instructions that build containers, numbers and strings. Of names it knows those in `_BUILDERS`, which stand
for functions of this file; at any other the file is refused. What a program makes is bounded, too: in instructions, in
bytes, in depth, and in how often one thing is shared.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import reprlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lowrank.interop.bounds import MOST_BYTES, Budget, Refused, Storage, check_keys, check_tree, refusing


@dataclass(frozen=True)
class _Name:
    """A name that a pickle may mention, and what takes the arguments that it is called with."""

    name: str
    build: Callable[..., Any]


def read_plain(path: str | os.PathLike[str]) -> Any:
    """Return what a pickle holds, if it is containers, numbers, strings, numpy arrays and tensors only.

    Args:
        path: a file that `pickle.dump` wrote, of any protocol.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the pickle asks for anything else, which is named and not touched, or is damaged.

    Example::

        >>> _ = Path("settings.pkl").write_bytes(b"\\x80\\x04}\\x8c\\x04rankK\\x03s.")
        >>> read_plain("settings.pkl")
        {'rank': 3}
        >>> _ = Path("evil.pkl").write_bytes(b"cos\\nsystem\\n(S'echo boo'\\ntR.")
        >>> read_plain("evil.pkl")
        Traceback (most recent call last):
        ...
        pyro_lowrank.interop.bounds.Refused: evil.pkl asks for os.system, which plain data do not need: refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with refusing(path):
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise Refused(f"has {size} bytes; of settings, at most {MOST_BYTES} are read.")
        return Machine(Budget.of(size)).run(io.BytesIO(path.read_bytes()))


class Machine:
    """The stack, the stacks below its marks, and the numbered memory of a pickle that is being read.

    Args:
        budget: what may be made.
        load: returns the storage of a type, key and length that torch keeps outside of the pickle; None if the pickle
            is not one of torch's.
    """

    def __init__(self, budget: Budget, load: Callable[[torch.dtype, str, int], Storage] | None = None) -> None:
        self.budget, self.load = budget, load
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}

    def run(self, content: io.BytesIO) -> Any:
        """Follow the instructions to their end; return what is left, if it is a tree of a reasonable size."""
        for opcode, argument, _ in pickletools.genops(content):
            self.budget.step()
            follow = _INSTRUCTIONS.get(opcode.name)
            if follow is None:
                raise Refused(f"holds the instruction {opcode.name}, which plain data do not need: refused.")
            follow(self, argument)
        (result,) = self.stack
        check_tree(result)
        return result

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value from the stack."""
        return self.stack.pop()

    def last(self, number: int) -> tuple[Any, ...]:
        """Take the last values from the stack."""
        if len(self.stack) < number:
            raise IndexError("its stack runs empty")
        items = tuple(self.stack[-number:])
        del self.stack[-number:]
        return items

    def mark(self, argument: Any) -> None:
        """Begin a stack above the present one."""
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        """Take all values above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, number: int) -> None:
        """Keep the last value under a number."""
        self.memory[number] = self.stack[-1]

    def get(self, number: int) -> None:
        """Put what is kept under a number on the stack."""
        self.push(self.memory[number])

    def extend(self, items: list[Any]) -> None:
        """Append to the list on the stack."""
        _of_type(self.stack[-1], list).extend(items)

    def add(self, items: list[Any]) -> None:
        """Add to the set on the stack."""
        _of_type(self.stack[-1], set).update(check_keys(items))

    def set_items(self, items: list[Any]) -> None:
        """Set keys and values of the dict on the stack."""
        _of_type(self.stack[-1], dict).update(_pairs(items))

    def call(self, argument: Any) -> None:
        """Give arguments to the builder that a name stands for."""
        name, arguments = self.last(2)
        if not isinstance(name, _Name):
            raise Refused(f"calls a {type(name).__name__}: refused.")
        _of_type(arguments, tuple)
        made = self.storage(*arguments) if name.name == _OF_BYTES else name.build(*arguments)
        self.budget.spend(made)
        self.push(made)

    def storage(self, content: bytes) -> Storage:
        """Return the storage that torch wrote as bytes within a pickle."""
        if self.load is not None:
            raise Refused("holds a file of torch within another one: refused.")
        self.budget.spend(_of_type(content, bytes))
        found = read_stream(io.BytesIO(content), self.budget)
        return _of_type(found, Storage)

    def outside(self, argument: Any) -> None:
        """Put a storage on the stack that lies outside of the pickle."""
        if self.load is None:
            raise Refused("holds the instruction BINPERSID, which plain data do not need: refused.")
        kind, name, key, _, length, *_ = _of_type(self.pop(), tuple)
        if kind != "storage" or not isinstance(name, _Name) or name.name not in _NUMBERS or type(key) is not str:
            raise Refused("keeps something outside of the pickle that is no storage of numbers: refused.")
        self.push(self.load(_NUMBERS[name.name], key, _natural(length)))

    def set_state(self, argument: Any) -> None:
        """Fill the numpy array on the stack, or set the byte order of a dtype; nothing else has a state."""
        (state,) = self.last(1)
        target = self.stack[-1]
        if isinstance(target, np.dtype):
            _, order, *rest = _of_type(state, tuple)
            # Names and subarrays would be structures of several numbers.
            if type(order) is not str or order not in "<>|=" or any(item is not None for item in rest[:3]):
                raise Refused(f"holds a numpy dtype with the state {reprlib.repr(state)}: refused.")
            # Of all that it says, only the byte order is taken over.
            own: Any = target.__reduce__()
            version, _, *others = own[2]
            target.__setstate__((version, order, *others))  # type: ignore[attr-defined]
        elif type(target) is np.ndarray:
            version, shape, dtype, fortran, content = _of_type(state, tuple)
            filled: Any = (version, shape, _numeric(dtype), bool(fortran), _of_type(content, bytes))
            target.__setstate__(filled)
            self.budget.spend(target)
        elif type(target) is not dict or self.load is None:  # Torch's dicts have notes, which are of no use here.
            raise Refused(f"sets the state of a {type(target).__name__}: refused.")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"holds a {type(value).__name__} where a {kind.__name__} must stand: refused.")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(check_keys(items[::2]), items[1::2], strict=True)


def _natural(value: Any) -> int:
    if _of_type(value, int) < 0:
        raise ValueError(f"a size or place is {value}.")
    return int(value)


def _numeric(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcSU":
        raise Refused(f"holds a numpy array of {dtype}, not of numbers or strings: refused.")
    return dtype


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(_VALUES, Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": Machine.mark,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.above_mark().clear(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "LIST": lambda machine, _: machine.push(machine.above_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.above_mark())),
    "DICT": lambda machine, _: machine.push(dict(_pairs(machine.above_mark()))),
    "FROZENSET": lambda machine, _: machine.push(frozenset(check_keys(machine.above_mark()))),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.last(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.above_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memory)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "GLOBAL": lambda machine, name: machine.push(_look_up(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_look_up(".".join(_of_type(x, str) for x in machine.last(2)))),
    "REDUCE": Machine.call,
    "BINPERSID": Machine.outside,
    "BUILD": Machine.set_state,
}


def _look_up(name: str) -> _Name:
    plain = re.sub(r"^__builtin__\.", "builtins.", name).replace("numpy._core.", "numpy.core.")
    if plain not in _BUILDERS:
        raise Refused(f"asks for {name}, which plain data do not need: refused.")
    return _Name(plain, _BUILDERS[plain])


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"asks for the encoding {reprlib.repr(encoding)}, which plain data do not need: refused.")
    return _of_type(text, str).encode("latin1")


def _dict(items: Any = ()) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in items]
    return dict(zip(check_keys([key for key, _ in pairs]), [value for _, value in pairs], strict=True))


def _set(items: Any = ()) -> set[Any]:
    return set(check_keys(_of_type(items, list) if items else ()))


def _dtype(code: str, *options: Any) -> np.dtype[Any]:
    if not re.fullmatch(r"[<>|=]?[a-zA-Z?]\d{0,6}", _of_type(code, str)):
        raise Refused(f"holds a numpy array of {reprlib.repr(code)}, not of numbers or strings: refused.")
    # A copy: its byte order, which may be set afterwards, is its own.
    return np.dtype(_numeric(np.dtype(code)), copy=True)


def _scalar(dtype: Any, content: bytes) -> Any:
    (value,) = np.frombuffer(_of_type(content, bytes), _numeric(dtype))
    return value


def _empty_array(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    return np.empty(0)


def _array(buffer: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, _numeric(dtype)).reshape(shape, order=order)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    flat = _of_type(storage, Storage).flat
    sizes, strides = ([_natural(n) for n in _of_type(numbers, tuple)] for numbers in (size, stride))
    last = _natural(offset) + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    number = math.prod(sizes)
    if number and (last >= len(flat) or number > len(flat)):
        raise ValueError(f"a tensor of shape {tuple(sizes)} and strides {tuple(strides)} has {len(flat)} numbers.")
    return flat.as_strided(sizes, strides, offset) if number else flat.new_empty(sizes)


def read_stream(stream: io.BytesIO, budget: Budget) -> Any:
    """Return what torch wrote as one stream: pickles, and then the numbers of its tensors."""
    if Machine(budget).run(stream) != _TORCH or Machine(budget).run(stream) != 1001:
        raise ValueError("it is no file of torch.")
    if Machine(budget).run(stream).get("little_endian") is not True:
        raise ValueError("it was written on a machine of another byte order.")
    storages: dict[str, Storage] = {}

    def load(dtype: torch.dtype, key: str, length: int) -> Storage:
        if length * dtype.itemsize > stream.getbuffer().nbytes:
            raise ValueError("a tensor is larger than the file.")
        if key not in storages:
            # The numbers follow.
            storages[key] = Storage(torch.zeros(length, dtype=dtype))
            budget.spend(storages[key].flat)
        return storages[key]

    found = Machine(budget, load).run(stream)
    for key in _of_type(Machine(budget).run(stream), list):
        flat = storages[key].flat
        (length,) = struct.unpack("<q", stream.read(8))
        content = bytearray(stream.read(flat.nbytes))
        if length != len(flat) or len(content) != flat.nbytes:
            raise ValueError("its tensors are cut off.")
        if length:
            flat.copy_(torch.frombuffer(content, dtype=flat.dtype))
    return found


def _no_call(*arguments: Any) -> Any:
    raise Refused("calls a name that stands for itself only: refused.")


_TORCH = 0x1950A86A20F9469CFC6C
_OF_BYTES = "torch.storage._load_from_bytes"
_NUMBERS = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
        **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
        "Bool": torch.bool,
    }.items()
}
_BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _bytes,
    "builtins.bytearray": lambda content=b"": bytearray(_of_type(content, bytes)),
    "builtins.bytes": lambda content=b"": _of_type(content, bytes),
    "builtins.complex": lambda real, imaginary: complex(_of_type(real, float), _of_type(imaginary, float)),
    "builtins.frozenset": lambda items=(): frozenset(_set(items)),
    "builtins.set": _set,
    "collections.OrderedDict": _dict,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _no_call,
    "torch.Size": lambda items=(): tuple(map(_natural, items)),
    "torch._utils._rebuild_parameter": lambda data, *rest: _of_type(data, Tensor),
    "torch._utils._rebuild_tensor_v2": _tensor,
    _OF_BYTES: _no_call,
    **dict.fromkeys(_NUMBERS, _no_call),
}
