"""Activations of the units, phi(x; h), on tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pyro_lowrank.errors import check_choice
from pyro_lowrank.piecewise import CLIPPED_RELU, IDENTITY, RELU, PiecewiseLinear


@dataclass(frozen=True)
class Activation:
    r"""An activation :math:`\phi(x; h)`: a function of a unit's current x and its bias h, applied per unit.

    Args:
        name: how it is called in a saved model and in error messages.
        function: maps currents `... x units` and biases `units` to rates `... x units`.
        shape: its knots and slopes, if it is piecewise linear.

    Example::

        >>> activation("clipped_relu")(torch.tensor([-1.0, 0.5, 3.0]), torch.tensor(2.0))
        tensor([1., 2., 2.])
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    shape: PiecewiseLinear | None = None

    def __call__(self, currents: Tensor, bias: Tensor) -> Tensor:
        """Return the rates, `... x units`, of `currents`, `... x units`, under `bias`, `units`."""
        return self.function(currents, bias)


def _relu(currents: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(currents - bias)


def _clipped_relu(currents: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(currents + bias) - torch.relu(currents)


def _tanh(currents: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(currents - bias)


def _softplus(currents: Tensor, bias: Tensor) -> Tensor:
    return functional.softplus(currents - bias)


def _identity(currents: Tensor, bias: Tensor) -> Tensor:
    return currents - bias


_BUILT_IN = {
    a.name: a
    for a in (
        Activation("relu", _relu, RELU),
        Activation("clipped_relu", _clipped_relu, CLIPPED_RELU),
        Activation("identity", _identity, IDENTITY),
        Activation("tanh", _tanh),
        Activation("softplus", _softplus),
    )
}


def _sum_of_hinges(shape: PiecewiseLinear) -> Callable[[Tensor, Tensor], Tensor]:
    def function(currents: Tensor, bias: Tensor) -> Tensor:
        rates = shape.slopes[0] * (currents - bias)
        for change, knot, gain in shape.hinges:
            rates = rates + change * torch.relu(currents - (knot + gain * bias))
        return rates

    return function


def activation(declared: str | PiecewiseLinear | Activation) -> Activation:
    """Return the activation of that name, of those knots and slopes, or the one given.

    Args:
        declared: `"relu"`, `"clipped_relu"`, `"tanh"`, `"softplus"`, `"identity"`, a `PiecewiseLinear` or an
            `Activation`.

    Raises:
        ValueError: if no activation has that name.

    Example::

        >>> leaky = activation(PiecewiseLinear(knots=(0.0,), slopes=(0.1, 1.0)))
        >>> leaky(torch.tensor([-1.0, 2.0]), torch.tensor(0.0))
        tensor([-0.1000,  2.0000])
    """
    if isinstance(declared, Activation):
        return declared
    if isinstance(declared, PiecewiseLinear):
        return Activation(declared.name, _sum_of_hinges(declared), declared)
    return _BUILT_IN[check_choice("activation", declared, tuple(_BUILT_IN))]
