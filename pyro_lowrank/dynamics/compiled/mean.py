"""The means of the next latents, compiled, with their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import compiled, run_side_by_side
from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.compiled.arrays import array, chunks
from pyro_lowrank.dynamics.compiled.network import form_of, tensors_of, weights_of
from pyro_lowrank.dynamics.compiled.units import gradient_adder, mover, puller
from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network

# Points are swept in blocks of so many, which fit the cache.
_BLOCK = 512
# More paths than this are not compared with each other: that costs their square.
_MOST_COMPARED = 32


@compiled(allocates=False)
def _move_trials(move: Any, weights: Any, z: Any, v: Any, which: Any, means: Any) -> None:
    for b in range(z.shape[0]):
        move(weights, z[b], v[b], which, which.shape[0], means[b])


@compiled(allocates=False)
def _add_blocks(add: Any, weights: Any, seen: Any, grad: Any, grad_left: Any, grad_right: Any, grad_bias: Any) -> None:
    for i in range(seen.shape[0]):
        add(weights, seen[i], grad[i], grad_left, grad_right, grad_bias)


@compiled(allocates=False)
def _pull_blocks(pull: Any, weights: Any, seen: Any, grad: Any, grad_seen: Any) -> None:
    for i in range(seen.shape[0]):
        pull(weights, seen[i], grad[i], grad_seen[i])


@compiled(allocates=False)
def _merge(points: Any, grad: Any, seen: Any, up: Any) -> Any:
    """Write points `paths x bins x dim` into blocks of zeros, those that paths share once; return how many."""
    size, width = 0, seen.shape[2]
    for m in range(points.shape[1]):
        first = size
        for p in range(points.shape[0]):
            place = size
            for s in range(first, size):
                same = True
                for d in range(points.shape[2]):
                    same &= seen[s // width, d, s % width] == points[p, m, d]
                if same:
                    place = s
                    break
            if place == size:
                for d in range(points.shape[2]):
                    seen[size // width, d, size % width] = points[p, m, d]
                size += 1
            for r in range(grad.shape[2]):
                up[place // width, r, place % width] += grad[p, m, r]
    return size


class CompiledMean:
    """Computes `Network.mean`, without gradients.

    Args:
        network: at fixed parameter values.
        with_inputs: whether inputs will come.

    Raises:
        NoCompiledForm: if the network has none.
    """

    def __init__(self, network: Drift, *, with_inputs: bool = True) -> None:
        self.form = form_of(network, with_inputs=with_inputs)
        assert isinstance(network, Network)
        self.network, self.weights = network, weights_of(network, self.form)

    @torch.no_grad()
    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the means, for latents `... x rank` and effective inputs `... x inputs` that broadcast with them."""
        inputs, batch, trials = z.new_zeros(self.form.inputs), z.shape[:-1], torch.Size()
        if v is not None and self.form.inputs:
            inputs, batch = v, torch.broadcast_shapes(z.shape[:-1], v.shape[:-1])
            # Trials, which have inputs of their own, are the last dims; the particles of a trial are swept in one call.
            trials = v.shape[:-1] if v.shape[:-1] == batch[len(batch) - v.dim() + 1 :] else batch
        seen = array(inputs.expand(*trials, self.form.inputs).reshape(trials.numel(), self.form.inputs))
        rows = z.expand(*batch, self.form.rank).reshape(-1, len(seen), self.form.rank)
        latents = array(rows.permute(1, 2, 0))
        means, own = np.empty_like(latents), np.arange(latents.shape[2])

        def move(c: slice) -> None:
            _move_trials(mover(self.form), self.weights, latents, seen, own[c], means)

        work = latents[:, 0].size * self.weights.bias.size
        run_side_by_side([partial(move, c) for c in chunks(len(own), work)])
        return torch.from_numpy(means).permute(2, 0, 1).reshape(*batch, -1)

    def differentiable(self, z: Tensor, v: Tensor | None, value: Tensor | None = None) -> Tensor:
        """Return the means with their gradient; `value` if it holds them already.

        Derivatives of second order and above are those of tensor operations.
        """
        tensors = tensors_of(self.network, with_inputs=self.form.inputs > 0)
        return _Mean.apply(self, value, z, v if self.form.inputs else None, *tensors)


class _Mean(torch.autograd.Function):
    """Mean and gradient, with nothing the size of the units kept between the two."""

    @staticmethod
    def forward(
        mean: CompiledMean,
        value: Tensor | None,
        z: Tensor,
        v: Tensor | None,
        decay: Tensor,
        left: Tensor,
        right: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Return the means, for latents `... x rank` and effective inputs that broadcast with them."""
        return mean(z, v) if value is None else value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient needs."""
        ctx.mean, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Return the means of points with one more dim, which weights have not, and where it is."""
        if any(dim is not None for dim in (*in_dims[:2], *in_dims[4:])):
            raise NotImplementedError("Weights of networks have no further dims under `torch.vmap`.")
        # Paths stay the first dim: the gradient adds up those that meet.
        points = [
            x if x is None else x.unsqueeze(-2) if dim is None else x.movedim(dim, -2)
            for x, dim in zip(inputs[2:4], in_dims[2:4], strict=True)
        ]
        means = _Mean.apply(*inputs[:2], *points, *inputs[4:])
        return means, means.dim() - 2

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of latents, inputs, decay, M with the input weights, V and h."""
        z, v, decay, _, _, bias = ctx.saved_tensors
        mean: CompiledMean = ctx.mean
        grad = grad_outputs[0]
        if torch.is_grad_enabled():
            # The gradient is to be differentiated again.
            return None, None, *_gradients(mean.network.activation, ctx.saved_tensors, grad)
        points = z.expand(grad.shape)
        together = points if v is None else torch.cat([points, v.expand(*grad.shape[:-1], v.shape[-1])], -1)
        found: list[Tensor | None] = [None, None]
        asked = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        if not asked and points.dim() > 2 and len(points) <= _MOST_COMPARED:
            seen, up = _merged(together, grad)
        else:
            seen, up = _blocks(together), _blocks(grad)
        if asked:
            pulled = _pull(mean, seen, up)[: grad.shape[:-1].numel()].view(*grad.shape[:-1], -1)
            grad_z = decay * grad + pulled[..., : z.shape[-1]]
            found = [
                grad_z.sum_to_size(z.shape),
                None if v is None else pulled[..., z.shape[-1] :].sum_to_size(v.shape),
            ]
        grad_decay = (grad * points).reshape(-1, z.shape[-1]).sum(0)
        return None, None, *found, grad_decay, *_add(mean, seen, up, bias.shape[-1])


def _gradients(activation: Activation, tensors: Sequence[Tensor | None], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of latents, inputs, decay, M with the input weights, V and h by tensor operations."""
    # Each by another name: one of them may have been made from another.
    own = [None if x is None else x.view_as(x) for x in tensors]
    seen, v, decay, left, right, bias = cast("list[Any]", own)
    moved = decay * seen
    if v is not None:
        batch = torch.broadcast_shapes(seen.shape[:-1], v.shape[:-1])
        seen = torch.cat([each.expand(*batch, each.shape[-1]) for each in (seen, v)], -1)
    mean = moved + activation(seen @ left.mT, bias) @ right.mT
    asked = [x for x in own if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(mean, asked, grad, create_graph=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in own)


def _blocks(points: Tensor) -> Any:
    """Lay points out in blocks, `blocks x dim x points`, the last one filled up with zeros, which add nothing."""
    rows = points.detach().numpy().reshape(-1, points.shape[-1])
    number = -(-len(rows) // _BLOCK)
    blocks = np.zeros((number * _BLOCK, rows.shape[1]), rows.dtype)
    blocks[: len(rows)] = rows
    return np.ascontiguousarray(blocks.reshape(number, _BLOCK, rows.shape[1]).transpose(0, 2, 1))


def _merged(points: Tensor, grad: Tensor) -> tuple[Any, Any]:
    """Lay points and gradients out in blocks, those of paths (their first dim) that meet added up."""
    bins = points[0, ..., 0].numel()
    number = -(-len(points) * bins // _BLOCK)
    rows = [array(each).reshape(len(points), bins, each.shape[-1]) for each in (points, grad)]
    seen, up = (np.zeros((number, each.shape[2], _BLOCK), each.dtype) for each in rows)
    used = -(-_merge(rows[0], rows[1], seen, up) // _BLOCK)
    return seen[:used], up[:used]


def _work(mean: CompiledMean, seen: Any) -> int:
    return int(seen[:, 0].size * mean.weights.bias.size)


def _add(mean: CompiledMean, seen: Any, grad: Any, units: int) -> tuple[Tensor, ...]:
    """Return the gradients of M with the input weights, V and h."""
    weights, add = mean.weights, gradient_adder(mean.form)
    cut = chunks(len(seen), _work(mean, seen))
    sums = [[np.zeros_like(each) for each in (weights.left, weights.right, weights.bias)] for _ in cut]
    tasks = [partial(_add_blocks, add, weights, seen[c], grad[c], *total) for c, total in zip(cut, sums, strict=True)]
    run_side_by_side(tasks)
    left, right, bias = (torch.from_numpy(sum(parts)[..., :units]) for parts in zip(*sums, strict=True))
    return left.mT, right, bias


def _pull(mean: CompiledMean, seen: Any, grad: Any) -> Tensor:
    """Return the gradients of what the units see, `points x dim`."""
    found, pull = np.empty_like(seen), puller(mean.form)
    cut = chunks(len(seen), _work(mean, seen))
    run_side_by_side([partial(_pull_blocks, pull, mean.weights, seen[c], grad[c], found[c]) for c in cut])
    return torch.from_numpy(found).transpose(1, 2).flatten(0, 1)
