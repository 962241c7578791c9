"""The compiled filter as one node of torch's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.compiled.arrays import array, chunks, padded
from pyro_lowrank.dynamics.compiled.units import grad_weights
from pyro_lowrank.smc.compiled.adjoint import backward_scratch, run_backward
from pyro_lowrank.smc.compiled.forward import forward_scratch, run_forward
from pyro_lowrank.smc.compiled.plan import Code

# So many particles are gathered before the units are swept.
_BLOCK = 512
_NUM_NETWORK, _NUM_STEP, _NUM_TABLES = 6, 4, 3
# Type checkers do not see through arguments that are unpacked.
_forward: Any = run_forward
_backward: Any = run_backward
_grad_weights: Any = grad_weights


@dataclass(frozen=True)
class Run:
    """How the filter is run: compile-time code, data and random numbers, none of which has a gradient.

    Attributes:
        code: what is fixed when the loops are compiled.
        units: how many units there are.
        y: the recording, zero where missing, `trials x time x features`; no features where no likelihood is left.
        present: 1 where it is there, shaped as y.
        index: of the tables that each time bin uses, `trials x time`.
        white: standard normal numbers, or what the proposal draws, `trials x time x particles x rank`.
        log_densities: of the draws, where the proposal asks for them, `trials x time x particles`.
        positions: where in [0, 1) the descendants fall, `trials x time x particles`.
        threshold: trials resample when their effective sample size is below this; negative for never.
        carries: whether resampled particles carry the gradient of their ancestors' weights.
        cut_every: gradients do not pass from a bin that is a multiple of this to the one before; 0 for never.
        differentiable: whether what the adjoint needs is kept.
    """

    code: Code
    units: int
    y: Tensor
    present: Tensor
    index: Tensor
    white: Tensor
    log_densities: Tensor
    positions: Tensor
    threshold: float
    carries: bool
    cut_every: int
    differentiable: bool


class Arrays:
    """Everything that the loops read, as they take it, made once for both passes.

    Args:
        run: data and random numbers.
        tensors: the differentiable ones, of a `Plan`.
    """

    def __init__(self, run: Run, tensors: Sequence[Tensor]) -> None:
        decay, left, right, bias, first_mean, v = tensors[:_NUM_NETWORK]
        step, rest = tensors[_NUM_NETWORK : _NUM_NETWORK + _NUM_STEP], tensors[_NUM_NETWORK + _NUM_STEP :]
        self.decay, self.first_mean, self.v = array(decay), array(first_mean), array(v)
        self.weights = padded(left.mT), padded(right), padded(bias)
        self.step = tuple(array(tensor) for tensor in step)
        self.tables = tuple(array(tensor) for tensor in rest[:_NUM_TABLES])
        nothing = run.y.new_zeros(0)
        none = (run.y.new_zeros(0, len(run.code.zero)), nothing, nothing, nothing, nothing, run.y)
        matrix, *vectors, offset = rest[_NUM_TABLES:] or none
        self.emission = (array(matrix.mT), *(array(vector) for vector in vectors))
        self.index = array(run.index)
        self.data = array(run.y), array(run.present), array(offset)
        self.white = array(run.white)
        self.random = self.white, array(run.positions), array(run.log_densities)
        self.work = self.white[..., 0].size * self.weights[0].shape[-1]

    def of_trials(self, c: slice) -> tuple[Any, ...]:
        """Return network, step, tables, emission and data of some trials, in the order of both loops."""
        network = (self.decay, *self.weights, self.first_mean[c], self.v[c])
        return network, part_of((*self.step, self.index), c), self.tables, self.emission, part_of(self.data, c)


def part_of(arrays: Sequence[Any], trials: slice) -> tuple[Any, ...]:
    """Return some trials of each array."""
    return tuple(array[trials] for array in arrays)


class CompiledFilter(torch.autograd.Function):
    """Runs the particle filter; its gradient is the exact one of the plain path, for the same random numbers."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return increments and log probability of the ancestors `trials x time`; then, without gradients, latents,
        log weights and ancestors `trials x time x particles`, effective sample sizes and who resampled.
        """
        arrays = Arrays(run, tensors)
        dtype, (trials, steps, particles, rank) = arrays.white.dtype, arrays.white.shape
        out = (
            np.empty_like(arrays.white),
            np.zeros((trials, steps if run.differentiable else 1, particles, rank), dtype),
            np.zeros((trials, steps, particles), dtype),
            np.zeros((trials, steps, particles), np.int64),
            np.full((trials, steps), np.nan, dtype),
            np.zeros((trials, steps), dtype),
            np.zeros((trials, steps), np.bool_),
            np.zeros((trials, steps), dtype),
        )
        out[3][:, 0] = np.arange(particles)
        tasks = [
            partial(
                _forward,
                *(run.code.arguments, *arrays.of_trials(c), part_of(arrays.random, c)),
                *(float(run.threshold), forward_scratch(run.code.weighing, arrays.white), part_of(out, c)),
            )
            for c in chunks(trials, arrays.work)
        ]
        run_side_by_side(tasks)
        z, means, log_weights, ancestors, increments, ess, resampled, log_probs = map(torch.from_numpy, out)
        ctx.run, ctx.arrays, ctx.ran = run, arrays, (z, means, log_weights, ancestors, resampled)
        # The arrays may share their memory: this is how torch notices that a tensor was changed in between.
        ctx.save_for_backward(*tensors)
        kept = (z, log_weights, ancestors, ess, resampled)
        ctx.mark_non_differentiable(*kept)
        # Torch would fill a tensor of zeros for each of these.
        ctx.set_materialize_grads(False)
        return increments, log_probs, *kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tensors."""
        tensors = ctx.saved_tensors
        zero = ctx.run.y.new_zeros(ctx.run.index.shape)
        increments, log_probs = (zero if grad is None else grad for grad in grad_outputs[:2])
        grads = _Adjoint(ctx.run, ctx.arrays, ctx.ran).gradients(increments, log_probs, len(tensors))
        return None, *grads


class _Adjoint:
    """One backward pass: its arrays, and a set of sums over trials for each thread."""

    def __init__(self, run: Run, arrays: Arrays, ran: Sequence[Tensor]) -> None:
        self.run, self.arrays = run, arrays
        self.ran = tuple(tensor.numpy() for tensor in ran)
        self.grad_first_mean, self.grad_v = np.zeros_like(arrays.first_mean), np.zeros_like(arrays.v)
        self.grad_drive, self.grad_offset = np.zeros_like(self.ran[0]), np.zeros_like(arrays.data[2])
        self.grad_step = tuple(np.zeros_like(each) for each in arrays.step)

    def gradients(self, grad_increments: Tensor, grad_log_probs: Tensor, number: int) -> list[Tensor | None]:
        """Return the gradients of the first `number` tensors, in their order."""
        decay, tables, (matrix, *vectors) = self._through_time(array(grad_increments), array(grad_log_probs))
        left, right, bias = self._of_units()
        found = [decay, left.T, right, bias, self.grad_first_mean, self.grad_v, *self.grad_step, *tables]
        found += [matrix.T, *vectors, self.grad_offset]
        return [torch.from_numpy(np.ascontiguousarray(grad)) for grad in found[:number]]

    def _through_time(self, *grads_in: Any) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """Run the adjoint of each trial; return the gradients of decay, tables and emission."""
        run, arrays = self.run, self.arrays
        cut = chunks(self.ran[0].shape[0], arrays.work)
        # What all trials share has a sum of its own in every thread.
        decays, tables, emissions = (
            [tuple(np.zeros_like(each) for each in shared) for _ in cut]
            for shared in ((arrays.decay,), arrays.tables, arrays.emission)
        )
        tasks: list[Callable[[], Any]] = [
            partial(
                _backward,
                *(run.code.arguments, *arrays.of_trials(c), arrays.white[c], part_of(self.ran, c)),
                *(run.carries, run.cut_every, part_of(grads_in, c), backward_scratch(run.code.weighing, arrays.white)),
                (
                    (decays[i][0], self.grad_first_mean[c], self.grad_v[c], self.grad_drive[c]),
                    *(part_of(self.grad_step, c), tables[i], emissions[i], self.grad_offset[c]),
                ),
            )
            for i, c in enumerate(cut)
        ]
        run_side_by_side(tasks)
        (decay,), total_tables, emission = (_totals(each) for each in (decays, tables, emissions))
        return decay, total_tables, emission

    def _of_units(self) -> tuple[Any, ...]:
        """Return the gradients of the units' weights: all particles' drives at once, cut into equal numbers of bins."""
        code, arrays = self.run.code, self.arrays
        z, grad_drive = (array.reshape(-1, *array.shape[2:]) for array in (self.ran[0], self.grad_drive))
        v = arrays.v.reshape(z.shape[0], -1)
        cut = chunks(z.shape[0], arrays.work)
        sums = [tuple(np.zeros_like(each) for each in arrays.weights) for _ in cut]
        tasks: list[Callable[[], Any]] = [
            partial(
                _grad_weights,
                *(code.zero, code.zero_in, (code.kind, code.hinges, *arrays.weights), z[c], v[c], grad_drive[c]),
                *(tuple(np.zeros((len(rows), _BLOCK), z.dtype) for rows in (code.zero_in, code.zero)), total),
            )
            for c, total in zip(cut, sums, strict=True)
        ]
        run_side_by_side(tasks)
        return tuple(total[..., : self.run.units] for total in _totals(sums))


def _totals(of_threads: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the sums of the arrays that the threads hold."""
    return tuple(reduce(np.add, parts) for parts in zip(*of_threads, strict=True))
