"""What a program of a user's own says along paths: its data, new draws of them, and what it computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.infer.paths import bins_of
from pyro_lowrank.smc.loop import State
from pyro_lowrank.smc.replayed import ReplayedTransitions

Bins = dict[str, list[Tensor]]


class Replayed(NamedTuple):
    """Sites that every time bin of a program has under one name, by name.

    Attributes:
        observed: the data, `trials x time x ...`, or whatever plates the program has; NaN where masked.
        drawn: new draws of them, `draws x trials x time x ...`.
        computed: what `pyro.deterministic` keeps, likewise.
    """

    observed: dict[str, Tensor]
    drawn: dict[str, Tensor]
    computed: dict[str, Tensor]


def replay(transitions: ReplayedTransitions, states: State) -> Replayed:
    """Run a program along paths, and collect what it observes and computes.

    Args:
        transitions: the program and its data.
        states: of paths, `draws x trials x time x ...`.

    Raises:
        CannotBeReplayed: if the program cannot be run along paths.
    """
    dims = transitions.batch_dims
    path = bins_of(states, dims)
    observed: Bins = {}
    drawn: Bins = {}
    computed: Bins = {}
    for sites in transitions.along(path):
        for site in sites:
            if "_deterministic" in (site["infer"] or {}):
                computed.setdefault(site["name"], []).append(site["value"])
            elif site["is_observed"] and site["value"].numel():
                shape = site["fn"].shape()
                # The data are the same for all paths.
                observed.setdefault(site["name"], []).append(_kept(site).expand(shape)[0])
                drawn.setdefault(site["name"], []).append(site["fn"]().expand(shape))
    return Replayed(
        *(_over_time(values, len(path), at) for values, at in ((observed, dims - 1), (drawn, dims), (computed, dims)))
    )


def _kept(site: Any) -> Tensor:
    """Return the data of a site, NaN where it is masked."""
    value, mask = site["value"], site["mask"]
    if mask is None or mask is True:
        return value
    kept = torch.as_tensor(mask)
    kept = kept.reshape(*kept.shape, *(1,) * site["fn"].event_dim)
    return torch.where(kept, value, torch.nan)


def _over_time(bins: Bins, num_steps: int, dim: int) -> dict[str, Tensor]:
    return {
        name: torch.stack(values, dim)
        for name, values in bins.items()
        if len(values) == num_steps and len({value.shape for value in values}) == 1 and values[0].dim() >= dim
    }
