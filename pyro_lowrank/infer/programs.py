"""What objectives share as parts of Pyro programs: the model without its handlers, and data that are checked once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor

from pyro_lowrank.errors import check_trackable
from pyro_lowrank.handlers import Surroundings, invisible, is_recorded, surroundings
from pyro_lowrank.models.state_space import StateSpaceModel


class TensorLoss(ELBO):
    """Base of the objectives whose loss is a tensor of its own, not made of traces."""

    @abstractmethod
    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor to differentiate."""

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a float."""
        with torch.no_grad():
            return float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a float, and add its gradients to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch_item(loss))


_checked: WeakKeyDictionary[StateSpaceModel, tuple[Any, list[tuple[ref[Tensor], int]]]] = WeakKeyDictionary()
"""The type of each model and the data, with their versions, that it was last found to fit."""


def check_data(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise unless the data fit a built-in model; those that did a step ago, and were not changed since, still do."""
    if not isinstance(model, StateSpaceModel):
        for name, tensor in {**{f"Argument {i}": value for i, value in enumerate(args, 1)}, **kwargs}.items():
            if isinstance(tensor, Tensor) and torch.is_grad_enabled():
                check_trackable(name, tensor)
        return
    data: list[Any] = [value for value in (*args, *kwargs.values()) if value is not None]
    if any(not isinstance(value, Tensor) or value.is_inference() for value in data):
        model.check_data(*args, **kwargs)
        return
    like = next(model.parameters(), None)
    kind = None if like is None else (like.dtype, like.device)
    known_kind, known = _checked.get(model, (None, []))
    unchanged = (
        version == value._version and reference() is value
        for value, (reference, version) in zip(data, known, strict=False)
    )
    if kind != known_kind or len(data) != len(known) or not all(unchanged):
        model.check_data(*args, **kwargs)
        _checked[model] = kind, [(ref(value), value._version) for value in data]


@contextmanager
def entered(handlers: Sequence[Any]) -> Iterator[Surroundings]:
    """Enter the handlers of a model; what they do to its evidence, with those around where no site takes it up."""
    with ExitStack() as stack:
        if not is_recorded():
            for handler in handlers:
                stack.enter_context(handler)
            yield surroundings()
            return
        with ExitStack() as inside:
            inside.enter_context(invisible())
            for handler in handlers:
                inside.enter_context(handler)
            around = surroundings()
        for handler in handlers:
            stack.enter_context(handler)
        yield around


def unwrap(program: Any) -> tuple[Any, list[Any]]:
    """Return the model inside `poutine.scale(model, ...)` or a plate, and these handlers.

    Those of a guide are dropped: the scale of a particle filter is one number, the model's.
    """
    handlers: list[Any] = []
    while isinstance(program, partial):
        inner = program.func if not program.args else program
        handler, wrapped = inner.args[:2] if isinstance(inner, partial) and len(inner.args) > 1 else (None, None)
        if not isinstance(handler, (ScaleMessenger, PlateMessenger)):
            raise TypeError(
                "Of Pyro's handlers only `poutine.scale` and `pyro.plate` can wrap a filtered model or guide, got "
                f"{type(handler).__name__ if isinstance(handler, Messenger) else program!r}; use it inside `init` and "
                "`step`."
            )
        handlers.append(handler)
        program = wrapped
    return program, handlers
