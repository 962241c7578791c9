"""Folders that Phy and Kilosort write: spikes in samples, the cluster of each, and what became of the clusters."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.contents import SpikeTrains
from pyro_lowrank.data.opening import Refused, reading
from pyro_lowrank.data.readers import read_npy

# What a person decided goes before what the sorter says.
_GROUPS = (("cluster_group.tsv", "group"), ("cluster_KSLabel.tsv", "KSLabel"))
_SAMPLE_RATE = re.compile(r"^\s*sample_rate\s*=\s*([0-9.eE+_-]+)", re.MULTILINE)
_MOST_BYTES = 2**20


def is_phy(folder: Path) -> bool:
    """Return whether a folder holds the output of Phy or Kilosort."""
    return (folder / "spike_times.npy").is_file()


def read_phy(folder: Path, key: str | None) -> SpikeTrains:
    """Read the spikes of the clusters that are called good; of all but noise where none is.

    `params.py` is read as text for its `sample_rate`, and never run.
    """
    if key is not None:
        raise ValueError(f"`key` chooses among the arrays of a file; {folder} is a folder of Phy, got key={key!r}.")
    times = _vector(folder / "spike_times.npy")
    name = next((one for one in ("spike_clusters.npy", "spike_templates.npy") if (folder / one).is_file()), None)
    if name is None:
        raise Refused(f"{folder} holds spike_times.npy, and no spike_clusters.npy that tells the cluster of each.")
    clusters = _vector(folder / name)
    if len(times) != len(clusters):
        raise Refused(f"{folder} holds {len(times)} spike times, and the clusters of {len(clusters)}.")
    seconds = times.astype(np.float64) / _sample_rate(folder)
    every = [int(cluster) for cluster in np.unique(clusters)]
    labels = _labels(folder)
    good = [cluster for cluster in every if labels.get(cluster) == "good"]
    kept = good or [cluster for cluster in every if labels.get(cluster) != "noise"]
    told = "called good" if good else "not called noise, as none is called good"
    return SpikeTrains(
        [seconds[clusters == cluster] for cluster in kept],
        tuple(map(str, kept)),
        remark=f" Of {len(every)} clusters those {told} were taken.",
    )


def _vector(path: Path) -> NDArray[Any]:
    array = np.asarray(read_npy(path, None).array).reshape(-1)
    if array.dtype.kind not in "iuf":
        raise Refused(f"{path} must hold numbers, got an array of dtype {array.dtype}.")
    return array


def _sample_rate(folder: Path) -> float:
    path = folder / "params.py"
    found = _SAMPLE_RATE.search(_text(path)) if path.is_file() else None
    try:
        rate = float(found[1]) if found else 0.0
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise Refused(f"{path} must tell the sampling rate in Hz, in a line such as `sample_rate = 30000`.")
    return rate


def _labels(folder: Path) -> dict[int, str]:
    """What each cluster is called."""
    labels: dict[int, str] = {}
    for name, column in reversed(_GROUPS):
        path = folder / name
        if not path.is_file():
            continue
        with reading(path, "a table of clusters"):
            rows = csv.DictReader(_text(path).splitlines(), delimiter="\t")
            labels |= {int(row["cluster_id"]): row[column].strip() for row in rows if row[column]}
    return labels


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise Refused(f"{path} is larger than such a file can be, {path.stat().st_size} bytes.")
    return path.read_text(encoding="utf-8", errors="replace")
