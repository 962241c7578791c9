"""The recurrent drive V phi(M z + c; h) and its gradient, with nothing the size of the units kept between the two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.piecewise import CLIPPED_RELU, RELU

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class Workspace:
    """Scratch tensors, used again at every time bin: fresh ones this large cost more page faults than arithmetic."""

    def __init__(self) -> None:
        self._scratch: dict[int, Tensor] = {}

    def take(self, slot: int, like: Tensor, rows: int, units: int) -> Tensor:
        """Return the scratch tensor of a slot, `rows x units`, with whatever it last held."""
        held = self._scratch.get(slot)
        if held is None or held.shape != (rows, units) or held.dtype != like.dtype or held.device != like.device:
            held = self._scratch[slot] = torch.empty(rows, units, dtype=like.dtype, device=like.device)
        return held


def _currents(z: Tensor, offset: Tensor | None, left: Tensor | None, units: int, workspace: Workspace) -> Tensor:
    """Return the currents, `particles x trials x units`, in slot 0."""
    flat = z.reshape(-1, z.shape[-1])
    scratch = workspace.take(0, z, flat.shape[0], units)
    x = scratch.copy_(flat) if left is None else torch.mm(flat, left.mT, out=scratch)
    x = x.view(*z.shape[:-1], units)
    return x if offset is None else x.add_(offset)


def _rates(x: Tensor, bias: Tensor, activation: Activation, workspace: Workspace) -> Tensor:
    """Return the rates, `rows x units`; may overwrite the currents x."""
    if activation.shape == RELU:
        return x.sub_(bias).relu_()
    if activation.shape == CLIPPED_RELU:
        subtrahend = torch.clamp_min(x, 0, out=workspace.take(1, x, *x.shape))
        return x.add_(bias).relu_().sub_(subtrahend)
    return activation(x, bias)


def _pull_back(
    x: Tensor, bias: Tensor, grad: Tensor, activation: Activation, workspace: Workspace
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rates, and the gradients of currents and biases, from that of the rates; may overwrite x and `grad`."""
    if activation.shape == RELU:
        rates = x.sub_(bias).relu_()
        grad_x = _threshold_backward(grad, rates, 0, grad_input=workspace.take(3, x, *x.shape))
        return rates, grad_x, -grad_x.sum(0)
    if activation.shape == CLIPPED_RELU:
        subtrahend = torch.clamp_min(x, 0, out=workspace.take(1, x, *x.shape))
        minuend = x.add_(bias).relu_()
        grad_x = _threshold_backward(grad, minuend, 0, grad_input=workspace.take(3, x, *x.shape))
        # The bias moves the first of the two rectifiers only.
        grad_bias = grad_x.sum(0)
        grad_x.sub_(_threshold_backward(grad, subtrahend, 0, grad_input=workspace.take(4, x, *x.shape)))
        return minuend.sub_(subtrahend), grad_x, grad_bias
    with torch.enable_grad():
        leaves = x.detach().requires_grad_(), bias.detach().requires_grad_()
        rates = activation(*leaves)
    grad_x, grad_bias = torch.autograd.grad(rates, leaves, grad)
    return rates.detach(), grad_x, grad_bias


class RecurrentDrive(torch.autograd.Function):
    """Computes the drive in one pass and recomputes the currents in the backward pass.

    A training step spends its time on tensors of particles x trials x units. Autograd would keep several of them for
    every time bin; this keeps none. Products with the few latents are ordered so that the long dim is the last one,
    which the matrix library runs several times faster.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        offset: Tensor | None,
        left: Tensor | None,
        right: Tensor,
        bias: Tensor,
        activation: Activation,
        workspace: Workspace,
    ) -> Tensor:
        """Return V phi(M z + c; h), `particles x trials x rank`, for latents of that shape and c `trials x units`."""
        ctx.save_for_backward(z, offset, left, right, bias)
        ctx.activation, ctx.workspace = activation, workspace
        units = right.shape[1]
        x = _currents(z, offset, left, units, workspace).view(-1, units)
        rates = _rates(x, bias, activation, workspace)
        return (right @ rates.mT).mT.reshape(z.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of latents, c, M, V and h."""
        z, offset, left, right, bias = ctx.saved_tensors
        workspace: Workspace = ctx.workspace
        grad = grad_outputs[0].reshape(-1, right.shape[0])
        flat = z.reshape(-1, z.shape[-1])
        units = right.shape[1]
        x = _currents(z, offset, left, units, workspace).view(-1, units)
        grad_rates = torch.mm(grad, right, out=workspace.take(2, z, flat.shape[0], units))
        rates, grad_x, grad_bias = _pull_back(x, bias, grad_rates, ctx.activation, workspace)
        grad_offset = None if offset is None else grad_x.view(*z.shape[:-1], units).sum_to_size(offset.shape)
        if left is None:
            grad_z, grad_left = grad_x.clone(), None
        else:
            grad_z, grad_left = (left.mT @ grad_x.mT).mT, (flat.mT @ grad_x).mT
        return grad_z.reshape(z.shape), grad_offset, grad_left, grad.mT @ rates, grad_bias, None, None
