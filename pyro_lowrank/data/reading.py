"""Recordings as the models take them, read from files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.orientation import orient
from pyro_lowrank.data.readers import Contents, is_numeric, read_csv, read_netcdf, read_npy, read_npz
from pyro_lowrank.data.recording import Recording

READERS = {".csv": read_csv, ".nc": read_netcdf, ".npy": read_npy, ".npz": read_npz}


def read_recording(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    time_axis: int | None = None,
    trials_axis: int | None = None,
) -> Recording:
    """Read a recording from a `.npy`, `.npz`, `.csv` or xarray `.nc` file.

    Which axis is which is decided in this order: the arguments; the names of the dimensions (`time`, `trial`,
    `channel`, `unit`, ...); the number of features that the file names; the shape. A 1-d array is one feature over
    time, of a 2-d array the longer axis is time (the first where both are equally long), a 3-d array is
    `trials x time x features`. `Recording.orientation` tells the outcome. Nothing is ever unpickled.

    Shapes: `Recording.data` is `trials x time x features`, with one trial or one feature where the file has no
    such axis.

    Args:
        path: the file. A `.csv` file has a row per time bin; its header, if any, names the features, an empty cell
            is a missing entry, and a column called `time` or `t` holds seconds; one that counts the rows is left out.
        key: which array of a `.npz` or variable of a `.nc` file; needed where several have two or more axes.
        time_axis: axis of time in the file's array.
        trials_axis: axis of trials in the file's array.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the file is a `.nc` file and the extra `netcdf` is not installed.
        ValueError: if the file is of another kind, truncated or damaged; if `key` or an axis does not fit it; if
            the array is empty, has more than three axes, or holds infinities or anything but real numbers.

    Example:
        >>> np.save("eeg.npy", np.zeros((500, 64), dtype=np.float32))
        >>> recording = read_recording("eeg.npy")
        >>> recording.data.shape
        (1, 500, 64)
        >>> print(recording.orientation)
        2-d array (500, 64): took axis 0 as time because it is the longer axis, axis 1 as features;
        pass `time_axis` to override.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise FileNotFoundError(f"`path` must be a recording ({', '.join(READERS)}), but there is {what} at {path}.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"`path` must end in one of {', '.join(READERS)}, got {path.name!r}; save it as one of these.")
    contents = reader(path, key)
    _check_array(path, contents.array)
    orientation = orient(
        contents.array.shape,
        dims=contents.dims,
        num_names=len(contents.feature_names),
        time_axis=time_axis,
        trials_axis=trials_axis,
    )
    dtype = np.float32 if contents.array.dtype == np.float32 else np.float64
    values: NDArray[np.floating] = np.ascontiguousarray(orientation.arrange(contents.array).astype(dtype))
    _check_values(path, values)
    return Recording(
        data=values,
        bin_size=_bin_size(path, contents),
        feature_names=_feature_names(path, contents, values.shape[-1]),
        orientation=orientation.sentence + contents.remark,
    )


def _check_array(path: Path, array: NDArray[np.generic]) -> None:
    if not is_numeric(array):
        raise ValueError(f"{path} must hold real numbers, got an array of dtype {array.dtype} and shape {array.shape}.")
    if not 1 <= array.ndim <= 3:
        raise ValueError(
            f"{path} must hold an array of one to three axes (trials x time x features), got the shape {array.shape}; "
            "choose a part of it, or join the axes that belong together."
        )
    if array.size == 0:
        raise ValueError(
            f"{path} must hold at least one time bin and one feature, got an array of shape {array.shape}."
        )


def _check_values(path: Path, values: NDArray[np.floating]) -> None:
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        trial, time, feature = infinite[0]
        raise ValueError(
            f"{path} must hold finite numbers, or NaN for a missing entry; got {len(infinite)} infinite entries, "
            f"the first at trial {trial}, time {time}, feature {feature}. Replace them by NaN to have them left out."
        )
    if np.isnan(values).all():
        raise ValueError(f"{path} must hold at least one entry that is not missing, got NaN only.")


def _bin_size(path: Path, contents: Contents) -> float | None:
    if contents.bin_size is not None or contents.times is None or len(contents.times) < 2:
        return contents.bin_size
    steps = np.diff(contents.times)
    bin_size = float(np.median(steps))
    # Times are often rounded, to milliseconds say: within a tenth of a bin they are still even.
    if bin_size > 0 and np.allclose(steps, bin_size, rtol=0.1, atol=0.0):
        return float(np.mean(steps))
    warnings.warn(
        f"The times in {path} are not evenly spaced, so that the bin size is not known; every row is taken as one bin. "
        "Resample the recording if that is not what you want.",
        stacklevel=3,
    )
    return None


def _feature_names(path: Path, contents: Contents, num_features: int) -> tuple[str, ...]:
    names = contents.feature_names
    if names and len(names) != num_features:
        warnings.warn(
            f"{path} names {len(names)} features, but {num_features} were read; the names are left out.", stacklevel=3
        )
        names = ()
    return names or tuple(f"feature_{feature}" for feature in range(num_features))
