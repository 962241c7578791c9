"""Matrix times vector with batch dims on either side."""

from __future__ import annotations

from torch import Tensor


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
