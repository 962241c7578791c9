"""Spike times of all units in one array, and the unit of each in another, as archives and sorters store them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyro_lowrank.arrays import distinct
from pyro_lowrank.data.contents import SpikeTrains
from pyro_lowrank.data.matlab import epochs_beside
from pyro_lowrank.data.opening import Refused
from pyro_lowrank.data.variables import Variable, as_word, labels_beside

_UNITS = ("spike_unit", "spike_units", "spike_clusters", "spike_templates", "units", "unit")
TIMES = "spike_times"


def spikes_beside(path: Path, variables: Mapping[str, Variable]) -> SpikeTrains | None:
    """Return the spikes of a file with `spike_times` in seconds and the unit of each, or None if it has no such thing.

    Raises:
        ValueError: if there are spike times, and as many units are not there.
    """
    times = variables.get(TIMES)
    if times is None or times.kind != "numbers" or len(times.shape) != 1:
        return None
    name = next((name for name in _UNITS if name in variables and variables[name].shape == times.shape), None)
    if name is None:
        raise Refused(
            f"{path} holds `{TIMES}`, {times.shape[0]} of them, and no array as long with the unit of each: call it "
            f"one of {', '.join(_UNITS)}."
        )
    found = np.asarray(times.read(), dtype=np.float64)
    units, of_each = np.unique(np.asarray(variables[name].read()), return_inverse=True)
    epochs, no_epochs = epochs_beside(variables)
    return SpikeTrains(
        [found[of_each == index] for index in range(len(units))],
        distinct([as_word(unit) for unit in units.tolist()]),
        epochs=epochs,
        no_epochs=no_epochs,
        labels={} if epochs is None else labels_beside(variables, len(epochs)),
        remark=f" {TIMES} were taken in seconds, {name} as the unit of each.",
    )
