"""What a picture shows of a recording: numbers, and the names and units that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]


class Recorded(Protocol):
    """A `pyro_lowrank.data.Recording`, whose names, units and bin size label the axes."""

    @property
    def data(self) -> Array:
        """`trials x time x features`."""

    @property
    def trial_lengths(self) -> NDArray[np.integer[Any]]:
        """Time bins of each trial."""

    @property
    def bin_size(self) -> float | None:
        """Seconds per time bin."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One per feature."""

    @property
    def feature_units(self) -> tuple[str, ...]:
        """One per feature, or nothing."""


class Shown(NamedTuple):
    """One trial, `time x features`, and what its axes say."""

    values: Array
    names: tuple[str, ...]
    bin_size: float | None
    unit: str


def as_array(value: Any) -> Array:
    """An array of a tensor or of anything else that holds numbers."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)


def is_recording(value: Any) -> bool:
    """Whether something is a `Recording` rather than an array."""
    return hasattr(value, "feature_names") and hasattr(value, "trial_lengths")


def shown(
    y: ArrayLike | Recorded,
    trial: int = 0,
    *,
    names: Sequence[str] = (),
    bin_size: float | None = None,
    unit: str | None = None,
) -> Shown:
    """Return one trial of a recording with its labels, or an array as it came; what is given goes before it.

    Raises:
        ValueError: if there is no such trial, or an array is not one trial.
    """
    recording: Any = y
    if not is_recording(recording):
        values = as_array(y)
        if values.ndim != 2:
            raise ValueError(f"One trial, time x features, or a Recording can be drawn, got shape {values.shape}.")
        return Shown(values, tuple(names), bin_size, "a.u." if unit is None else unit)
    if not -len(recording.data) <= trial < len(recording.data):
        raise ValueError(f"`trial` must be one of the {len(recording.data)} trials of the recording, got {trial}.")
    units = set(recording.feature_units)
    return Shown(
        as_array(recording.data[trial, : recording.trial_lengths[trial]]),
        tuple(names) or tuple(recording.feature_names),
        recording.bin_size if bin_size is None else bin_size,
        unit if unit is not None else units.pop() if len(units) == 1 else "a.u.",
    )


def time_label(bin_size: float | None) -> str:
    """Return what an axis of time says."""
    return "time (bins)" if bin_size is None else "time (s)"
