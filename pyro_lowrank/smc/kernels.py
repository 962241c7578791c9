"""What runs a model and guide: built-in ones as a bound pair, a user's own under Pyro's effects."""

from __future__ import annotations

from typing import Any

from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.modules import read_priors
from pyro_lowrank.smc.effects import EffectsKernel, FromModel
from pyro_lowrank.smc.pair import Pair

_MODEL_METHODS = ("init", "step", "bind")
_GUIDE_METHODS = ("init", "step", "encode")


def is_built_in(model: Any, guide: Any) -> bool:
    """Whether the model and guide run on plain tensors: built in, for each other, and no method overridden."""
    return is_built_in_model(model) and _is_built_in(guide, Guide, _GUIDE_METHODS) and guide.model is model


def is_built_in_model(model: Any) -> bool:
    """Whether the model is a `StateSpaceModel` with no method overridden."""
    return _is_built_in(model, StateSpaceModel, _MODEL_METHODS)


def _is_built_in(thing: Any, base: type, methods: tuple[str, ...]) -> bool:
    return isinstance(thing, base) and all(getattr(type(thing), name) is getattr(base, name) for name in methods)


def bind(
    model: Any, guide: Any, num_particles: int, max_plate_nesting: int, *, through_proposal: bool = True
) -> Pair | EffectsKernel:
    """Return a built-in model and guide, with the parameters read now, as Pyro parameters; or the kernel of others.

    Without a guide, as in `pyro.infer.Importance`, all latents are proposed from the model.

    Args:
        model: the model.
        guide: its guide, or None.
        num_particles: of a user's pair.
        max_plate_nesting: likewise.
        through_proposal: as of `Pair.of`.

    Raises:
        TypeError: if either lacks `init` or `step`, or a built-in guide is for another model.
    """
    if guide is None:
        guide = BootstrapGuide(model) if is_built_in_model(model) else FromModel()
    if is_built_in(model, guide):
        return Pair.of(model, guide, through_proposal=through_proposal)
    for role, thing in (("model", model), ("guide", guide)):
        for method in ("init", "step"):
            if not callable(getattr(thing, method, None)):
                raise TypeError(
                    f"The {role} must have methods `init(state, ...)` and `step(state, ...)`, as for "
                    f"pyro.infer.SMCFilter; {type(thing).__name__} has no `{method}`."
                )
    if isinstance(guide, Guide) and isinstance(model, StateSpaceModel) and guide.model is not model:
        raise TypeError("The guide was built for another model: build it from this one.")
    read_priors(model, guide)
    return EffectsKernel(model, guide, num_particles, max_plate_nesting)
