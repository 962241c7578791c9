"""Which kernel runs a model and guide."""

from __future__ import annotations

from typing import Any

from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.built_in import BuiltInKernel
from pyro_lowrank.smc.effects import EffectsKernel, FromModel

_MODEL_METHODS = ("init", "step", "bind")
_GUIDE_METHODS = ("init", "step", "encode")


def is_built_in(model: Any, guide: Any) -> bool:
    """Whether the model and guide run on plain tensors: built in, for each other, and no method overridden."""
    return (
        _is_built_in(model, StateSpaceModel, _MODEL_METHODS)
        and _is_built_in(guide, Guide, _GUIDE_METHODS)
        and guide.model is model
    )


def _is_built_in(thing: Any, base: type, methods: tuple[str, ...]) -> bool:
    return isinstance(thing, base) and all(getattr(type(thing), name) is getattr(base, name) for name in methods)


def make_kernel(model: Any, guide: Any, num_particles: int, max_plate_nesting: int) -> BuiltInKernel | EffectsKernel:
    """Return the kernel for a model and guide, with the parameters read now, as Pyro parameters.

    Without a guide, as in `pyro.infer.Importance`, all latents are proposed from the model.

    Raises:
        TypeError: if either lacks `init` or `step`, or a built-in guide is for another model.
    """
    if guide is None:
        guide = BootstrapGuide(model) if _is_built_in(model, StateSpaceModel, _MODEL_METHODS) else FromModel()
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
