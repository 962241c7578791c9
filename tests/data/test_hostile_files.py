"""Damaged and hostile files are one kind of error, with the name of the file, before time or memory is spent."""

from __future__ import annotations

import random
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.data import read_recording
from tests.data.builders import nwb_file, random_spikes
from tests.data.test_files import TRIALS, cells, mat, mat73

TRAINS = random_spikes(3, 12.0)
RNG = np.random.default_rng(0)
Y = RNG.normal(size=(30, 4))


def refused(path: Path, message: str, **options: Any) -> None:
    """Check that a file is refused, for the right reason, in no time and with no memory."""
    tracemalloc.start()
    begin = perf_counter()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read_recording(path, **options)
    finally:
        seconds, (_, peak) = perf_counter() - begin, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert seconds < 2
    assert peak < 100 * 2**20


# --- NumPy's files ---------------------------------------------------------------------------------------------------


def npy(shape: str = "(3, 2)", descr: str = "<f8", numbers: int = 6) -> bytes:
    """An array in NumPy's format, with a header of one's own."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8 * numbers)


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000, 1000000)"),
        npy("(-3, -2)"),
        npy("(3, 1)"),
        npy("(3L, 2L"),
        npy("(" * 60),
        npy(descr="<f8',"),
        npy("(1, 2)", "V1000000000000"),
        npy()[:-1],
        npy() + b"\0",
    ],
)
def test_headers_that_lie(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "y.npy").write_bytes(content)
    refused(tmp_path / "y.npy", "cannot be read as a NumPy array: it is truncated, damaged|Python objects|real numbers")
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", content)
    refused(tmp_path / "y.npz", "cannot be read as an archive of NumPy arrays: it is truncated|no array could be")


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "about this")
        archive.writestr("notes.npy", "not an array")
        archive.writestr("y.npy", npy())
    assert read_recording(path).data.shape == (1, 3, 2)
    refused(
        path,
        r"got key='readme.txt'; it holds: readme.txt no array \(\), notes unreadable \(\), y \(3, 2\)",
        key="readme.txt",
    )
    refused(path, "cannot be read as an archive", key="notes")


def test_archives_made_to_exhaust_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y.npy", "w") as member:
        member.write(npy("(5000000, 2)", numbers=0))
        for _ in range(40):
            member.write(bytes(2_000_000))
    refused(
        path, r"claims 0.0745 GiB for y.npy, and stores \d+ bytes of it: it is damaged or made to exhaust the memory"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("y.npy", npy())
    refused(path, "compressed in a way that NumPy does not write")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y.npy", npy())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("y.npy", npy())
    refused(path, "several members of one name")


def test_key_reads_no_other_member(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", npy())
        archive.writestr("broken.npy", npy("(50, 50)", numbers=6))
        archive.writestr("large.npy", npy("(5000000, 1)", numbers=5_000_000))
    tracemalloc.start()
    assert read_recording(path, key="y").data.shape == (1, 3, 2)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# --- HDF5 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def h5py() -> Any:
    """The library, where it is installed."""
    return pytest.importorskip("h5py", reason="the extra `matlab` is not installed")


def as_mat(h5py: Any, path: Path, fill: Callable[[Any], None]) -> Path:
    """Path of a MATLAB file of version 7.3 with what is filled in."""
    mat73(path)
    with h5py.File(path, "r+") as file:
        fill(file)
    return path


def cell_of(h5py: Any, file: Any, name: str, *held: Any) -> Any:
    """A cell array that refers to some datasets."""
    stored = file.create_dataset(name, data=np.array([[one.ref for one in held]], dtype=h5py.ref_dtype))
    stored.attrs["MATLAB_class"] = np.bytes_("cell")
    return stored


def test_references_made_to_hang(h5py: Any, tmp_path: Path) -> None:
    def tower(file: Any) -> None:
        below = file.create_dataset("#refs#/c", data=np.ones((1, 3)))
        for level in range(40):
            below = cell_of(h5py, file, f"#refs#/c{level}", below, below)
        cell_of(h5py, file, "y", below, below)

    def itself(file: Any) -> None:
        stored = cell_of(h5py, file, "y", file.create_dataset("#refs#/c", data=np.ones((1, 3))))
        stored[0, 0] = stored.ref

    def shared(file: Any) -> None:
        cell_of(h5py, file, "y", *[file.create_dataset("#refs#/c", data=np.ones((1000, 3)))] * 1000)

    refused(as_mat(h5py, tmp_path / "a.mat", tower), "nested more than 3 deep|same data more than once")
    for name, fill in (("b.mat", itself), ("c.mat", shared)):
        refused(as_mat(h5py, tmp_path / name, fill), "refer to the same data more than once")
    empty = as_mat(h5py, tmp_path / "d.mat", lambda file: file.create_dataset("y", shape=(2, 1), dtype=h5py.ref_dtype))
    refused(empty, "cannot be read as a MATLAB file")


SECRET = "the first line\n" * 20


def hostile_datasets(h5py: Any, secret: Path) -> dict[str, tuple[Callable[[Any], Any], str]]:
    """What may stand in an HDF5 file in the place of numbers, and what it is answered with."""
    other = secret.with_suffix(".h5")
    with h5py.File(other, "w") as file:
        file["x"] = Y
    layout = h5py.VirtualLayout(shape=(30, 4), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "x", shape=(30, 4))
    storage = [(str(secret), 0, h5py.h5f.UNLIMITED)]
    outside = "takes its numbers from another file, which is not read"
    return {
        "storage": (lambda f: f.create_dataset("y", shape=(30, 4), dtype="u1", external=storage), outside),
        "virtual": (lambda f: f.create_virtual_dataset("y", layout), outside),
        "link": (lambda f: f.__setitem__("y", h5py.ExternalLink(str(other), "x")), "is a link to another file"),
        "terabytes": (
            lambda f: f.create_dataset("y", shape=(10**6, 10**6), dtype="f8", chunks=(9, 9)),
            "claims 7.45e.03 GiB",
        ),
    }


@pytest.mark.parametrize("case", ["storage", "virtual", "link", "terabytes"])
def test_numbers_that_are_not_in_the_file(h5py: Any, tmp_path: Path, case: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    fill, message = hostile_datasets(h5py, secret)[case]
    refused(as_mat(h5py, tmp_path / "y.mat", fill), message)
    refused(as_mat(h5py, tmp_path / "s.mat", lambda file: fill(file.create_group("s"))), message, key="s.y")
    pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
    with h5py.File(tmp_path / "y.nc", "w") as file:
        fill(file)
    refused(tmp_path / "y.nc", message)
    if case != "link":
        as_cell = as_mat(
            h5py,
            tmp_path / "c.mat",
            lambda file: cell_of(h5py, file, "c", fill(file.create_group("#refs#")) or file["#refs#/y"]),
        )
        refused(as_cell, message)


def test_coordinates_and_sparse_arrays_that_are_not_in_the_file(h5py: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    storage = [(str(secret), 0, h5py.h5f.UNLIMITED)]

    def sparse(file: Any) -> None:
        file.create_dataset("s/data", data=[1.0])
        file["s/ir"], file["s/jc"] = np.zeros(1, np.uint64), np.zeros(1001, np.uint64)
        file["s"].attrs["MATLAB_sparse"] = np.uint64(10**9)

    refused(as_mat(h5py, tmp_path / "y.mat", sparse), "claims .* GiB for a sparse array")
    pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
    with h5py.File(tmp_path / "y.nc", "w") as file:
        file["y"] = Y
        file.create_dataset("time", shape=(30,), dtype="u1", external=storage).make_scale("time")
        file["y"].dims[0].attach_scale(file["time"])
    refused(tmp_path / "y.nc", "time in .* takes its numbers from another file")
    with h5py.File(tmp_path / "z.nc", "w") as file:
        file.create_dataset("time", shape=(10**8,), dtype="f8", chunks=(1000,)).make_scale("time")
        file["y"] = Y
    refused(tmp_path / "z.nc", "claims 0.745 GiB for /time")


def test_an_nwb_file_of_the_bytes_of_another(h5py: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    for place in ("acquisition/lfp/data", "units/spike_times", "units/id"):
        path = nwb_file(tmp_path / "y.nwb", TRAINS, TRIALS, series=Y)
        with h5py.File(path, "r+") as file:
            attributes, shape = dict(file[place].attrs), file[place].shape
            del file[place]
            storage = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(place, shape=shape, dtype="u1", external=storage).attrs.update(attributes)
        message = f"{place} in .* takes its numbers from another file"
        refused(path, message, **({"key": "lfp"} if "lfp" in place else {"bin_size": 0.1}))


@pytest.mark.parametrize("kind", ["nc", "nwb"])
def test_groups_nested_to_hang(h5py: Any, tmp_path: Path, kind: str) -> None:
    # Imported before the clock runs.
    for library in ("xarray", "h5netcdf") if kind == "nc" else ("pynwb",):
        pytest.importorskip(library, reason=f"the extra for .{kind} is not installed")
    with h5py.File(tmp_path / f"y.{kind}", "w") as file:
        file["y"] = Y
        group = file
        for _ in range(2000):
            group = group.create_group("g")
    refused(tmp_path / f"y.{kind}", "holds groups within groups, more than 64 deep")


def test_a_table_of_a_million_columns(tmp_path: Path) -> None:
    for text in ("a," * 10**6 + "a\n", "1," * 10**6 + "1\n", "a\n" + "1," * 10**6 + "1\n"):
        (tmp_path / "y.csv").write_text(text)
        refused(tmp_path / "y.csv", "1000001 c(olumns, and a table is read up to 50000|ells)")


def test_a_recording_on_shelves_without_coordinates_is_read(tmp_path: Path) -> None:
    # Its dimensions are datasets that store nothing.
    xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
    pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
    array = xarray.DataArray(np.zeros((17_000_000, 1), dtype=np.int8), dims=("time", "unit"), name="y")
    array.to_netcdf(tmp_path / "y.nc", engine="h5netcdf")
    assert read_recording(tmp_path / "y.nc").data.shape == (1, 17_000_000, 1)


# --- MATLAB's older format -------------------------------------------------------------------------------------------


def element(kind: int, body: bytes) -> bytes:
    """An element of a file."""
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def matrix(kind: int, dims: tuple[int, ...], name: bytes, *parts: bytes) -> bytes:
    """An array of a file."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims)) + element(1, name)
    return element(14, head + b"".join(parts))


def file_of(path: Path, *elements: bytes) -> Path:
    """Path of a file of version 5."""
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements))
    return path


def nested(depth: int) -> bytes:
    """Cells in cells."""
    inner = matrix(6, (1, 2), b"", element(9, bytes(16)))
    for _ in range(depth):
        inner = matrix(1, (1, 1), b"", inner)
    return matrix(1, (1, 1), b"y", inner)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (matrix(6, (10**6, 10**6), b"y", element(9, bytes(64))), "of the dims .* holds 8 numbers"),
        (matrix(6, (-2, -4), b"y", element(9, bytes(64))), "has the dims"),
        (matrix(6, (2, 4), b"y", struct.pack("<II", 9, 2**31)), "longer than what holds it"),
        (matrix(1, (2**30, 2**30), b"y", element(9, bytes(64))), "longer than what holds it"),
        (matrix(5, (10**9, 1000), b"y", element(5, bytes(4)), element(5, bytes(4004)), element(9, bytes(8))), "claims"),
        (
            matrix(
                5, (3, 2), b"y", element(5, bytes(4)), element(5, struct.pack("<3i", 0, 9, 1)), element(9, bytes(8))
            ),
            "do not",
        ),
        (nested(5000), "nested more than 8 deep"),
        (matrix(77, (2, 4), b"y", element(9, bytes(64))), "y class 77"),
        (struct.pack("<II", 14, 2**31), "cut off"),
    ],
)
def test_lengths_that_lie(tmp_path: Path, variable: bytes, message: str) -> None:
    pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    refused(file_of(tmp_path / "y.mat", variable), message)


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    pytest.importorskip("scipy.io", reason="the extra `matlab` is not installed")
    packed = zlib.compressobj(9)
    head = matrix(6, (2_187_500, 4), b"y", struct.pack("<II", 9, 70_000_000))[8:]
    body = packed.compress(struct.pack("<II", 14, 70_000_000 + len(head)) + head)
    body += b"".join(packed.compress(bytes(1_000_000)) for _ in range(70)) + packed.flush()
    refused(file_of(tmp_path / "y.mat", struct.pack("<II", 15, len(body)) + body), "claims 0.0652 GiB for a variable")
    (tmp_path / "z.mat").write_bytes(struct.pack("<5i", 0, 10**6, 10**6, 0, 2) + b"y\0" + bytes(64))
    refused(tmp_path / "z.mat", "cannot be read as a MATLAB file")


# --- chance damage ---------------------------------------------------------------------------------------------------


def written(folder: Path, kind: str) -> Path:
    """Path of a small file of one kind."""
    if kind == "npz":
        np.savez_compressed(folder / "y.npz", y=Y, fs=100.0, ch_names=np.array(["a", "b", "c", "d"]))
        return folder / "y.npz"
    if kind == "npy":
        np.save(folder / "y.npy", Y)
        return folder / "y.npy"
    if kind == "nc":
        xarray = pytest.importorskip("xarray", reason="the extra `netcdf` is not installed")
        pytest.importorskip("h5netcdf", reason="the extra `netcdf` is not installed")
        xarray.DataArray(Y, dims=("time", "unit"), name="y").to_netcdf(folder / "y.nc", engine="h5netcdf")
        return folder / "y.nc"
    if kind == "nwb":
        return nwb_file(folder / "y.nwb", TRAINS, TRIALS)
    return (mat if kind == "mat" else mat73)(folder / "y.mat", y=Y, c=cells(*TRAINS), w="abc")


@pytest.mark.parametrize(
    ("kind", "times"), [("npy", 60), ("npz", 60), ("mat", 150), ("mat73", 60), ("nc", 30), ("nwb", 8)]
)
def test_bits_that_fell_over(tmp_path: Path, kind: str, times: int) -> None:
    path = written(tmp_path, kind)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(times):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 4])):
            # Headers, where there is most to be damaged, half of the time.
            damaged[draw.randrange(min(600, len(content)) if draw.random() < 0.5 else len(content))] ^= (
                1 << draw.randrange(8)
            )
        path.write_bytes(bytes(damaged))
        assert str(path) in told(path, bin_size=0.1 if kind == "nwb" else None)


def told(path: Path, **options: Any) -> str:
    """The error that reading a file raises, or its name where it is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_recording(path, **options)
        except ValueError as error:
            return str(error)
    return str(path)
