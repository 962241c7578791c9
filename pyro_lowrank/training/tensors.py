"""Recordings as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_lowrank.data.recording import Recording

TrialArrays = Sequence[Tensor] | Sequence[NDArray[np.floating]]


def as_tensors(recording: Recording | TrialArrays, like: nn.Module | Tensor | None = None) -> tuple[Tensor, ...]:
    """Return a recording as what a model is called with: `(y,)`, or `(y, u)` where it has inputs.

    Shapes: y is `trials x time x features`, u is `trials x time x inputs`; trials of different lengths are padded, y
    with NaN and u with zeros.

    Args:
        recording: a `Recording`, or one array or tensor per trial, `time x features`.
        like: a model or tensor whose floating-point type and device they get; torch's default type if None.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> (y,) = as_tensors([np.zeros((30, 8)), np.zeros((45, 8))], model)
        >>> y.shape, y.dtype, y[0, 30:].isnan().all()
        (torch.Size([2, 45, 8]), torch.float32, tensor(True))
    """
    if not isinstance(recording, Recording):
        recording = Recording.from_trials([_array(trial) for trial in recording])
    tensor = next(like.parameters(), None) if isinstance(like, nn.Module) else like
    dtype = torch.get_default_dtype() if tensor is None else tensor.dtype
    device = None if tensor is None else tensor.device
    arrays = (recording.data,) if recording.inputs is None else (recording.data, recording.inputs)
    # A copy: training must not see it when the recording's own array is written to.
    return tuple(torch.tensor(array, dtype=dtype, device=device) for array in arrays)


def unpack(name: str, model: nn.Module, y: Any, u: Any) -> tuple[Any, Any]:
    """Return the tensors of a recording, or of lists of trials; tensors, and what is neither, as they came."""
    if isinstance(y, Recording):
        if u is not None:
            raise ValueError(f"Inputs came with `{name}`, a Recording, which holds its own: make them part of it.")
        y, u = (*as_tensors(y, model), None)[:2]
        return y, u
    if not _is_trials(y):
        return y, u
    if not _is_trials(u):
        return as_tensors(y, model)[0], u
    joined = Recording.from_trials([_array(trial) for trial in y], [_array(trial) for trial in u])
    y, u = as_tensors(joined, model)
    return y, u


def _is_trials(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, Tensor | np.ndarray) for v in value)


def _array(trial: Any) -> NDArray[np.generic]:
    return trial.detach().cpu().numpy() if isinstance(trial, Tensor) else np.asarray(trial)
