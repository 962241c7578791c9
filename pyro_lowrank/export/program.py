"""Runs of a program of a user's own as ArviZ's groups: all that its state keeps, its data and new draws of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import CannotBeReplayed
from pyro_lowrank.export.groups import SAMPLE_DIMS, Variable, as_array, named

Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger("pyro_lowrank")


def of_program(
    chains: Iterable[Sequence[Any]],
    num_draws: int,
    kept: slice,
    *,
    method: str,
    predictive: bool,
    dims: Mapping[str, Sequence[str]] | None,
) -> dict[str, dict[str, Variable]]:
    """Return the groups `posterior` (states and deterministic sites), `posterior_predictive` and `observed_data`.

    Args:
        chains: of runs: one each, or one for each draw.
        num_draws: of each run.
        kept: the time bins.
        method: of smoothing.
        predictive: whether to draw new data.
        dims: names of the dims of states and sites after those of samples.
    """
    runs = [list(chain) for chain in chains]
    first = runs[0][0]
    batch_dims, data = first.transitions.batch_dims, _data(first, kept)
    found: dict[str, list[Arrays]] = {"posterior": [], "posterior_predictive": []}
    for chain in runs:
        rows = [_of_run(run, num_draws, kept, method, predictive and data is not None) for run in chain]
        for group, parts in found.items():
            parts.append(_joined([row[group] for row in rows]))
    groups = {group: _stacked(parts) for group, parts in found.items()}
    of_trials = {
        name: list(_dims_of(name, array.ndim - len(SAMPLE_DIMS), batch_dims))
        for group in groups.values()
        for name, array in group.items()
    }
    names = of_trials | dict(dims or {})
    return {group: named(arrays, names) for group, arrays in groups.items()} | {
        "observed_data": named(data or {}, names, leading=())
    }


def _data(run: Any, kept: slice) -> Arrays | None:
    """Return the data, which are the same for all runs; None of a program that cannot be run along paths."""
    try:
        replayed = run.replay(run.smooth_states(1, method="genealogy"))
    except CannotBeReplayed as reason:
        _log.warning("The data of the program are not exported, nor draws of them: %s", reason)
        return None
    return _thinned(replayed.observed, run.transitions.batch_dims - 1, kept)


def _of_run(run: Any, num_draws: int, kept: slice, method: str, predictive: bool) -> dict[str, Arrays]:
    states, dims = run.smooth_states(num_draws, method=method), run.transitions.batch_dims
    groups: dict[str, Arrays] = {"posterior": _thinned(states, dims, kept), "posterior_predictive": {}}
    if predictive:
        replayed = run.replay(states)
        groups["posterior"] |= _thinned(replayed.computed, dims, kept)
        groups["posterior_predictive"] = _thinned(replayed.drawn, dims, kept)
    return groups


def _thinned(values: Mapping[Any, Any], time: int, kept: slice) -> Arrays:
    return {
        str(name): as_array(value)[(slice(None),) * min(time, value.dim() - 1) + (kept,)]
        for name, value in values.items()
    }


def _dims_of(name: str, number: int, batch_dims: int) -> tuple[str, ...]:
    """Name the dims of a state or a site after those of samples: those of trials and time where there is one plate."""
    if batch_dims != 2 or number < 2:
        return tuple(f"{name}_dim_{i}" for i in range(number))
    if name == "z" and number == 3:
        return "trial", "time", "latent"
    return ("trial", "time", *(f"{name}_dim_{i}" for i in range(number - 2)))


def _joined(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _stacked(chains: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}
