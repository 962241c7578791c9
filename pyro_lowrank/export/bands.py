"""Means and bands over trials and time, as a netCDF file that xarray reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import require

Array = NDArray[np.floating[Any]]


def netcdf_bytes(
    bands: Mapping[str, tuple[Sequence[str], Array]],
    *,
    trials: Sequence[str],
    conditions: NDArray[np.generic] | None,
    first_bins: NDArray[np.integer[Any]],
    lengths: NDArray[np.integer[Any]],
    bin_size: float | None,
    attributes: Mapping[str, Any],
) -> bytes:
    """Return a file with `mean`, `lower`, `upper` of each variable, `trial x time x columns`, NaN after a trial's end.

    Args:
        bands: by the name of a variable, the names of its columns and `3 x trials x time x columns`.
        trials: names.
        conditions: labels of the trials, or None.
        first_bins: time bin of the recording at which each trial begins, `trials`.
        lengths: time bins of each trial, `trials`.
        bin_size: seconds per time bin, or None.
        attributes: of the file.

    Raises:
        ModuleNotFoundError: if the extra `netcdf` is not installed.
    """
    require("h5netcdf", "netcdf", "A netCDF file")
    xarray = require("xarray", "netcdf", "A netCDF file")
    variables: dict[str, Any] = {}
    time = np.arange(next(iter(bands.values()))[1].shape[2])
    coordinates: dict[str, Any] = {"trial": list(trials), "first_bin": ("trial", np.asarray(first_bins))}
    if bin_size is None:
        coordinates["time"] = ("time", time, {"long_name": "time bins after the first"})
    else:
        coordinates["time"] = ("time", (time + 0.5) * bin_size, {"units": "s", "long_name": "since the first bin"})
    if conditions is not None:
        coordinates["condition"] = ("trial", [str(label) for label in conditions.tolist()])
    within = time < np.asarray(lengths)[:, np.newaxis]
    for name, (columns, values) in bands.items():
        dim = f"{name}_dim"
        coordinates[dim] = list(columns)
        for kind, value in zip(("mean", "lower", "upper"), values, strict=True):
            kept = np.where(within[..., np.newaxis], value, np.nan)
            variables[f"{name}_{kind}"] = (("trial", "time", dim), kept)
    dataset = xarray.Dataset(variables, coordinates, dict(attributes))
    content = io.BytesIO()
    dataset.to_netcdf(content, engine="h5netcdf")
    return content.getvalue()
