"""What a recording holds, in a few lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from pyro_lowrank.arrays import missing_labels

if TYPE_CHECKING:
    from pyro_lowrank.data.recording import Recording

_COUNTS = {"counts", "spikes"}


def description(recording: Recording) -> list[str]:
    """Return lines that tell what a recording holds: its size, names, conditions, inputs, rates and gaps."""
    trials, time, features = recording.data.shape
    shortest = int(recording.trial_lengths.min())
    ragged = f"{shortest} to " if shortest < time else ""
    bins = "" if recording.bin_size is None else f" ({recording.bin_size:g} s)"
    lines = [
        f"Recording: {_number(trials, 'trial')} x {ragged}{_number(time, 'time bin')}{bins} x "
        f"{_number(features, 'feature')}"
    ]
    if recording.bin_size is not None:
        lasting = f"{shortest * recording.bin_size:.4g} to " if ragged else ""
        lines.append(f"  duration        {lasting}{time * recording.bin_size:.4g} s per trial")
    units = sorted(set(recording.feature_units))
    if not all(name == f"feature_{index}" for index, name in enumerate(recording.feature_names)) or units:
        unit = f" ({', '.join(units)})" if units else ""
        lines.append(f"  features        {listed(recording.feature_names, 8)}{unit}")
    if recording.inputs is not None:
        lines.append(f"  inputs          {listed(recording.input_names, 8)}")
    if recording.conditions is not None:
        lines.append(f"  conditions      {_conditions(recording)}")
    if set(units) <= _COUNTS and units and recording.bin_size is not None:
        lines.append(f"  rates           {_rates(recording)}")
    recorded = int(recording.trial_lengths.sum()) * features
    missing = recorded - int(recording.mask.sum())
    if missing:
        lines.append(f"  missing         {missing} of {recorded} entries ({missing / recorded:.1%})")
    return lines


def listed(names: tuple[str, ...], most: int = 12) -> str:
    """Return names in a row, the first ones of many.

    Example:
        >>> listed(("a", "b", "c"), 2)
        'a, b, ... (3 in all)'
    """
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _conditions(recording: Recording) -> str:
    assert recording.conditions is not None
    without = set(missing_labels(recording.conditions))
    labels = [str(label) for trial, label in enumerate(recording.conditions.tolist()) if trial not in without]
    number = Counter(labels)
    told = listed(tuple(f"{label} ({count})" for label, count in number.items()), 6)
    return f"{len(number)}" + f", {len(without)} trials have none" * bool(without) + f": {told}" * bool(number)


def _rates(recording: Recording) -> str:
    """Spikes per second over all that was recorded, of the features together and of the extremes."""
    assert recording.bin_size is not None
    seen = recording.mask.sum((0, 1))
    rates = np.nansum(recording.data, (0, 1))[seen > 0] / (seen[seen > 0] * recording.bin_size)
    silent = int((rates == 0).sum())
    told = f"{np.median(rates):.3g} Hz in the median, from {rates.min():.3g} to {rates.max():.3g}"
    return told + f"; {_number(silent, 'feature')} silent" * bool(silent)
