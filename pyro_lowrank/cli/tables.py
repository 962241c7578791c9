"""Bands over trials and time, as a table and as an xarray file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data import Recording
from pyro_lowrank.export.bands import netcdf_bytes
from pyro_lowrank.files import write_whole

Array = NDArray[np.floating[Any]]


def write_bands(
    folder: Path,
    name: str,
    bands: Mapping[str, tuple[Sequence[str], Array]],
    recording: Recording,
    *,
    first_bins: NDArray[np.integer[Any]],
    lengths: NDArray[np.integer[Any]],
    attributes: Mapping[str, Any],
) -> list[str]:
    """Write `name.csv`, and `name.nc` where the extra `netcdf` is there; return the names of the files.

    Args:
        folder: where they go.
        name: of the files.
        bands: by the name of a variable, its columns' names and `3 x trials x time x columns`: mean, lower, upper.
        recording: whose trials they are.
        first_bins: time bin of the recording at which each trial begins in the table, `trials`.
        lengths: time bins of each trial.
        attributes: of the xarray file.
    """
    write_whole(folder / f"{name}.csv", _table(bands, recording, first_bins, lengths).encode())
    try:
        content = netcdf_bytes(
            bands,
            trials=recording.trial_names,
            conditions=recording.conditions,
            first_bins=first_bins,
            lengths=lengths,
            bin_size=recording.bin_size,
            attributes=attributes,
        )
    except ModuleNotFoundError as error:
        print(error)
        return [f"{name}.csv"]
    write_whole(folder / f"{name}.nc", content)
    return [f"{name}.csv", f"{name}.nc"]


def _table(
    bands: Mapping[str, tuple[Sequence[str], Array]],
    recording: Recording,
    first_bins: NDArray[np.integer[Any]],
    lengths: NDArray[np.integer[Any]],
) -> str:
    columns = [name for names, _ in bands.values() for name in names]
    heads = [f"{column}{kind}" for column in columns for kind in ("", "_lower", "_upper")]
    # trials x time x (columns x three), the three of a column side by side.
    values = np.concatenate([np.moveaxis(each, 0, -1) for _, each in bands.values()], 2)
    values = values.reshape(*values.shape[:2], -1)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    seconds = [] if recording.bin_size is None else ["seconds"]
    condition = [] if recording.conditions is None else ["condition"]
    writer.writerow(["trial", *condition, "bin", *seconds, *heads])
    for trial, name in enumerate(recording.trial_names):
        told = [] if recording.conditions is None else [recording.conditions[trial]]
        for step in range(int(lengths[trial])):
            bin_ = int(first_bins[trial]) + step
            time = [] if recording.bin_size is None else [f"{(bin_ + 0.5) * recording.bin_size:.9g}"]
            writer.writerow([name, *told, bin_, *time, *(f"{value:.7g}" for value in values[trial, step])])
    return text.getvalue()


def read_latents(path: Path) -> Array:
    """Return the latents of a table that `latents` wrote, `trials x time x rank`, NaN after a trial's end.

    Raises:
        ValueError: if the file is no such table.
    """
    trials: dict[str, list[list[float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = [name for name in rows.fieldnames or () if re.fullmatch(r"latent_\d+", name)]
            for row in rows:
                trials.setdefault(row["trial"], []).append([float(row[name]) for name in columns])
    except (KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} must be the latents.csv of `pyro-lowrank latents`: {error}.") from error
    if not trials or not columns:
        raise ValueError(f"{path} must be the latents.csv of `pyro-lowrank latents`; it has no column latent_1.")
    return Recording.from_trials([np.array(values) for values in trials.values()]).data
