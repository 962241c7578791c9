"""The mean of the next latents and its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.activations import activation as built_in
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.shapes import apply_matrix

Linearised = Callable[[Tensor, "Tensor | None"], tuple[Tensor, Tensor]]


def linearise(transition: Any) -> Linearised:
    r"""Return what gives the mean of the next latents, `trials x rank`, and its Jacobian, `trials x rank x rank`.

    .. math:: F = \mathrm{diag}(a) + V\, \mathrm{diag}(\phi'(M z + W_u v; h))\, M

    for a network; by forward-mode differentiation of `transition.mean` for any other dynamics. Where units have kinks
    the Jacobian jumps, and its derivative is zero between the jumps.

    Args:
        transition: how the latents move: anything with `mean(z, v)`.

    Example::

        >>> import pyro_lowrank as plr
        >>> step = linearise(plr.LowRankRNN(rank=2, units=20).transition())
        >>> mean, jacobian = step(torch.zeros(5, 2), None)
        >>> mean.shape, jacobian.shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
    """
    return _of_network(transition) if isinstance(transition, Network) else _of_any(transition)


def _of_network(network: Network) -> Linearised:
    left, right, rank = network.left, network.right, network.rank
    decay = torch.diag_embed(network.decay.expand(rank))
    # V_rn M_ns for each unit n: the Jacobian is then one matrix product, with nothing trials x units x rank.
    outer = None if left is None else (right.mT.unsqueeze(-1) * left.unsqueeze(-2)).flatten(-2)

    def step(z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        rates, slopes = rates_and_slopes(network.activation, network.currents(z, v), network.bias)
        mean = network.decay * z + apply_matrix(right, rates)
        recurrent = right * slopes.unsqueeze(-2) if outer is None else (slopes @ outer).unflatten(-1, (rank, rank))
        return mean, decay + recurrent

    return step


def _of_any(transition: Any) -> Linearised:
    def step(z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        def twice(point: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
            mean = transition.mean(point, inputs)
            return mean, mean

        jacobian = torch.func.jacfwd(twice, has_aux=True)
        found, mean = torch.func.vmap(jacobian, in_dims=(0, None if v is None else 0))(z, v)
        return mean, found

    return step


def rates_and_slopes(activation: Activation, currents: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rates of the units and their slopes against the currents, `... x units` each.

    Example::

        >>> from pyro_lowrank.dynamics.activations import activation
        >>> rates_and_slopes(activation("tanh"), torch.zeros(2), torch.zeros(2))
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    if activation.shape is not None:
        slopes = torch.full_like(currents, activation.shape.slopes[0])
        for change, knot, gain in activation.shape.hinges:
            slopes = slopes + change * (currents > knot + gain * bias).to(slopes.dtype)
        return activation(currents, bias), slopes.detach()
    if activation == built_in("tanh"):
        rates = activation(currents, bias)
        return rates, 1 - rates.square()
    found: Any = torch.func.jvp(lambda x: activation(x, bias), (currents,), (torch.ones_like(currents),))
    return found[0], found[1]
