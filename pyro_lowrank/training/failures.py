"""Where a fit went wrong, in terms of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor, nn

from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.smc.loop import ParticlesDied
from pyro_lowrank.training.batches import Batch

_ADVICE = (
    "The model keeps the parameters it had before the step. A lower `learning_rate`, a `max_grad_norm`, more particles "
    "or rescaled data may help."
)


def place_in_data(batch: Batch, time: int, trial: int | None) -> str:
    """Return the place of a minibatch's time bin and trial in the data.

    Example::

        >>> place_in_data(Batch(torch.zeros(2, 5, 1), None, torch.tensor([7, 3]), torch.tensor([100, 40])), 4, 1)
        'trial 3, time 44'
    """
    if trial is not None:
        return f"trial {batch.trials[trial]}, time {int(batch.starts[trial]) + time}"
    return f"time {time} of the minibatch of trials {batch.trials.tolist()} from times {batch.starts.tolist()}"


def loss_failure(error: Exception, batch: Batch, step: int, data: str) -> SMCFailed:
    """Return the error of a step whose loss is not finite, or cannot be computed."""
    if isinstance(error, ParticlesDied) and error.time is not None:
        where = place_in_data(batch, error.time, error.trial)
        return SMCFailed(f"Step {step}: the loss is not finite at {where} of `{data}`: {error.cause}. {_ADVICE}")
    return SMCFailed(f"Step {step}: the loss of `{data}` cannot be computed: {error} {_ADVICE}")


def gradient_failure(
    elbo: SMC_ELBO | EKFEvidence,
    model: Any,
    guide: Any,
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    step: int,
    reseed: Callable[[], None],
    start_of: Callable[[int], AbstractContextManager[None]],
) -> SMCFailed:
    """Return the error of a step whose gradient is not finite.

    In the backward pass a number that is not finite spreads to all trials and times of a minibatch. So each trial is
    tried alone, in every row of the minibatch, and then cut short, with the random numbers that the step had, from
    where its row starts: `start_of(row)`.
    """

    def is_bad(tried: Batch, row: int) -> bool:
        reseed()
        with start_of(row):
            try:
                loss, _ = elbo.loss_and_history(model, guide, *tried.arguments)
            except ParticlesDied:
                return False
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return not all(g is None or bool(g.isfinite().all()) for g in gradients)

    for trial in range(batch.y.shape[0]):
        alone = _part(batch, torch.full_like(batch.trials, trial), batch.y.shape[1])
        if is_bad(alone, trial):
            low, high = 0, batch.y.shape[1]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if is_bad(_part(alone, slice(None), middle), trial) else (middle, high)
            where = place_in_data(batch, high - 1, trial)
            return SMCFailed(f"Step {step}: the gradient of the loss is not finite at {where} of `y`. {_ADVICE}")
    trials = batch.trials.tolist()
    return SMCFailed(f"Step {step}: the gradient of the loss is not finite with trials {trials} together. {_ADVICE}")


def _part(batch: Batch, rows: Tensor | slice, num_steps: int) -> Batch:
    u = None if batch.u is None else batch.u[rows, :num_steps]
    return replace(batch, y=batch.y[rows, :num_steps], u=u)
