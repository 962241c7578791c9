"""Pickles that hold plain data, read without pickle: nothing in the file is called, only what is listed here is built.

A pickle is a program for a small stack machine, of which some instructions call what the file names. The machine here
knows the instructions that build containers, numbers and strings. Of names it knows those in `_BUILDERS`, which stand
for functions of this file; at any other the file is refused.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Refused(ValueError):
    """A pickle asks for something that plain data need not."""


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
        pyro_lowrank.interop.plain_pickle.Refused: evil.pkl asks for os.system, which plain data do not need: refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return _Machine().run(path.read_bytes())
    except Refused as reason:
        raise Refused(f"{path} {reason}") from None
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no pickle: {error or type(error).__name__}.") from error


class _Machine:
    """The stack, the stacks below its marks, and the numbered memory of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """Follow the instructions to their end."""
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in _VALUES:
                self.push(argument)
            elif opcode.name in _CONSTANTS:
                self.push(_CONSTANTS[opcode.name])
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise Refused(f"holds the instruction {opcode.name}, which plain data do not need: refused.")
        (result,) = self.stack
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
        _of_type(self.stack[-1], set).update(items)

    def set_items(self, items: list[Any]) -> None:
        """Set keys and values of the dict on the stack."""
        _of_type(self.stack[-1], dict).update(_pairs(items))

    def call(self, argument: Any) -> None:
        """Give arguments to the builder that a name stands for."""
        name, arguments = self.last(2)
        if not isinstance(name, _Name):
            raise Refused(f"calls a {type(name).__name__}: refused.")
        self.push(name.build(*_of_type(arguments, tuple)))

    def set_state(self, argument: Any) -> None:
        """Fill the numpy array on the stack, or set the byte order of a dtype; nothing else has a state."""
        (state,) = self.last(1)
        target = self.stack[-1]
        if isinstance(target, np.dtype):
            _, order, *rest = _of_type(state, tuple)
            # Names and subarrays would be structures of several numbers.
            if order not in ("<", ">", "|", "=") or any(item is not None for item in rest[:3]):
                raise Refused(f"holds a numpy dtype with the state {state!r}: refused.")
            target.__setstate__((3, order, None, None, None, *rest[3:6]))  # type: ignore[attr-defined]
        elif type(target) is np.ndarray:
            version, shape, dtype, fortran, content = _of_type(state, tuple)
            filled: Any = (version, shape, _numeric(dtype), bool(fortran), _of_type(content, bytes))
            target.__setstate__(filled)
        else:
            raise Refused(f"sets the state of a {type(target).__name__}: refused.")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"holds a {type(value).__name__} where a {kind.__name__} must stand: refused.")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _numeric(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcSU":
        raise Refused(f"holds a numpy array of {dtype}, not of numbers or strings: refused.")
    return dtype


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
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
    "FROZENSET": lambda machine, _: machine.push(frozenset(machine.above_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.last(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.above_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memory)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, name: machine.push(_look_up(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_look_up(".".join(map(str, machine.last(2))))),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
}


def _look_up(name: str) -> _Name:
    plain = re.sub(r"^__builtin__\.", "builtins.", name).replace("numpy._core.", "numpy.core.")
    if plain not in _BUILDERS:
        raise Refused(f"asks for {name}, which plain data do not need: refused.")
    return _Name(name, _BUILDERS[plain])


def _bytes(text: str, encoding: str) -> bytes:
    return _of_type(text, str).encode(_of_type(encoding, str))


def _dtype(code: str, *options: Any) -> np.dtype[Any]:
    # A copy: its byte order, which may be set afterwards, is its own.
    return np.dtype(_numeric(np.dtype(_of_type(code, str))), copy=True)


def _scalar(dtype: Any, content: bytes) -> Any:
    (value,) = np.frombuffer(_of_type(content, bytes), _numeric(dtype))
    return value


def _empty_array(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    return np.empty(0)


def _array(buffer: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, _numeric(dtype)).reshape(shape, order=order)


def _storage(content: bytes) -> Any:
    try:
        storage = torch.load(io.BytesIO(_of_type(content, bytes)), map_location="cpu", weights_only=True)
    except Refused:
        raise
    except Exception as error:  # What torch raises has no common base.
        raise Refused(f"holds a tensor that torch does not read as one: {' '.join(str(error).split())}") from error
    if not isinstance(storage, torch.TypedStorage):
        raise Refused(f"holds a {type(storage).__name__} where a tensor's storage must stand: refused.")
    return storage


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    if not isinstance(storage, torch.TypedStorage):
        raise Refused(f"makes a tensor of a {type(storage).__name__}: refused.")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    # Checks that the elements lie within the storage.
    return flat.as_strided(size, stride, offset).clone()


def _no_call(*arguments: Any) -> Any:
    raise Refused("calls a name that stands for itself only: refused.")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _bytes,
    "builtins.bytearray": lambda content=b"": bytearray(_of_type(content, bytes)),
    "builtins.bytes": lambda content=b"": _of_type(content, bytes),
    "builtins.complex": lambda real, imaginary: complex(real, imaginary),
    "builtins.frozenset": lambda items=(): frozenset(_of_type(items, list)),
    "builtins.set": lambda items=(): set(_of_type(items, list)),
    "collections.OrderedDict": lambda items=(): dict(items),
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _no_call,
    "torch.Size": lambda items=(): tuple(items),
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
