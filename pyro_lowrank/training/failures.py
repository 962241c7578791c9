"""Where a fit went wrong, in terms of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor, nn

from pyro_lowrank.infer.elbo import SMC_ELBO
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
    if isinstance(error, ParticlesDied):
        where = place_in_data(batch, error.time, error.trial)
        return SMCFailed(f"Step {step}: the loss is not finite at {where} of `{data}`: {error.cause}. {_ADVICE}")
    return SMCFailed(f"Step {step}: the loss of `{data}` cannot be computed: {error} {_ADVICE}")


def gradient_failure(
    elbo: SMC_ELBO, model: Any, guide: Any, batch: Batch, parameters: Sequence[nn.Parameter], step: int
) -> SMCFailed:
    """Return the error of a step whose gradient is not finite; the generators are seeded as for the step."""
    _, history = elbo.loss_and_history(model, guide, *batch.arguments)
    increments = history.increments
    per_trial = increments.dim() == 2
    columns = increments.unbind(-1) if per_trial else (increments,)
    for trial, column in enumerate(columns):
        time = _first_bad_gradient(column, parameters)
        if time is not None:
            where = place_in_data(batch, time, trial if per_trial else None)
            return SMCFailed(f"Step {step}: the gradient of the loss is not finite at {where} of `y`. {_ADVICE}")
    return SMCFailed(f"Step {step}: the gradient of the loss is not finite, in the sum over trials alone. {_ADVICE}")


def _first_bad_gradient(increments: Tensor, parameters: Sequence[nn.Parameter]) -> int | None:
    """Return the first time bin up to which the evidence, `time`, has a gradient that is not finite, or None."""

    def is_bad(end: int) -> bool:
        gradients = torch.autograd.grad(increments[:end].sum(), parameters, retain_graph=True, allow_unused=True)
        return not all(g is None or bool(g.isfinite().all()) for g in gradients)

    low, high = 0, len(increments)
    if not is_bad(high):
        return None
    # Once it is not finite, the gradient of a longer sum is not either.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_bad(middle) else (middle, high)
    return high - 1
