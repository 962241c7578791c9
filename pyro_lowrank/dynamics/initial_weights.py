"""How the weights of a low-rank network are drawn before training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation

# Currents so large that of an activation only its outermost slopes matter.
_FAR = 1e4
_MOST_DIRECTIONS, _ROUNDS = 100, 20


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


@torch.no_grad()
def contracting(decay: Tensor, left: Tensor, right: Tensor, activation: Activation) -> Tensor:
    r"""Return V, shrunk if need be so that the latents do not run away to infinity: s V with, far from the origin,

    .. math:: |f(d)| \le |d|, \quad f(d) = a d + s V \phi_\infty(M d), \quad \phi_\infty(x) = \lim_c \phi(c x; 0) / c

    in the directions d where the network grows most. Of networks with units of no upper bound and weights drawn at
    random most would run away, and with them the first gradient of their training. Bounded units cannot, and their V
    stays as it is.
    """
    rows = left[:_MOST_DIRECTIONS]
    directions = torch.cat([rows, -rows, torch.eye(left.shape[1], dtype=left.dtype, device=left.device)])
    for _ in range(_ROUNDS):
        directions = torch.nn.functional.normalize(directions, dim=-1)
        driven = activation(_FAR * directions @ left.mT, left.new_zeros(len(left))) / _FAR @ right.mT
        kept = decay * directions
        # The positive root of |a d|^2 + 2 s (a d) w + s^2 |w|^2 = |d|^2, written so that w may be zero.
        slack, along = (directions.square() - kept.square()).sum(-1), (kept * driven).sum(-1)
        root = (along.square() + slack * driven.square().sum(-1)).sqrt()
        factor = (slack / (along + root)).nan_to_num(nan=1.0).clamp(max=1.0).amin()
        # Iterated, directions turn to where the network takes them, which is where it grows for ever.
        right, directions = factor * right, kept + factor * driven
    return right
