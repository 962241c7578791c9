"""What trains the parameters of a fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn, optim

from pyro_lowrank.errors import check_trackable
from pyro_lowrank.training.steps import parameters_of

# Shorter memories than RAdam's own, 0.9 and 0.999: from a chaotic network's own latents its drift was learned in half
# as many steps. In fits from data they alone made no difference that was seen.
_BETAS = (0.95, 0.98)


def default_optimizer(parameters: Sequence[nn.Parameter], lr: float) -> optim.Optimizer:
    """Return the optimiser of a fit that is given none."""
    return optim.RAdam(parameters, lr=lr, betas=_BETAS)


def optimizer_of(
    declared: Callable[..., optim.Optimizer],
    model: Any,
    guide: Any,
    learning_rate: float,
    besides: Sequence[nn.Parameter] = (),
) -> optim.Optimizer:
    """Return the optimiser of all that is trained, or raise if there is nothing, or what builds it builds none.

    Args:
        declared: what builds it.
        model: whose parameters are trained.
        guide: whose are, too.
        learning_rate: of the first step.
        besides: parameters of neither.
    """
    parameters = list(parameters_of(model, guide, trainable=True).values())
    if not parameters:
        raise ValueError("Nothing to train: no parameter of the model or guide has requires_grad=True.")
    for parameter in parameters:
        check_trackable("A parameter of the model or guide", parameter)
    if not callable(declared):
        raise TypeError(
            f"`optimizer` must be a torch optimiser class or a function of (parameters, lr), got {declared!r}; the fit "
            "builds it, as optimizer(parameters, lr=learning_rate)."
        )
    built = declared([*parameters, *besides], lr=learning_rate)
    if not isinstance(built, optim.Optimizer) or isinstance(built, optim.LBFGS):
        raise TypeError(
            f"`optimizer` must build a torch.optim.Optimizer for noisy gradients, got {type(built).__name__}."
        )
    return built
