"""What the compiled loops read of a network at fixed parameter values, and which networks have a compiled form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.compiled import units
from pyro_lowrank.dynamics.compiled.arrays import array, padded
from pyro_lowrank.dynamics.compiled.units import Form, Weights
from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.piecewise import CLIPPED_RELU, IDENTITY, RELU, PiecewiseLinear

_FAST_SHAPES: dict[PiecewiseLinear | None, Any] = {
    RELU: units.relu,
    CLIPPED_RELU: units.clipped_relu,
    IDENTITY: units.identity,
}
_SMOOTH = {"tanh": units.tanh_of, "softplus": units.softplus_of}

LARGEST_RANK = 31
"""The latents of a particle are kept in one tuple, and Numba compiles long ones slowly."""


def form_of(network: Drift, *, with_inputs: bool) -> Form:
    """Return what is fixed when the loops over a network's units are compiled.

    Raises:
        NoCompiledForm: if it has none.
    """
    if not isinstance(network, Network):
        raise NoCompiledForm("dynamics that the user has written are moved by tensor operations")
    dtype = number_of(network.right)
    if network.batch_shape:
        raise NoCompiledForm("parameters of the network have batch dims")
    if network.rank > LARGEST_RANK:
        raise NoCompiledForm(f"{network.rank} latents are more than the {LARGEST_RANK} that it holds")
    compiled, hinges = compiled_activation(network.activation)
    inputs = network.num_inputs if with_inputs else 0
    return Form(network.rank, inputs, compiled, len(hinges) - 1, dtype)


def number_of(like: Tensor) -> Any:
    """Return numpy's type of the numbers of a model, one of whose tensors is given.

    Raises:
        NoCompiledForm: if they are not on the CPU, or of a type that the loops do not know.
    """
    if like.device.type != "cpu":
        raise NoCompiledForm(f"the model lies on {like.device}")
    if like.dtype not in (torch.float32, torch.float64):
        raise NoCompiledForm(f"the model holds {like.dtype}")
    return np.float32 if like.dtype == torch.float32 else np.float64


def compiled_activation(function: Activation) -> tuple[Any, list[tuple[float, float, float]]]:
    """Return the function of an activation that the loops take, and its hinges, as `units.Weights` has them."""
    shape = function.shape
    if shape in _FAST_SHAPES:
        return _FAST_SHAPES[shape], [(0.0, 0.0, 0.0)]
    if shape is not None:
        return units.piecewise_linear, [(shape.slopes[0], 0.0, 0.0), *shape.hinges]
    # By value: a copied model has a copy of its activation.
    if function.name in _SMOOTH and function == activation(function.name):
        return _SMOOTH[function.name], [(0.0, 0.0, 0.0)]
    raise NoCompiledForm(f"the activation {function.name!r} has no compiled form")


def tensors_of(network: Network, *, with_inputs: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return decay, left, right and bias, the inputs counted among what the units see."""
    rank, right = network.rank, network.right
    left = torch.eye(rank, dtype=right.dtype) if network.left is None else network.left
    if with_inputs and network.num_inputs:
        left = torch.cat([left, network.input_weights], -1)
    return network.decay.expand(rank), left, right, network.bias


def weights_of(network: Network, form: Form) -> Weights:
    """Return a network's weights as the loops read them."""
    decay, left, right, bias = tensors_of(network, with_inputs=form.inputs > 0)
    hinges = np.array(compiled_activation(network.activation)[1], form.dtype)
    return Weights(array(decay), padded(left.mT), padded(right), padded(bias), hinges)
