"""Tensor arithmetic under batch dims: those of particles and trials, and those of sampled parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def without_repetition(x: Tensor) -> Tensor:
    """Return a tensor whose dims that repeat the same numbers, as after `expand`, are of size 1.

    Example::

        >>> import torch
        >>> without_repetition(torch.arange(3).expand(2, 3)).shape
        torch.Size([1, 3])
    """
    for dim, size in enumerate(x.shape):
        if size > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x


def as_one_call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let those who record what torch functions a program calls see a function of tensors as one of these.

    For functions that read the numbers of their tensors, or that have a gradient of their own.

    Example::

        >>> import torch
        >>> doubled = as_one_call(lambda x: torch.from_numpy(2 * x.numpy()))
        >>> class Names(torch.overrides.TorchFunctionMode):
        ...     def __torch_function__(self, func, types, args=(), kwargs=None):
        ...         print(func.__name__)
        ...         return func(*args)
        >>> with Names():
        ...     x = doubled(torch.ones(2))
        ones
        <lambda>
    """

    @wraps(function)
    def called(*args: Any) -> Tensor:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if has_torch_function(tensors):
            found: Tensor = handle_torch_function(called, tensors, *args)
            return found
        return function(*args)

    return called


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
