"""What the compiled loops read of a network at fixed parameter values, and which networks have a compiled form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.compiled import units
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.piecewise import CLIPPED_RELU, IDENTITY, RELU, PiecewiseLinear

_FAST_SHAPES: dict[PiecewiseLinear | None, tuple[int, ...]] = {
    RELU: units.RELU,
    CLIPPED_RELU: units.CLIPPED_RELU,
    IDENTITY: units.IDENTITY,
}
_SMOOTH = {"tanh": units.TANH, "softplus": units.SOFTPLUS}
_NO_HINGES = (0.0, (0.0,), (0.0,), (0.0,))


# The loops hold a matrix `rank x rank` as one tuple, and Numba none of a thousand entries.
LARGEST_RANK = 31


def obstacle_of_network(network: Network) -> str | None:
    """Return why a network has no compiled form, or None if it has one."""
    if network.right.device.type != "cpu":
        return f"the model lies on {network.right.device}"
    if network.right.dtype not in (torch.float32, torch.float64):
        return f"the model holds {network.right.dtype}"
    if network.batch_shape:
        return "parameters of the network have batch dims"
    if network.rank > LARGEST_RANK:
        return f"{network.rank} latents are more than the {LARGEST_RANK} that it holds"
    if kind_of(network.activation, network.right.dtype) is None:
        return f"the activation {network.activation.name!r} has no compiled form"
    return None


def kind_of(function: Activation, dtype: torch.dtype) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
    """Return an activation's compile-time tuple and its hinges, as numbers of a type, or None if it has none."""
    number = number_of(dtype)
    found = _kind_of(function)
    if found is None:
        return None
    kind, (first_slope, *hinges) = found
    return kind, (number(first_slope), *(tuple(map(number, part)) for part in hinges))


def number_of(dtype: torch.dtype) -> Any:
    """Return numpy's type of a number."""
    return torch.empty(0, dtype=dtype).numpy().dtype.type


def _kind_of(function: Activation) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
    shape = function.shape
    if shape in _FAST_SHAPES:
        return _FAST_SHAPES[shape], _NO_HINGES
    if shape is not None:
        # A straight line gets a knot at which nothing changes: a tuple without entries has no type.
        changes, knots, gains = zip(*(shape.hinges or ((0.0, 0.0, 0.0),)), strict=True)
        return units.HINGES, (shape.slopes[0], changes, knots, gains)
    # By value: a copied model has a copy of its activation.
    if function.name in _SMOOTH and function == activation(function.name):
        return _SMOOTH[function.name], _NO_HINGES
    return None


def weights_of(network: Network, *, with_inputs: bool) -> tuple[Tensor, ...]:
    """Return decay, left, right and bias, the inputs counted among what the units see."""
    rank, right = network.rank, network.right
    left = torch.eye(rank, dtype=right.dtype) if network.left is None else network.left
    if with_inputs:
        left = torch.cat([left, network.input_weights], -1)
    return network.decay.expand(rank), left, right, network.bias
