"""Tensor arithmetic under batch dims: those of particles and trials, and those of sampled parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def holds_numbers(x: Any) -> bool:
    """Return whether an object is a tensor of numbers that an array can be made of; in torch's transforms it is not.

    Example::

        >>> import torch
        >>> holds_numbers(torch.zeros(2)), holds_numbers(torch.nn.Parameter(torch.zeros(2)))
        (True, False)
    """
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def apply_matrix(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return `matrix @ vector` for `vector` of shape `... x columns`; `matrix` may carry batch dims of its own.

    Weights get batch dims when they are sampled (a prior on the weights under a vectorised inference).

    Example::

        >>> import torch
        >>> apply_matrix(torch.ones(2, 3), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def apply_per_trial(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrices @ vectors` for one matrix per trial, or one for all: `trials x rows x columns`.

    Vectors are `particles x trials x columns`.

    Example::

        >>> import torch
        >>> apply_per_trial(torch.ones(5, 2, 3), torch.ones(7, 5, 3)).shape
        torch.Size([7, 5, 2])
    """
    if matrices.shape[0] == 1:
        return vectors @ matrices[0].mT
    return torch.einsum("bij,...bj->...bi", matrices, vectors)


def time_in_front(sequence: Tensor, batch_dims: int) -> Tensor:
    """Return `... x time x dim` as `time x ... x dim`, with singleton dims for the batch dims that it lacks.

    The batch dims of sampled parameters line up with particles and trials, and must not meet time: whatever is computed
    at all times at once has time in front.

    Example::

        >>> import torch
        >>> time_in_front(torch.ones(7, 50, 3), 2).shape
        torch.Size([50, 1, 7, 3])
    """
    sequence = sequence.movedim(-2, 0)
    lacking = batch_dims - (sequence.dim() - 2)
    return sequence.reshape(sequence.shape[:1] + (1,) * lacking + sequence.shape[1:])


def expand_together(*vectors: Tensor) -> list[Tensor]:
    """Return vectors `... x dim`, of whatever dim each, with the same leading dims.

    Example::

        >>> import torch
        >>> [x.shape for x in expand_together(torch.ones(7, 5, 3), torch.ones(5, 2))]
        [torch.Size([7, 5, 3]), torch.Size([7, 5, 2])]
    """
    batch = torch.broadcast_shapes(*(vector.shape[:-1] for vector in vectors))
    return [vector.expand(*batch, vector.shape[-1]) for vector in vectors]
