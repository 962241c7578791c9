"""What NumPy's and xarray's files hold: an array, and what the file says about it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.arrays import missing_labels
from pyro_lowrank.data.clocks import SECONDS, time_order
from pyro_lowrank.data.contents import Contents, SpikeTrains, is_numeric
from pyro_lowrank.data.opening import Refused, check_claim, check_claims, check_inside, holds_objects, reading
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.orientation import role_of
from pyro_lowrank.data.spike_arrays import TIMES, spikes_beside
from pyro_lowrank.data.variables import (
    DATES,
    Variable,
    as_word,
    beside,
    choose,
    is_beside,
    listing,
    names_time,
    stated_bin_size,
)

if TYPE_CHECKING:
    import xarray

Array = NDArray[np.generic]


def read_npy(path: Path, key: str | None) -> Contents:
    """Read a `.npy` file, which holds one array and no names."""
    refuse_key(path, key)
    with reading(path, "a NumPy array"):
        if zipfile.is_zipfile(path):
            raise Refused(f"{path} is an archive of several arrays; rename it to end in .npz.")
        with path.open("rb") as file:
            _check_header(path, file, path.stat().st_size)
        return Contents(np.load(path, allow_pickle=False))


def read_npz(path: Path, key: str | None) -> Contents | SpikeTrains:
    """Read one array of a `.npz` archive, with scalars and names beside it, or its spike times and their units."""
    with reading(path, "an archive of NumPy arrays"):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY" and not zipfile.is_zipfile(path):
                _check_header(path, file, path.stat().st_size, begin=0)
                raise Refused(f"{path} is a single array; rename it to end in .npy.")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise Refused(f"{path} holds several members of one name; save it again.")
            # An array hides whatever else has its name.
            members = sorted(archive.infolist(), key=lambda one: one.filename.endswith(".npy"))
            variables = {one.filename.removesuffix(".npy"): _member(path, archive, one) for one in members}
            if key is not None and key in variables and variables[key].kind == "Python objects":
                raise holds_objects(path)
            numbers = {name: one for name, one in variables.items() if one.kind == "numbers"}
            for name, one in variables.items():
                if one.kind == "unreadable" and (name == key or not numbers):
                    one.read()
            if key in (None, TIMES):
                spikes = spikes_beside(path, variables)
                if spikes is not None:
                    return spikes
            several = len([one for one in numbers.values() if one.shape]) > 1
            dims = {
                name: len(one.shape)
                for name, one in numbers.items()
                if key is not None or not (is_beside(name) or (several and len(one.shape) == 1 and names_time(name)))
            }
            return beside(path, variables, choose(path, key, dims, listing(variables)))


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Variable:
    """Return a member of an archive, of which the header alone is read, if it has one."""

    def read() -> Array:
        check_claim(path, info.filename, info.file_size, info.compress_size)
        with archive.open(info) as file:
            _check_header(path, file, info.file_size)
        with archive.open(info) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            # To the end, where the checksum is compared.
            file.read(1)
            return array

    if not info.filename.endswith(".npy"):
        return Variable("no array", (), read)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{info.filename} in {path} is compressed in a way that NumPy does not write.")
    try:
        with archive.open(info) as file:
            shape, dtype = _check_header(path, file, info.file_size)
    except Refused:
        raise
    except Exception:
        # What is not read need not be whole.
        return Variable("unreadable", (), read)
    if dtype.hasobject:
        return Variable("Python objects", shape, read)
    kind = {"U": "words", "S": "words", "m": DATES, "M": DATES}.get(
        dtype.kind, "numbers" if dtype.kind in "fiub" else str(dtype)
    )
    return Variable(kind, shape, read)


def _check_header(
    path: Path, file: IO[bytes], size: int, *, begin: int | None = None
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array in NumPy's format, or raise if they do not fit the size of the file."""
    if begin is not None:
        file.seek(begin)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Refused(f"{path} holds an array of records (format {version}), not of numbers.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    stored, claimed = size - file.tell(), math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (claimed != stored or min(shape, default=0) < 0):
        raise ValueError(f"its header tells {shape} of {dtype}, {claimed} bytes, and {stored} are there")
    return shape, dtype


def read_netcdf(path: Path, key: str | None) -> Contents:
    """Read one variable of an xarray `.nc` file, with the names of its dimensions and its coordinates."""
    require("h5netcdf", "netcdf", f"Reading {path}")
    xarray = require("xarray", "netcdf", f"Reading {path}")
    with reading(path, "an xarray netCDF file"):
        check_inside(path, read=_is_coordinate)
        # Times stay numbers with a unit, as they stand in the file, whatever xarray would make of them.
        with xarray.open_dataset(path, engine="h5netcdf", decode_times=False, phony_dims="sort") as dataset:
            told = ", ".join(f"{name} {dict(variable.sizes)}" for name, variable in dataset.data_vars.items())
            numeric = {str(name): v.ndim for name, v in dataset.data_vars.items() if is_numeric(v)}
            chosen = dataset[choose(path, key, numeric, told)]
            check_claims(path, map(str, (chosen.name, *chosen.coords)))
            return xarray_contents(str(path), chosen.load(), dataset.attrs)


def _is_coordinate(dataset: Any) -> bool:
    """Whether xarray reads a dataset as soon as the file is opened; a dimension without coordinates stores nothing."""
    nothing = b"This is a netCDF dimension but not a netCDF variable"
    scale = bytes(dataset.attrs.get("CLASS", b"")) == b"DIMENSION_SCALE"
    return scale and not bytes(dataset.attrs.get("NAME", b"")).startswith(nothing)


def xarray_contents(source: str, variable: xarray.DataArray, attributes: Mapping[Any, Any]) -> Contents:
    """Return the values of one variable, with the names of its dimensions and what its coordinates say."""
    dims = tuple(str(dim) for dim in variable.dims)
    if "time" not in map(role_of, dims):
        # A coordinate in seconds, or of dates, tells what its name does not.
        ticking = [dim for dim in dims if role_of(dim) is None and _seconds_along(variable, dim) is not None]
        dims = tuple("time" if [dim] == ticking else dim for dim in dims)
    labels, trials = (_labels(variable, dims, role) for role in ("features", "trials"))
    missing = set(missing_labels(np.array(trials, dtype=object)))
    timely = [str(dim) for dim, name in zip(variable.dims, dims, strict=True) if is_time(name)]
    times = [_seconds_along(variable, dim) for dim in timely]
    array, remark = variable.to_numpy(), ""
    if timely and times[0] is None and timely[0] in variable.coords and is_numeric(variable.coords[timely[0]]):
        # In which order they stand, times tell in any unit.
        order, remark = time_order(source, variable.coords[timely[0]].to_numpy().astype(np.float64))
        array = array if order is None else np.take(array, order, variable.dims.index(timely[0]))
    return Contents(
        array,
        dims=dims,
        feature_names=tuple(map(as_word, labels)),
        trial_labels=tuple(None if trial in missing else as_word(label) for trial, label in enumerate(trials)),
        unit=str(variable.attrs.get("units", "")),
        bin_size=stated_bin_size(source, {**attributes, **variable.attrs}),
        times=times[0] if times else None,
        remark=remark,
    )


def is_time(dim: str) -> bool:
    """Return whether a dimension is one of time, by its name.

    Example:
        >>> is_time("t")
        True
    """
    return role_of(dim) == "time"


def _labels(variable: xarray.DataArray, dims: tuple[str, ...], role: str) -> list[Any]:
    found = [dim for dim in dims if role_of(dim) == role and dim in variable.coords]
    return list(variable.coords[found[0]].to_numpy()) if found else []


def refuse_key(path: Path, key: str | None) -> None:
    """Raise if a file of one array came with `key`."""
    if key is not None:
        raise ValueError(
            f"`key` chooses among the arrays of a .npz, .nc, .mat or .nwb file; {path} holds one, got key={key!r}."
        )


def _seconds_along(variable: xarray.DataArray, dim: str) -> NDArray[np.floating] | None:
    """Seconds along a dimension, where its coordinate tells them."""
    if dim not in variable.coords:
        return None
    times = variable.coords[dim]
    if times.dtype.kind in "mM":
        ticks = times.to_numpy()
        elapsed: NDArray[np.floating] = (ticks - ticks.min()) / np.timedelta64(1, "s")
        return elapsed
    unit = str(times.attrs.get("units", "")).split(" ")[0].lower()
    if not is_numeric(times) or unit not in SECONDS:
        return None
    return np.asarray(times.to_numpy().astype(np.float64) * SECONDS[unit])
