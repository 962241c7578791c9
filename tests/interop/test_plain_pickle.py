"""Plain data are read as pickle reads them, and whatever else a pickle asks for is named and not done."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_lowrank.interop.plain_pickle import Refused, read_plain

SHARED = ["one list, held twice"]
PLAIN: dict[str, Any] = {
    "none": None,
    "numbers": [0, 7, -3, 300, 70_000, 10**30, 1.5, True, False, 1 + 2j],
    "strings": ["", "a", "é" * 300, b"", b"bytes", bytearray(b"array")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [set(), {1, 2}, frozenset([3])],
    "empty": [[], {}, [[]]],
    "ordered": OrderedDict(a=1, b=2),
    "shared": [SHARED, SHARED],
}
ARRAYS: dict[str, Any] = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "other bytes": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "flags": np.array([True, False]),
    "names": np.array(["ab", "c"]),
    "number": np.float64(3.25),
    "flag": np.bool_(True),
}

every_protocol = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


def written(folder: Path, content: Any, protocol: int | None = None) -> Path:
    """Write a pickle."""
    path = folder / "content.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@every_protocol
def test_plain_data_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    found = read_plain(written(tmp_path, PLAIN, protocol))
    assert found == PLAIN
    assert [type(x) for x in found["numbers"]] == [type(x) for x in PLAIN["numbers"]]
    assert found["shared"][0] is found["shared"][1]


@every_protocol
def test_arrays_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    found = read_plain(written(tmp_path, ARRAYS, protocol))
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype.kind == value.dtype.kind


@every_protocol
def test_tensors_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    tensors = [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(9)[3:7],
        torch.nn.Parameter(torch.ones(2)),
        torch.tensor(1),
    ]
    found = read_plain(written(tmp_path, [*tensors, torch.Size([1, 2])], protocol))
    for value, again in zip(tensors, found[:-1], strict=True):
        torch.testing.assert_close(again, value.detach(), rtol=0, atol=0)
    assert found[-1] == (1, 2)


@every_protocol
def test_large_contents_are_within_the_bounds(tmp_path: Path, protocol: int) -> None:
    large = {"tensor": torch.rand(250_000), "array": np.random.default_rng(1).random(100_000), "steps": [0.5] * 90_000}
    found = read_plain(written(tmp_path, large, protocol))
    assert torch.equal(found["tensor"], large["tensor"])
    np.testing.assert_array_equal(found["array"], large["array"])
    assert found["steps"] == large["steps"]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.folder),)


class Stateful:
    """A class of the test's own."""

    def __init__(self) -> None:
        self.value = 1


@every_protocol
@pytest.mark.parametrize("inside", [lambda evil: evil, lambda evil: {"rank": [1, (evil,)]}], ids=["bare", "nested"])
def test_what_a_pickle_would_run_is_named_and_not_run(
    tmp_path: Path, protocol: int, inside: Callable[[Any], Any]
) -> None:
    made = tmp_path / "made"
    path = written(tmp_path, inside(Evil(made)), protocol)
    with pytest.raises(Refused, match=r"content.pkl asks for (posix|nt)\.mkdir, .* refused"):
        read_plain(path)
    assert not made.exists()
    with path.open("rb") as file:
        pickle.load(file)  # noqa: S301 (the attack is a real one)
    assert made.exists()


def test_a_pickle_in_a_tensor_is_not_run_either(tmp_path: Path) -> None:
    made = tmp_path / "made"
    buffer = io.BytesIO()
    torch.save(Evil(made), buffer, _use_new_zipfile_serialization=False)

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (buffer.getvalue(),)

    path = written(tmp_path, Tensor())
    with pytest.raises(Refused, match="mkdir"):
        read_plain(path)
    assert not made.exists()
    with path.open("rb") as file:
        pickle.load(file)  # noqa: S301 (the attack is a real one)
    assert made.exists()


def program(*parts: bytes) -> bytes:
    """A pickle of protocol 2 from its instructions."""
    return b"\x80\x02" + b"".join(parts) + b"."


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


REFUSED = {
    "eval": (program(named("builtins.eval"), b"X\x01\x00\x00\x001\x85R"), r"builtins\.eval"),
    "getattr": (program(named("builtins.getattr")), r"builtins\.getattr"),
    "only mentioned": (program(named("os.system"), b"0N"), r"os\.system"),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", r"numpy\.ndarray\.dumps"),
    "class of a test": (pickle.dumps(Stateful()), "Stateful"),
    "old instance": (program(b"(", b"ios\nsystem\n"), "INST"),
    "old object": (program(b"(", named("collections.OrderedDict"), b"o"), "OBJ"),
    "new object": (program(named("collections.OrderedDict"), b")\x81"), "NEWOBJ"),
    "persistent": (program(b"K\x01Q"), "BINPERSID"),
    "extension": (program(b"\x82\x01"), "EXT1"),
    "out of band": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "call of data": (program(b"X\x01\x00\x00\x00a)R"), "calls a str"),
    "state of data": (program(b"}}b"), "state of a dict"),
    "call of a type": (program(named("numpy.ndarray"), b"K\x02\x85R"), "stands for itself"),
    "objects": (pickle.dumps(np.array([{}], dtype=object)), "numpy array of object"),
    "structure": (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "refused"),
    "items of no list": (program(b"}K\x01a"), "holds a dict where a list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_but_plain_data_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    path = tmp_path / "content.pkl"
    path.write_bytes(content)
    with pytest.raises(Refused, match=reason):
        read_plain(path)


def test_a_tensor_lies_within_its_storage(tmp_path: Path) -> None:
    class Beyond:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (torch.zeros(2).storage(), 0, (100,), (1,), False, OrderedDict())

    with pytest.warns(UserWarning, match="TypedStorage"):
        path = written(tmp_path, Beyond())
    with pytest.raises(ValueError, match="content.pkl is damaged"):
        read_plain(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_damaged_pickle_is_said_to_be_one(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"rank": [1.0, 2.0], "name": "x"}, protocol)
    path = tmp_path / "content.pkl"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="content.pkl"):
            read_plain(path)
    for content in (b"no pickle", b"\x93NUMPY", b"(.", b"K\x01K\x02.", b"h\x05.", b"\x85.", struct.pack("<q", 3)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="content.pkl"):
            read_plain(path)


def test_the_reader_knows_every_instruction_of_plain_data() -> None:
    seen = {op.name for p in range(6) for op, *_ in pickletools.genops(pickle.dumps([PLAIN, ARRAYS], p))}
    assert {"REDUCE", "BUILD", "STACK_GLOBAL", "GLOBAL", "MEMOIZE", "BINPUT", "PUT"} <= seen


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pkl"):
        read_plain(tmp_path / "nothing.pkl")
