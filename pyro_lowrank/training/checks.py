"""Whether data fit a model, before a fit begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_lowrank.errors import check_same_type, check_sequence, check_trackable, said_of
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.batches import Batch, observed_bins
from pyro_lowrank.training.steps import parameters_of
from pyro_lowrank.training.tensors import unpack, warn_of_silence


def check_data(
    model: Any, guide: Any, y: Any, u: Any, held_out: Any, held_out_inputs: Any
) -> tuple[Batch, Batch | None]:
    """Return the data to train on and those held out, or raise if they do not fit the model."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("A fit takes gradients, and there are none under torch.inference_mode(): call it outside.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a StateSpaceModel or another torch module, got {type(model).__name__}.")
    y, u = unpack("y", model, y, u)
    _check_sequences("y", model, guide, y, u)
    warn_of_silence(y)
    if isinstance(model, StateSpaceModel):
        _check_memory(model, y)
    if held_out is None:
        if held_out_inputs is not None:
            raise ValueError("`held_out_inputs` came without `held_out`.")
        return Batch.whole(y, u), None
    held_out, held_out_inputs = unpack("held_out", model, held_out, held_out_inputs)
    _check_sequences("held_out", model, guide, held_out, held_out_inputs)
    return Batch.whole(y, u), Batch.whole(held_out, held_out_inputs)


def _check_sequences(name: str, model: nn.Module, guide: Any, y: Tensor, u: Tensor | None) -> None:
    try:
        for each, value in (("y", y), ("u", u)):
            if isinstance(value, Tensor):
                check_trackable(f"`{each}`", value)
        if isinstance(model, StateSpaceModel):
            model.check_data(y, u)
        else:
            _check_any(y, u, parameters_of(model, guide, trainable=True).values())
    except (TypeError, ValueError) as error:
        if name == "y":
            raise
        raise said_of(error, f"In `{name}`: {error}") from error
    if not observed_bins(y).any():
        raise ValueError(f"`{name}` holds NaN only: there is nothing to train on or to evaluate.")


def _check_memory(model: StateSpaceModel, y: Tensor) -> None:
    """Raise if features remember further back than any trial reaches: nothing would tell how."""
    with torch.no_grad():
        memory = model.observation.bind_memory()
    if memory is not None and memory.order >= y.shape[1]:
        raise ValueError(
            f"Features remember `order`={memory.order} time bins, and the longest trial has {y.shape[1]}: pass longer "
            "trials, or a lower order."
        )


def _check_any(y: Tensor, u: Tensor | None, parameters: Iterable[Tensor]) -> None:
    """Check data for a model of the user's own, of which only the parameters are known."""
    for name, value in (("y", y), ("u", u)):
        if value is not None:
            check_sequence(name, value, last=value.shape[-1] if isinstance(value, Tensor) else 0, last_name="features")
            for parameter in parameters:
                check_same_type(name, value, parameter)
    if u is not None and u.shape[:2] != y.shape[:2]:
        raise ValueError(f"`u` must have the trials and time bins of the data, {y.shape[:2]}, got {u.shape[:2]}.")
