"""Recordings that `pyro-lowrank fit` leaves on the disk."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_lowrank.cli.models import SCALED, build
from pyro_lowrank.cli.prepared import STANDARDISED, Prepared
from pyro_lowrank.data.held_out import held_out
from pyro_lowrank.data.optional import require
from pyro_lowrank.data.orientation import orient
from pyro_lowrank.training.checks import stored_data
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.sources import ArraySource, StoredArray
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.stored import AT_ONCE, PIECE, StoredData, read_parts, spread_evenly, tiles

# Numbers of a .npy file up to which it is read as a whole.
_SMALL = 50_000_000
_CONTAINERS = (".zarr", ".h5", ".hdf5")


def stays_on_disk(path: Path) -> bool:
    """Return whether a file is not to be read as a whole: a large .npy file, or a zarr or HDF5 array."""
    if path.suffix.lower() in _CONTAINERS:
        return True
    if path.suffix.lower() != ".npy" or not path.is_file():
        return False
    try:
        return math.prod(np.load(path, mmap_mode="r", allow_pickle=False).shape) > _SMALL
    except (OSError, ValueError, EOFError):  # What is wrong with it is told where files are read.
        return False


def prepare(options: argparse.Namespace) -> Prepared:
    """Open, split and look through a recording once, and build its model."""
    if options.bin is not None:
        raise ValueError(f"`--bin` is for files that are read as a whole, and {options.data} is not: leave it out.")
    array = _open(options.data, options.key)
    orientation = orient(tuple(array.shape), time_axis=options.time_axis, trials_axis=options.trials_axis)
    print(orientation.sentence)
    if isinstance(array, np.ndarray):
        array = orientation.arrange(array)
    elif (orientation.time, orientation.trials, orientation.features) not in ((0, None, 1), (1, 0, 2)):
        raise ValueError(
            f"{options.data} must hold trials x time x features, or time x features, to be read a part at a time: "
            "store it with its axes in that order."
        )
    y = StoredArray(str(options.data), array)
    u = None if options.inputs is None else StoredArray("inputs", _open(options.inputs, options.inputs_key))
    print("As trials x time bins x features, that is {} x {} x {}.".format(*y.shape))
    places = held_out(y.shape[0], y.shape[1], options.held_out)
    train = _Where.of(places.dim, places.train)
    left = _Where.of(places.dim, places.held_out) if len(places.held_out) else None
    print(places.sentence, flush=True)
    like = torch.zeros((), dtype=torch.float32)
    standardisation = None
    if options.standardise and options.likelihood in SCALED:
        standardisation = _standardisation(
            ArraySource("y", y, None, like.double(), trials=train.trials, times=train.times)
        )
        print(STANDARDISED, flush=True)
    with own_generators(like.device):
        seed_generators(like.device, options.seed)
        model, guide = build(options, y.shape[-1], 0 if u is None else u.shape[-1], options.bin)

    def looked_through(name: str, where: _Where) -> StoredData:
        source = ArraySource(name, y, u, like, trials=where.trials, times=where.times, standardisation=standardisation)
        return stored_data(name, model, guide, source, None)

    return Prepared(
        model=model,
        guide=guide,
        train=looked_through("y", train),
        held_out=None if left is None else looked_through("held_out", left),
        places=places,
        standardisation=standardisation,
        orientation=orientation.sentence,
        bin_size=None,
        feature_names=tuple(f"feature_{feature}" for feature in range(y.shape[-1])),
    )


def _open(path: Path, key: str | None) -> Any:
    """Return the array of a file, not read."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if key is not None:
            raise ValueError(f"A key chooses among the arrays of a file; {path} holds one, got {key!r}.")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    if suffix == ".zarr":
        found = require("zarr", "disk", f"Reading {path}").open(str(path), mode="r")
    elif suffix in (".h5", ".hdf5"):
        found = require("h5py", "disk", f"Reading {path}").File(path, "r")
    else:
        raise ValueError(f"{path} must end in .npy, {', '.join(_CONTAINERS)} to be read a part at a time.")
    if hasattr(found, "shape"):
        return found
    names = [name for name in found if hasattr(found[name], "shape")]
    if key is None and len(names) == 1:
        key = names[0]
    if key is None or key not in found or not hasattr(found[key], "shape"):
        raise ValueError(f"`--key` must name an array of {path}, got {key!r}; it has {', '.join(names) or 'none'}.")
    return found[key]


class _Where(NamedTuple):
    """A part of a recording; all trials, or time bins, where it says nothing."""

    trials: tuple[int, ...] | None = None
    times: range | None = None

    @classmethod
    def of(cls, dim: int, places: NDArray[np.int64]) -> _Where:
        """Return trials, or the time bins from the first to the last."""
        if dim == 0:
            return cls(trials=tuple(places.tolist()))
        return cls(times=range(int(places[0]), int(places[-1]) + 1))


def _standardisation(source: ArraySource) -> Standardisation:
    """Return that of parts which lie evenly in a recording."""
    lengths = source.lengths
    features = source.read(0, 0, 1)[0].shape[-1]
    length = min(PIECE, lengths[0])
    # In double precision, so that half of them take as much memory.
    places = spread_evenly(tiles(lengths), AT_ONCE // 2 // (length * features))
    return Standardisation.of(read_parts(source, places, length, lengths).y)
