"""How the weights of a low-rank network are drawn before training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def uniform(rows: int, columns: int, **factory: Any) -> Tensor:
    r"""Draw a matrix with entries uniform between plus and minus 1 / sqrt(columns)."""
    return (2 * torch.rand(rows, columns, **factory) - 1) / columns**0.5


def uniform_weights(rank: int, units: int, **factory: Any) -> tuple[Tensor, Tensor]:
    """Draw M `units x rank`, within 1 / sqrt(rank), and V `rank x units`, within 1 / sqrt(units)."""
    return uniform(units, rank, **factory), uniform(rank, units, **factory)


def gaussian_weights(rank: int, units: int, overlap: float, **factory: Any) -> tuple[Tensor, Tensor]:
    r"""Draw M and V as Gaussians, entry by entry correlated with `overlap`.

    The standard deviations, 1 / sqrt(3 rank) and 1 / sqrt(3 units), are those of the uniform weights.
    """
    left = torch.randn(units, rank, **factory)
    right = overlap * left.mT + (1 - overlap**2) ** 0.5 * torch.randn(rank, units, **factory)
    return left / (3 * rank) ** 0.5, right / (3 * units) ** 0.5
