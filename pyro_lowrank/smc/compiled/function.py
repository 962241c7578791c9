"""The compiled filter as one node of torch's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.smc.compiled.adjoint import run_backward
from pyro_lowrank.smc.compiled.forward import run_forward
from pyro_lowrank.smc.compiled.plan import Code
from pyro_lowrank.smc.compiled.units import grad_weights

# Units are padded to whole vector registers, particles of a block stay in the fastest cache.
_LANES, _BLOCK = 16, 512
# A thread is not worth its start below this many evaluations of a unit.
_WORTH_A_THREAD = 100_000
_NUM_NETWORK, _NUM_TABLES = 6, 9
# Type checkers do not see through arguments that are unpacked.
_forward: Any = run_forward
_backward: Any = run_backward
_grad_weights: Any = grad_weights


@dataclass(frozen=True)
class Run:
    """How the filter is run: compile-time code, data and random numbers, none of which has a gradient.

    Attributes:
        code: what is fixed when the loops are compiled.
        y: the recording, zero where missing, `trials x time x features`; no features where no likelihood is left.
        present: 1 where it is there, shaped as y.
        white: standard normal numbers, `trials x time x particles x rank`.
        positions: where in [0, 1) the descendants fall, `trials x time x particles`.
        threshold: trials resample when their effective sample size is below this; negative for never.
        carries: whether resampled particles carry the gradient of their ancestors' weights.
        cut_every: gradients do not pass from a bin that is a multiple of this to the one before; 0 for never.
    """

    code: Code
    y: Tensor
    present: Tensor
    white: Tensor
    positions: Tensor
    threshold: float
    carries: bool
    cut_every: int


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _padded(tensor: Tensor) -> Any:
    """Return an array `... x units`, padded with zeros, which no other unit notices."""
    return _array(pad(tensor.detach(), (0, -tensor.shape[-1] % _LANES)))


def _arrays(tensors: Sequence[Tensor], code: Code, y: Tensor) -> tuple[tuple[Any, ...], ...]:
    """Return the arrays of the network, the tables and the emission, as the loops take them, and the offset."""
    decay, left, right, bias, first_mean, v = tensors[:_NUM_NETWORK]
    network = (_array(decay), _padded(left.mT), _padded(right), _padded(bias), _array(first_mean), _array(v))
    tables = tuple(_array(tensor) for tensor in tensors[_NUM_NETWORK : _NUM_NETWORK + _NUM_TABLES])
    rest = tensors[_NUM_NETWORK + _NUM_TABLES :]
    if not rest:
        nothing = y.new_zeros(0)
        rest = (y.new_zeros(0, len(code.zero)), nothing, nothing, nothing, nothing, y)
    weight, *vectors, offset = rest
    emission = (_array(weight.mT), *(_array(vector) for vector in vectors))
    return network, tables, emission, (_array(offset),)


def _chunks(size: int, work: int) -> list[slice]:
    """Cut a range into as many slices as there are threads that it keeps busy."""
    number = max(1, min(torch.get_num_threads(), size, work // _WORTH_A_THREAD))
    edges = np.linspace(0, size, number + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def _of_trials(arrays: Sequence[Any], trials: slice) -> tuple[Any, ...]:
    return tuple(array[trials] for array in arrays)


class CompiledFilter(torch.autograd.Function):
    """Runs the particle filter; its gradient is the exact one of the plain path, for the same random numbers."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return increments and log probability of the ancestors `trials x time`; then, without gradients, latents,
        log weights and ancestors `trials x time x particles`, effective sample sizes and who resampled.
        """
        network, tables, emission, (offset,) = _arrays(tensors, run.code, run.y)
        white, positions = _array(run.white), _array(run.positions)
        data = (_array(run.y), _array(run.present), offset)
        trials, steps, particles, rank = white.shape
        keeps = any(ctx.needs_input_grad)
        out = (
            np.empty_like(white),
            np.zeros((trials, steps if keeps else 1, particles, rank), white.dtype),
            np.zeros((trials, steps, particles), white.dtype),
            np.zeros((trials, steps, particles), np.int64),
            np.full((trials, steps), np.nan, white.dtype),
            np.zeros((trials, steps), white.dtype),
            np.zeros((trials, steps), np.bool_),
            np.zeros((trials, steps), white.dtype),
        )
        out[3][:, 0] = np.arange(particles)
        decay, left, right, bias, first_mean, v = network
        chunks = _chunks(trials, white[..., 0].size * left.shape[-1])
        run_side_by_side(
            [
                partial(
                    _forward,
                    *run.code.arguments,
                    (decay, left, right, bias, first_mean[c], v[c]),
                    _of_trials(tables[:5], c),
                    _of_trials(tables[5:], c),
                    emission,
                    _of_trials(data, c),
                    (white[c], positions[c]),
                    float(run.threshold),
                    _of_trials(out, c),
                )
                for c in chunks
            ]
        )
        z, means, log_weights, ancestors, increments, ess, resampled, log_probs = map(torch.from_numpy, out)
        ctx.run, ctx.ran = run, (z, means, log_weights, ancestors, resampled)
        ctx.save_for_backward(*tensors)
        kept = (z, log_weights, ancestors, ess, resampled)
        ctx.mark_non_differentiable(*kept)
        return increments, log_probs, *kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tensors."""
        tensors = ctx.saved_tensors
        grads = _Adjoint(ctx.run, ctx.ran, tensors).gradients(grad_outputs[0], grad_outputs[1])
        return None, *grads


class _Adjoint:
    """One backward pass: its arrays, and a set of sums over trials for each thread."""

    def __init__(self, run: Run, ran: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        self.run, self.tensors = run, tensors
        self.network, self.tables, self.emission, (self.offset,) = _arrays(tensors, run.code, run.y)
        self.ran = tuple(tensor.numpy() for tensor in ran)
        z, v = self.ran[0], self.network[5]
        self.work = z[..., 0].size * self.network[1].shape[-1]
        self.grad_first_mean, self.grad_v = np.zeros_like(self.network[4]), np.zeros_like(v)
        self.grad_drive, self.grad_offset = np.zeros_like(z), np.zeros_like(self.offset)
        self.grad_tables = tuple(np.zeros_like(table) for table in self.tables)

    def gradients(self, grad_increments: Tensor, grad_log_probs: Tensor) -> list[Tensor | None]:
        """Return the gradients of the tensors, in their order."""
        decay, emission = self._through_time(_array(grad_increments), _array(grad_log_probs))
        left, right, bias = self._of_units()
        units = self.tensors[3].shape[-1]
        first_mean, v = self.grad_first_mean, self.grad_v
        found = [decay, left[:, :units].T, right[:, :units], bias[:units], first_mean, v, *self.grad_tables]
        weight, *vectors = emission
        if len(self.tensors) > len(found):
            found += [weight.T, *vectors, self.grad_offset]
        return [torch.from_numpy(np.ascontiguousarray(grad)) for grad in found]

    def _through_time(self, *grads_in: Any) -> tuple[Any, tuple[Any, ...]]:
        """Run the adjoint of each trial; return the gradients of decay and emission."""
        run, ran = self.run, self.ran
        decay, left, right, bias, first_mean, v = self.network
        chunks = _chunks(ran[0].shape[0], self.work)
        white, data = _array(run.white), (_array(run.y), _array(run.present), self.offset)
        decays = [np.zeros_like(decay) for _ in chunks]
        emissions = [tuple(np.zeros_like(array) for array in self.emission) for _ in chunks]
        tasks: list[Callable[[], Any]] = [
            partial(
                _backward,
                run.code.arguments,
                (decay, left, right, bias, first_mean[c], v[c]),
                _of_trials(self.tables[:5], c),
                _of_trials(self.tables[5:], c),
                self.emission,
                _of_trials(data, c),
                white[c],
                _of_trials(ran, c),
                run.carries,
                run.cut_every,
                _of_trials(grads_in, c),
                (
                    (grad_decay, self.grad_first_mean[c], self.grad_v[c], self.grad_drive[c]),
                    _of_trials(self.grad_tables[:5], c),
                    _of_trials(self.grad_tables[5:], c),
                    grad_emission,
                    self.grad_offset[c],
                ),
            )
            for c, grad_decay, grad_emission in zip(chunks, decays, emissions, strict=True)
        ]
        run_side_by_side(tasks)
        return sum(decays), tuple(sum(parts) for parts in zip(*emissions, strict=True))

    def _of_units(self) -> tuple[Any, Any, Any]:
        """Return the gradients of the units' weights: all particles' drives at once, cut into equal numbers of bins."""
        _, left, right, bias, _, v = self.network
        code = self.run.code
        z = self.ran[0].reshape(-1, *self.ran[0].shape[2:])
        grad_drive, v = self.grad_drive.reshape(z.shape), v.reshape(z.shape[0], -1)
        chunks = _chunks(z.shape[0], self.work)
        sums = [tuple(np.zeros_like(array) for array in (left, right, bias)) for _ in chunks]
        scratch = [tuple(np.zeros((len(rows), _BLOCK), z.dtype) for rows in (code.zero_in, code.zero)) for _ in chunks]
        tasks: list[Callable[[], Any]] = [
            partial(
                _grad_weights,
                *(code.kind, code.hinges, left, right, bias, code.zero_in, code.zero),
                *(z[c], v[c], grad_drive[c], *buffers, *total),
            )
            for c, total, buffers in zip(chunks, sums, scratch, strict=True)
        ]
        run_side_by_side(tasks)
        grad_left, grad_right, grad_bias = (sum(parts) for parts in zip(*sums, strict=True))
        return grad_left, grad_right, grad_bias
