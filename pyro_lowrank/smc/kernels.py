"""Which kernel runs a model and guide."""

from __future__ import annotations

from typing import Any

from pyro_lowrank.guides.base import Guide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.built_in import BuiltInKernel
from pyro_lowrank.smc.effects import EffectsKernel

_MODEL_METHODS = ("init", "step", "bind")
_GUIDE_METHODS = ("init", "step", "encode")


def is_built_in(model: Any, guide: Any) -> bool:
    """Whether the model and guide run on plain tensors: built in, for each other, and no method overridden."""
    return (
        isinstance(model, StateSpaceModel)
        and isinstance(guide, Guide)
        and guide.model is model
        and all(getattr(type(model), name) is getattr(StateSpaceModel, name) for name in _MODEL_METHODS)
        and all(getattr(type(guide), name) is getattr(Guide, name) for name in _GUIDE_METHODS)
    )


def make_kernel(model: Any, guide: Any, num_particles: int, max_plate_nesting: int) -> BuiltInKernel | EffectsKernel:
    """Return the kernel for a model and guide, with the parameters read now, as Pyro parameters.

    Raises:
        TypeError: if either lacks `init` or `step`, or a built-in guide is for another model.
    """
    if is_built_in(model, guide):
        return BuiltInKernel(model, guide, num_particles)
    for role, thing in (("model", model), ("guide", guide)):
        for method in ("init", "step"):
            if not callable(getattr(thing, method, None)):
                raise TypeError(
                    f"The {role} must have methods `init(state, ...)` and `step(state, ...)`, as for "
                    f"pyro.infer.SMCFilter; {type(thing).__name__} has no `{method}`."
                )
    if isinstance(guide, Guide) and isinstance(model, StateSpaceModel) and guide.model is not model:
        raise TypeError("The guide was built for another model: build it from this one.")
    return EffectsKernel(model, guide, num_particles, max_plate_nesting)
