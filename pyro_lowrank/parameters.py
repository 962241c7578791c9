"""How parameters are declared and copied, so that Pyro reads, trains and freezes them as expected."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any, TypeVar

from pyro.nn import PyroModule, PyroParam
from torch import Tensor
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
