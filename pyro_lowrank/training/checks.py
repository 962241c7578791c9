"""Whether data fit a model, before a fit begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_lowrank.data.held_out import held_out as places_held_out
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_same_type, check_sequence, check_trackable, said_of
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.batches import Batch, Data, observed_bins
from pyro_lowrank.training.silence import Silence
from pyro_lowrank.training.sources import ArraySource, PiecesSource, is_stored, source_of
from pyro_lowrank.training.steps import parameters_of
from pyro_lowrank.training.stored import StoredData, sample_of
from pyro_lowrank.training.tensors import unpack

Tell = Callable[[list[str]], None]


def check_data(
    model: Any, guide: Any, y: Any, u: Any, held_out: Any, held_out_inputs: Any, tell: Tell
) -> tuple[Data, Data | None]:
    """Return the data to train on and those held out, or raise if they do not fit the model."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("A fit takes gradients, and there are none under torch.inference_mode(): call it outside.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a StateSpaceModel or another torch module, got {type(model).__name__}.")
    data = _data("y", model, guide, y, u, tell)
    if isinstance(model, StateSpaceModel):
        _check_memory(model, data.shape[1])
    if held_out_inputs is not None and (held_out is None or isinstance(held_out, Real)):
        raise ValueError("`held_out_inputs` came without `held_out`, or with a share of `y`, which has its own inputs.")
    if isinstance(held_out, Real):
        return _split(data, float(held_out), y if isinstance(y, Recording) else None, tell)
    if held_out is None:
        return data, None
    return data, _data("held_out", model, guide, held_out, held_out_inputs, tell)


def _split(data: Data, share: float, recording: Recording | None, tell: Tell) -> tuple[Data, Data | None]:
    """Hold a share of data in memory out."""
    if not isinstance(data, Batch):
        raise TypeError(
            f"A share, here `held_out={share}`, is held out of data in memory; of data that stay where they are pass "
            "the part that is held out."
        )
    places = places_held_out(data.shape[0], data.shape[1], share, recording)
    tell([places.sentence])
    if not len(places.held_out):
        return data, None

    def part(where: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(where).to(data.y.device)
        y, u = (None if each is None else each.index_select(places.dim, rows) for each in (data.y, data.u))
        assert y is not None
        return Batch.whole(y, u)

    train, left = part(places.train), part(places.held_out)
    for rest, where in ((train, "what is left"), (left, "what is held out")):
        if not bool(observed_bins(rest.y).any()):
            raise ValueError(
                f"With `held_out={share:g}`, {where} of `y` holds NaN only: leave out trials or ends without data, or "
                "pass the part that is held out."
            )
    return train, left


def stored_data(name: str, model: nn.Module, guide: Any, y: Any, u: Any) -> StoredData:
    """Return data that are not in memory, looked through once, or raise if they do not fit the model."""
    like = next(model.parameters(), torch.zeros(()))
    source = source_of(name, y, u, like)
    data = StoredData(name, source, partial(_check, model, guide))
    # For what is to be warned of.
    _check(model, guide, *data.sample.arguments)
    return data


def sample_of_data(model: nn.Module, y: Any, u: Any) -> Batch:
    """Return what statistics of data that are not in memory are taken of: of an array no more than that is read."""
    like = next(model.parameters(), torch.zeros(()))
    source = source_of("y", y, u, like)
    if isinstance(source, ArraySource | PiecesSource):
        return sample_of(source, source.lengths)
    return stored_data("y", model, None, source, None).sample


def _data(name: str, model: nn.Module, guide: Any, y: Any, u: Any, tell: Tell) -> Data:
    if isinstance(y, StoredData):
        return y
    if is_stored(y) or is_stored(u):
        tell([f"Looking through `{name}` once, which stays where it is."])
        data = stored_data(name, model, guide, y, u)
        _check_some(name, data.observed)
        if name == "y":
            data.silence.warn()
        return data
    y, u = unpack(name, model, y, u)
    _check_sequences(name, model, guide, y, u)
    if name == "y":
        silence = Silence()
        silence.see(0, y)
        silence.warn()
    return Batch.whole(y, u)


def _check(model: nn.Module, guide: Any, y: Tensor, u: Tensor | None = None) -> None:
    for each, value in (("y", y), ("u", u)):
        if isinstance(value, Tensor):
            check_trackable(f"`{each}`", value)
    if isinstance(model, StateSpaceModel):
        model.check_data(y, u)
    else:
        _check_any(y, u, parameters_of(model, guide, trainable=True).values())


def _check_sequences(name: str, model: nn.Module, guide: Any, y: Tensor, u: Tensor | None) -> None:
    try:
        _check(model, guide, y, u)
    except (TypeError, ValueError) as error:
        if name == "y":
            raise
        raise said_of(error, f"In `{name}`: {error}") from error
    _check_some(name, observed_bins(y))


def _check_some(name: str, observed: Tensor) -> None:
    if not observed.any():
        raise ValueError(f"`{name}` holds NaN only: there is nothing to train on or to evaluate.")


def _check_memory(model: StateSpaceModel, longest: int) -> None:
    """Raise if features remember further back than any trial reaches: nothing would tell how."""
    with torch.no_grad():
        memory = model.observation.bind_memory()
    if memory is not None and memory.order >= longest:
        raise ValueError(
            f"Features remember `order`={memory.order} time bins, and the longest trial has {longest}: pass longer "
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
