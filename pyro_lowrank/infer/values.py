"""The values that a run of a model was made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.smc.transitions import BuiltInTransitions


def values_of(model: BuiltInTransitions) -> Iterator[Tensor]:
    """All tensors that a model has at the parameter values of its run."""
    return _tensors((model.transition, model.emission, None if model.data.past is None else model.data.past.memory))


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of nested dataclasses, sequences and modules."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
