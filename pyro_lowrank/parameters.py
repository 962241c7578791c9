"""How parameters are declared and copied, so that Pyro reads, trains and freezes them as expected."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any, TypeVar

from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

ModuleT = TypeVar("ModuleT", bound=PyroModule)

_copies = count(1)


def parameter(value: Tensor, constraint: constraints.Constraint = constraints.real) -> Any:
    """Declare a parameter of a `PyroModule`, to be assigned to an attribute, which then reads as a tensor.

    An `nn.Parameter` would do for most, but where Pyro's `module_local_params` is on `SVI` fails on it, and where it
    is off a frozen one becomes trainable again.

    Example::

        >>> import torch
        >>> module = PyroModule()
        >>> module.rate = parameter(torch.tensor(1.0), constraints.positive)
        >>> module.rate.exp()
        tensor(2.7183, grad_fn=<ExpBackward0>)
    """
    return PyroParam(value, constraint)


def remember_drawn(module: nn.Module, *names: str) -> None:
    """Keep the values that parameters of a module were drawn with, so that it is known whether they still have them."""
    module.__dict__.setdefault("_drawn", {}).update({name: getattr(module, name).detach().clone() for name in names})


def is_as_drawn(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is trained and still has the value that it was drawn with."""
    drawn = module.__dict__.get("_drawn", {}).get(name)
    parameter = module._parameters.get(f"{name}_unconstrained")
    if drawn is None or parameter is None or not parameter.requires_grad or parameter.shape != drawn.shape:
        return False
    return bool((parameter.detach() == drawn.to(parameter)).all())


def copy_module(module: ModuleT) -> ModuleT:
    """Return a copy whose parameters have names of their own in Pyro's param store.

    Under the names of the original, the store would hand the values of one to the other.
    """
    copied = copy.deepcopy(module)
    context = PyroModule()._pyro_context
    root = f"copy{next(_copies)}"
    for name, part in copied.named_modules():
        if isinstance(part, PyroModule):
            part._pyro_name = f"{root}.{name}" if name else root
            part._pyro_context = context
    return copied
