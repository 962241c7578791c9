"""Small files that ask for the world are refused, by name, within two seconds and little memory."""

from __future__ import annotations

import functools
import gc
import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.interop.plain_pickle import read_plain
from pyro_lowrank.interop.torch_files import read_tensors
from tests.interop.checkpoints import newer, with_encoder
from tests.interop.test_plain_pickle import named, program

DOUBLED = b")" + b"2\x86" * 60  # A tuple of two of the same, of two of the same, ...
DEEP = b")" + b"\x85" * 1_000_000
ONE_BYTE = b"X\x01\x00\x00\x00x"


def text(value: str) -> bytes:
    """The instruction that makes a string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def kept_bytes(value: bytes) -> bytes:
    """The instructions that make bytes, keep them as number 0 and drop them."""
    return b"B" + struct.pack("<I", len(value)) + value + b"q\x000"


def one_number() -> Any:
    """A storage of one number, as torch pickles it; made without the warning that is given once."""
    memory = torch.zeros(1).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=memory, dtype=torch.float32, _internal=True)


def stretched(stride: tuple[int, ...]) -> bytes:
    """A pickle of one number that says it is a thousand million."""

    class Stretched:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (one_number(), 0, (10**9,), stride, False, OrderedDict())

    return pickle.dumps({"decay": Stretched()}, 2)


def within_itself() -> bytes:
    """A storage within a storage within ... as torch writes them."""
    content = pickle.dumps(one_number(), 2)
    for _ in range(300):
        content = program(named("torch.storage._load_from_bytes"), b"B", struct.pack("<I", len(content)), content)
        content = content[:-1] + b"\x85R."
        stream = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        content = b"".join([*stream, content, pickle.dumps([], 2)])
    return program(named("torch.storage._load_from_bytes"), b"B", struct.pack("<I", len(content)), content, b"\x85R")


def colliding() -> bytes:
    """Numbers of one hash as the keys of a dict."""
    return pickle.dumps({k * (2**61 - 1): None for k in range(1, 2000)}, 2)


ARRAY = named("numpy.core.multiarray._reconstruct") + named("numpy.ndarray") + b"K\x00\x85" + text("b") + b"\x87R"
OF_FLOATS = named("numpy.dtype") + text("f8") + b"\x85R"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "key of doubled tuples": (lambda: program(b"}", DOUBLED, b"Ns"), "has the key"),
    "item of doubled tuples": (lambda: b"\x80\x04\x8f(" + DOUBLED + b"\x90.", "has the key"),
    "frozen item of doubled tuples": (lambda: b"\x80\x04(" + DOUBLED + b"\x91.", "has the key"),
    "set of doubled tuples": (lambda: program(named("builtins.set"), b"](", DOUBLED, b"e\x85R"), "has the key"),
    "ordered doubled tuples": (
        lambda: program(named("collections.OrderedDict"), b"](", DOUBLED, b"N\x86e\x85R"),
        "has the key",
    ),
    "doubled tuples": (lambda: program(b"}K\x01", DOUBLED, b"s"), "containers within each other|items"),
    "name of doubled tuples": (lambda: b"\x80\x04" + DOUBLED + DOUBLED + b"\x93.", "holds a tuple where a str"),
    "codec of doubled tuples": (lambda: program(named("_codecs.encode"), ONE_BYTE, DOUBLED, b"\x86R"), "encoding"),
    "byte order of doubled tuples": (lambda: program(OF_FLOATS, b"(K\x03", DOUBLED, b"NNNt", b"b"), "dtype"),
    "state of doubled tuples": (lambda: program(OF_FLOATS, b"(K\x03", text("<"), DOUBLED, b"NNt", b"b"), "dtype"),
    "deep key": (lambda: program(b"}", DEEP, b"Ns"), "instructions|has the key"),
    "deep value": (lambda: program(b"}K\x01)", b"\x85" * 200_000, b"s"), "within each other"),
    "deep key of fewer": (lambda: program(b"})", b"\x85" * 200_000, b"Ns"), "has the key"),
    "list in itself": (lambda: program(b"]q\x00h\x00a"), "within each other"),
    "codec that takes long": (
        lambda: (
            program(named("_codecs.encode"), text("ö" * 1000).replace(b"\xe8\x03", b"\xd0\x07"), text("punycode"))[:-1]
            + b"\x86R."
        ),
        "asks for the encoding 'punycode'",
    ),
    "numbers of one hash": (colliding, "has the key"),
    "many sets": (lambda: program(b"(", b"\x8f" * 5_000_000, b"l"), "instructions"),
    "copies of bytes": (
        lambda: program(kept_bytes(bytes(2**20)), b"(", (named("builtins.bytearray") + b"h\x00\x85R") * 20_000, b"l"),
        "makes more of itself",
    ),
    "copies of an array": (
        lambda: program(
            kept_bytes(bytes(2**20)),
            b"(",
            (ARRAY + b"(K\x01J\x00\x00\x02\x00\x85" + named("numpy.dtype") + text(">f8") + b"\x85R\x89h\x00tb") * 5_000,
            b"l",
        ),
        "makes more of itself",
    ),
    "structures": (lambda: program(named("numpy.dtype"), text("i4," * 100_000), b"\x85R"), "numpy array of 'i4,i4,"),
    "storages in storages": (within_itself, "within another one"),
    "stride of zero": (lambda: stretched((0,)), "has 1 numbers"),
    "stride beyond": (lambda: stretched((1,)), "has 1 numbers"),
    "too large": (lambda: bytes(2**24 + 1), "at most 16777216 are read"),
}


def read_in_time(read: Callable[[], Any], reason: str) -> None:
    """Read what is refused; other processes on the machine do not count, nor what other tests left to be collected."""
    gc.freeze()
    try:
        started = time.process_time()
        with pytest.raises(ValueError, match=reason) as caught:
            read()
        assert time.process_time() - started < 2
    finally:
        gc.unfreeze()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_are_refused_in_time(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[name]
    prefix = newer().write(tmp_path)
    path = tmp_path / "student_vae_params.pkl"
    path.write_bytes(make())
    read_in_time(lambda: read_plain(path), f"student_vae_params.pkl.*({reason})")
    read_in_time(lambda: plr.load_smc_rnns(prefix), f"student cannot be read: .*student_vae_params.pkl.*({reason})")


def zipped(pickled: bytes, storage: bytes = bytes(4), *, how: int = zipfile.ZIP_STORED, count: int = 1) -> bytes:
    """A file as torch writes them, of one pickle and some storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        archive.writestr("student/data.pkl", pickled)
        for number in range(count):
            archive.writestr(f"student/data/{number}", storage)
    return buffer.getvalue()


def outside(length: int, size: int, stride: int, key: str = "0") -> bytes:
    """The instructions that make a tensor of a storage outside of the pickle."""
    storage = b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", length) + b"tQ"
    numbers = b"K\x00" + b"J" + struct.pack("<i", size) + b"\x85" + b"J" + struct.pack("<i", stride) + b"\x85"
    return named("torch._utils._rebuild_tensor_v2") + b"(" + storage + numbers + b"\x89}tR"


HOSTILE_WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "key of doubled tuples": (lambda: zipped(program(b"}", DOUBLED, b"Ns")), "has the key"),
    "stride of zero": (lambda: zipped(program(b"}", text("w"), outside(1, 10**9, 0), b"s")), "has 1 numbers"),
    "beyond its storage": (lambda: zipped(program(b"}", text("w"), outside(1, 2, 1), b"s")), "has 1 numbers"),
    "negative": (lambda: zipped(program(b"}", text("w"), outside(1, -1, 1), b"s")), "is -1"),
    "cut off": (lambda: zipped(program(b"}", text("w"), outside(2, 2, 1), b"s")), "cut off"),
    "missing": (lambda: zipped(program(b"}", text("w"), outside(1, 1, 1, "7"), b"s")), "no item named|lacks"),
    "compressed": (
        lambda: zipped(
            program(b"}", text("w"), outside(2**26, 2**26, 1), b"s"), bytes(2**28), how=zipfile.ZIP_DEFLATED
        ),
        "compressed",
    ),
    "no tensor": (lambda: zipped(program(b"}", text("w"), b"K\x01s")), "does not hold tensors by name"),
    "neither": (lambda: b"PK\x03\x04 and so on", "is damaged, or no pickle"),
    "larger than the file": (
        lambda: b"".join(
            [
                *(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})),
                program(b"}", text("w"), outside(2**30, 2**30, 1), b"s"),
                pickle.dumps(["0"], 2),
            ]
        ),
        "larger than the file",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights_are_refused_in_time(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE_WEIGHTS[name]
    prefix = newer().write(tmp_path)
    (tmp_path / "student_state_dict_rnn.pkl").write_bytes(make())
    read_in_time(lambda: plr.load_smc_rnns(prefix), f"student_state_dict_rnn.pkl.*({reason})")


@pytest.mark.parametrize("setting", ["dim_x", "dim_N", "dim_u", "dim_z"])
def test_settings_of_a_network_larger_than_its_weights_build_nothing(setting: str, tmp_path: Path) -> None:
    made = newer(inputs=1)
    made.params[setting] = 10**8
    prefix = made.write(tmp_path)
    read_in_time(lambda: plr.load_smc_rnns(prefix), "student cannot be read: its configuration describes larger|rank")


def test_settings_of_an_encoder_larger_than_its_weights_build_nothing(tmp_path: Path) -> None:
    larger = {"n_channels": [10**8]}, {"kernel_sizes": [10**8, 3]}
    for options in (*larger, {"n_channels": [1] * 100_000, "kernel_sizes": [1] * 100_001}):
        made = with_encoder(newer())
        made.params["enc_params"] |= options
        prefix = made.write(tmp_path)
        read_in_time(
            functools.partial(plr.load_smc_rnns, prefix),
            "its configuration describes larger tensors|has 2 layers, the settings say 100001",
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    made = newer()
    made.weights["transition.m"][0, 0] = value
    with pytest.raises(ValueError, match=r"student cannot be read: .*dynamics\.left.* hold NaN or infinite"):
        plr.load_smc_rnns(made.write(tmp_path))


MEASURE = """
import resource, sys
from pathlib import Path
import pyro_lowrank as plr
from pyro_lowrank.interop.plain_pickle import read_plain
from pyro_lowrank.interop.torch_files import read_tensors
plr.load_smc_rnns
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        (read_tensors if "weights" in path.name else read_plain)(path)
    except ValueError:
        continue
    raise SystemExit(f"{path} was read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "linux" else 2**20))
"""


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    for kind, files in (("settings", HOSTILE), ("weights", HOSTILE_WEIGHTS)):
        for number, (make, _) in enumerate(files.values()):
            (tmp_path / f"{kind} {number}").write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200, "megabytes"


def test_a_dtype_takes_over_nothing_but_its_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "content.pkl"
    state = b"(K\x03" + text(">") + b"NNN" + b"J\xff\xff\xff\xff" + b"J\xff\xff\xff\xff" + b"K\x3ftb"
    path.write_bytes(program(OF_FLOATS, state))
    found = read_plain(path)
    assert found == np.dtype(">f8")
    assert found.flags == np.dtype("f8").flags
    assert np.dtype("f8").byteorder == "=", "the one that everybody shares is as it was"


@pytest.mark.parametrize("zip_format", [True, False])
def test_tensors_come_back_as_they_were_in_both_formats(zip_format: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = module.state_dict() | {
        "turned": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
        "part": torch.arange(9)[3:7],
        "empty": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    torch.save(state, tmp_path / "weights.pt", _use_new_zipfile_serialization=zip_format)
    found = read_tensors(tmp_path / "weights.pt")
    assert found.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((4,), 1.5)}, tmp_path / "weights.pt")
    content = bytearray((tmp_path / "weights.pt").read_bytes())
    content[content.index(struct.pack("<f", 1.5))] ^= 1
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.pt is damaged.*CRC"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("zip_format", [True, False])
def test_random_damage_of_weights_is_one_error_with_the_name(zip_format: bool, tmp_path: Path) -> None:
    path, random, buffer = tmp_path / "weights.pt", np.random.default_rng(0), io.BytesIO()
    torch.save({"w": torch.rand(4, 3), "b": torch.rand(3)}, buffer, _use_new_zipfile_serialization=zip_format)
    whole = buffer.getvalue()
    for number in range(500):
        content, place = bytearray(whole), random.integers(len(whole))
        content[place] = random.integers(256)
        path.write_bytes(content if number % 3 else whole[:place])
        try:
            read_tensors(path)
        except ValueError as error:
            assert "weights.pt" in str(error)  # noqa: PT017 (where it can still be read, all is well)
        else:
            assert number % 3, "cut off"


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_random_damage_is_one_error_with_the_name(tmp_path: Path) -> None:
    path, random = tmp_path / "content.pkl", np.random.default_rng(3)
    whole = pickle.dumps({"rank": [1.0, 2.0], "a": np.arange(3.0), "t": torch.ones(2), "s": {1, 2}, "b": b"xyz"}, 2)
    for _ in range(500):
        content = bytearray(whole)
        content[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(content)
        try:
            read_plain(path)
        except ValueError as error:
            assert "content.pkl" in str(error)  # noqa: PT017 (where it can still be read, all is well)
