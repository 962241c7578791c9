"""The mean of the next latents, its Jacobian, and how that bends."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.activations import activation as built_in
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.shapes import apply_matrix


class Linearised(Protocol):
    """Dynamics z -> f(z, v) with their Jacobian F; latents `... x rank`, effective inputs `... x inputs`."""

    def step(self, z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return f, `... x rank`, and F, `... x rank x rank`, differentiable in the parameters."""

    def bend(self, z: Tensor, v: Tensor | None) -> Tensor | None:
        """Return what `pull_back` needs to know of the points z, `... x any`; None where F is constant around them."""

    def pull_back(self, bend: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of z, `... x rank`, from that of F, `... x rank x rank`."""


def linearise(transition: Any) -> Linearised:
    r"""Return the dynamics with their Jacobian.

    .. math:: F = \mathrm{diag}(a) + V\, \mathrm{diag}(\phi'(M z + W_u v; h))\, M

    for a network; by forward-mode differentiation of `transition.mean` for any other dynamics. Where units have kinks
    the Jacobian jumps, and its derivative is zero between the jumps.

    Args:
        transition: how the latents move: anything with `mean(z, v)`.

    Example::

        >>> import pyro_lowrank as plr
        >>> mean, jacobian = linearise(plr.LowRankRNN(rank=2, units=20).transition()).step(torch.zeros(5, 2), None)
        >>> mean.shape, jacobian.shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
    """
    drift = getattr(transition, "drift", None)
    return _LinearisedNetwork(drift) if isinstance(drift, Network) else _LinearisedByTorch(transition)


class _LinearisedNetwork:
    def __init__(self, network: Network) -> None:
        self.network = network
        left, right, rank = network.left, network.right, network.rank
        self.decay = torch.diag_embed(network.decay.expand(rank))
        # V_rn M_ns for each unit n: the Jacobian is then one matrix product, with nothing trials x units x rank.
        self.outer = None if left is None else (right.mT.unsqueeze(-1) * left.unsqueeze(-2)).flatten(-2)

    def step(self, z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        network, rank = self.network, self.network.rank
        rates, slopes = rates_and_slopes(network.activation, network.currents(z, v), network.bias)
        mean = network.decay * z + apply_matrix(network.right, rates)
        if self.outer is None:
            return mean, self.decay + network.right * slopes.unsqueeze(-2)
        return mean, self.decay + (slopes @ self.outer).unflatten(-1, (rank, rank))

    def bend(self, z: Tensor, v: Tensor | None) -> Tensor | None:
        network = self.network
        if network.activation.shape is not None:
            return None

        def slopes(x: Tensor) -> Tensor:
            return rates_and_slopes(network.activation, x, network.bias)[1]

        x = network.currents(z, v)
        found: Any = torch.func.jvp(slopes, (x,), (torch.ones_like(x),))
        change: Tensor = found[1]
        return change

    def pull_back(self, bend: Tensor, grad: Tensor) -> Tensor:
        left = self.network.left
        if self.outer is None or left is None:
            return (grad * self.network.right).sum(-2) * bend
        return (grad.flatten(-2) @ self.outer.mT * bend) @ left


class _LinearisedByTorch:
    def __init__(self, transition: Any) -> None:
        self.transition = transition

    def step(self, z: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        def twice(point: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
            mean = self.transition.mean(point, inputs)
            return mean, mean

        jacobian, mean = self._at_each(torch.func.jacfwd(twice, has_aux=True), z, v)
        return mean, jacobian

    def bend(self, z: Tensor, v: Tensor | None) -> Tensor | None:
        found: Tensor = self._at_each(torch.func.jacfwd(torch.func.jacfwd(self.transition.mean)), z, v)
        return found.flatten(-3)

    def pull_back(self, bend: Tensor, grad: Tensor) -> Tensor:
        rank = grad.shape[-1]
        return (grad.flatten(-2).unsqueeze(-2) @ bend.unflatten(-1, (rank * rank, rank))).squeeze(-2)

    @staticmethod
    def _at_each(function: Any, z: Tensor, v: Tensor | None) -> Any:
        """Apply a function of one point to all points `... x rank`."""
        batch = z.shape[:-1]
        flat = z.reshape(-1, z.shape[-1])
        inputs = None if v is None else v.expand(*batch, -1).reshape(-1, v.shape[-1])
        found = torch.func.vmap(function, in_dims=(0, None if v is None else 0))(flat, inputs)
        if isinstance(found, tuple):
            return tuple(each.unflatten(0, batch) for each in found)
        return found.unflatten(0, batch)


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
