"""Fluorescence as Suite2p writes it: a folder of arrays, of which the pickled ones are never opened."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import Contents, recording_of
from pyro_lowrank.data.readers import read_npy
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive

Traces = NDArray[np.float64]


def read_suite2p(
    folder: str | os.PathLike[str],
    *,
    bin_size: float,
    neuropil: float = 0.7,
    only_cells: bool = True,
    baseline: float | None = 20.0,
) -> Recording:
    r"""Read the fluorescence of a folder that Suite2p wrote, such as `suite2p/plane0`.

    .. math:: F = F_{\mathrm{roi}} - c\, F_{\mathrm{neuropil}}, \qquad \Delta F / F = F / F_0 - 1

    Of its files `F.npy`, `Fneu.npy` and `iscell.npy` are read. The frame rate stands in `ops.npy` and `settings.npy`,
    which are pickled: opening one can run code, and neither is. Pass `bin_size`, one over the rate (per plane).

    Args:
        folder: the folder.
        bin_size: seconds per frame.
        neuropil: c, the share of the neuropil that is taken off; 0.7 is Suite2p's own, 0 takes nothing off.
        only_cells: leave out regions of interest that Suite2p, or who corrected it, does not take for cells.
        baseline: the percentile of each cell's fluorescence that is its F_0; None for F itself.

    Returns:
        One trial, `1 x time x cells`, with the numbers of the regions of interest as names.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is not in it.
        ValueError: if a file is damaged, of other shape or pickled, no region is a cell, or F_0 is not above zero.

    Example:
        >>> import pathlib
        >>> folder = pathlib.Path("plane0"); folder.mkdir()
        >>> np.save(folder / "F.npy", 100 + np.random.default_rng(0).random((3, 500)))
        >>> np.save(folder / "Fneu.npy", np.full((3, 500), 20.0))
        >>> np.save(folder / "iscell.npy", np.array([[1.0, 0.9], [0.0, 0.1], [1.0, 0.8]]))
        >>> recording = read_suite2p(folder, bin_size=1 / 30)
        >>> recording.data.shape, recording.feature_names
        ((1, 500, 2), ('roi_0', 'roi_2'))

    References:
        Pachitariu et al. (2017), bioRxiv 061507.
    """
    path = Path(folder)
    step = check_positive("bin_size", bin_size)
    fluorescence = _read(path, "F.npy")
    shape, chosen = fluorescence.shape, np.arange(len(fluorescence))
    if neuropil:
        around = _read(path, "Fneu.npy")
        if around.shape != shape:
            raise ValueError(f"{path}: Fneu.npy has the shape {around.shape} and F.npy {shape}; they must be one.")
        fluorescence = fluorescence - check_positive("neuropil", neuropil) * around
    if only_cells:
        is_cell = _read(path, "iscell.npy")
        if is_cell.shape != (shape[0], 2):
            raise ValueError(
                f"{path}: iscell.npy must hold a row (whether it is a cell, how likely) for each of the {shape[0]} "
                f"regions of F.npy, got {is_cell.shape}."
            )
        chosen = np.flatnonzero(is_cell[:, 0] > 0)
        if not len(chosen):
            raise ValueError(
                f"{path}: none of the {shape[0]} regions is a cell; pass only_cells=False to read them all."
            )
    traces = fluorescence[chosen]
    if baseline is not None:
        traces = _relative(path, traces, chosen, baseline)
    unit = "a.u." if baseline is None else "dF/F"
    remark = " Its ops.npy, which is pickled, was not opened: the bin size is the one that was passed."
    contents = Contents(
        traces,
        ("feature", "time"),
        tuple(f"roi_{number}" for number in chosen),
        unit=unit,
        bin_size=step,
        remark=remark,
    )
    return recording_of(str(path), contents, time_axis=None, trials_axis=None)


def _read(folder: Path, name: str) -> Traces:
    path = folder / name
    if not path.is_file():
        planes = sorted(str(each.parent) for each in folder.glob("*/F.npy")) if folder.is_dir() else []
        hint = f"; pass one of its planes: {', '.join(planes)}" if planes else ""
        raise FileNotFoundError(f"A folder of Suite2p must hold {name}, and there is none in {folder}{hint}.")
    array = read_npy(path, None).array
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold a 2-d array of numbers, got {array.dtype} of shape {array.shape}.")
    return array.astype(np.float64)


def _relative(path: Path, traces: Traces, chosen: NDArray[np.intp], percentile: float) -> Traces:
    if not 0 <= percentile <= 100:
        raise ValueError(f"`baseline` is a percentile, from 0 to 100, got {percentile}; pass None for F itself.")
    rest = np.nanpercentile(traces, percentile, axis=1, keepdims=True)
    bad = np.flatnonzero(~(rest[:, 0] > 0))
    if len(bad):
        raise ValueError(
            f"{path}: the fluorescence of region {chosen[bad[0]]} at rest, less the neuropil, is "
            f"{rest[bad[0], 0]:.3g}, of which no share can be taken: pass baseline=None for F itself, "
            "or a smaller `neuropil`."
        )
    found: Traces = traces / rest - 1
    return found
