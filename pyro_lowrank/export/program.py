"""Runs of a program of a user's own as ArviZ's groups: all that its state keeps, its data and new draws of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    found: dict[str, list[Arrays]] = {"posterior": [], "posterior_predictive": []}
    data: Arrays = {}
    batch_dims = 1
    for chain in chains:
        rows = [_of_run(run, num_draws, kept, method, predictive) for run in chain]
        batch_dims, data = rows[0][2], rows[0][1]
        for group, parts in found.items():
            parts.append(_joined([row[0][group] for row in rows]))
    groups = {group: _stacked(parts) for group, parts in found.items()}
    of_trials = {
        name: list(_dims_of(name, array.ndim - len(SAMPLE_DIMS), batch_dims))
        for group in groups.values()
        for name, array in group.items()
    }
    names = of_trials | dict(dims or {})
    return {group: named(arrays, names) for group, arrays in groups.items()} | {
        "observed_data": named(data, names, leading=())
    }


def _of_run(
    run: Any, num_draws: int, kept: slice, method: str, predictive: bool
) -> tuple[dict[str, Arrays], Arrays, int]:
    """Return the groups of a run, its data, and the number of leading dims of its states."""
    states = run.smooth_states(num_draws, method=method)
    dims = run.transitions.batch_dims

    def thinned(values: Mapping[Any, Any], time: int) -> Arrays:
        return {
            str(name): as_array(value)[(slice(None),) * min(time, value.dim() - 1) + (kept,)]
            for name, value in values.items()
        }

    groups: dict[str, Arrays] = {"posterior": thinned(states, dims), "posterior_predictive": {}}
    try:
        replayed = run.replay(states if predictive else {name: value[:1] for name, value in states.items()})
    except ValueError as error:
        _log.warning("The data of the program are not exported, nor draws of them: %s", error)
        return groups, {}, dims
    if predictive:
        groups["posterior"] |= thinned(replayed.computed, dims)
        groups["posterior_predictive"] = thinned(replayed.drawn, dims)
    return groups, thinned(replayed.observed, dims - 1), dims


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
