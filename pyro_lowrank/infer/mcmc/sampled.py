"""A model some of whose parameters have priors: unconstrained values of these, their density, and the model there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_lowrank.errors import check_same_type
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.infer.mcmc.sites import GaussianSites, set_value, unchecked
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.modules import prior_names
from pyro_lowrank.smc.kernels import is_built_in

Values = dict[str, Tensor]

STARTS = 100
"""How many draws of the prior a chain may try to start from."""


def no_start(model: nn.Module, given: Values | None, tries: int, why: Exception | None) -> ValueError:
    """Return the error of a chain that has nowhere to start from."""
    empty = [name.removesuffix("_unconstrained") for name, x in model.named_parameters() if not x.isfinite().all()]
    if empty:
        why = ValueError(f"{', '.join(empty)} have neither a prior nor values that are numbers")
    where = f"{tries} draws of the prior" if given is None else "the `initial_params`"
    reason = "" if why is None else f" ({why})"
    return ValueError(
        f"No start was found: at {where} the particles of some trial died or went to infinity{reason}, or priors "
        "contradict what parameters may be, such as negative scales. Use more particles, a guide that looks at the "
        "data, or narrower priors; or pass initial_params to MCMC (unconstrained values)."
    )


def _of_another(model: Any, guide: Any) -> str:
    """Say so where a guide is of another model than it is used with, such as one that `with_priors` copied."""
    if not isinstance(guide, Guide) or guide.model is model:
        return ""
    return f", which was made from another model; make one from this, {type(guide).__name__}(model)"


def check_sampled(model: Any, guide: Any) -> Guide:
    """Return the guide, the bootstrap one if None, or raise unless the pair can be sampled.

    Raises:
        TypeError: if the model or guide is none of the library's.
        ValueError: if no parameter has a prior, or parameters of the guide have some.
    """
    if isinstance(model, StateSpaceModel) and guide is None:
        guide = BootstrapGuide(model)
    if not is_built_in(model, guide):
        raise TypeError(
            "`model` must be a StateSpaceModel and `guide` a built-in guide that was made from it, got "
            f"{type(model).__name__} and {type(guide).__name__}{_of_another(model, guide)}."
        )
    if not any(prior_names(part) for part in model.modules()):
        raise ValueError(
            "No parameter of the model has a prior, so that nothing but the latents would be sampled: give some one, "
            "model.dynamics.decay = pyro.nn.PyroSample(dist.Beta(9., 1.)); or draw latents alone, SMCFilter(model, "
            "guide, 100).run(y).smooth(100)."
        )
    named = sorted(name for part in guide.modules() for name in prior_names(part))
    if named:
        raise ValueError(f"Parameters of a guide have no posterior, and {named} of this one have priors: fix them.")
    assert isinstance(guide, Guide)
    return guide


class Sampled:
    """A model's parameters with priors, by the names of their Pyro sites; all other parameters stay as they are now.

    Attributes:
        program: a copy of the model, with its priors; its other parameters are constants.
        model: a copy of the model whose parameters have the values given to `assign`, and no priors.
        guide: of that copy.
        transforms: from the constrained to the unconstrained values of each parameter.

    Args:
        model: the model.
        guide: its guide.
        init_strategy: how `start` draws, one of those of `pyro.infer.autoguide.initialization`.
    """

    def __init__(self, model: StateSpaceModel, guide: Guide, init_strategy: Callable[[Any], Any]) -> None:
        self.program, its_guide = copy.deepcopy((model, guide))
        for parameter in (*self.program.parameters(), *its_guide.parameters()):
            # A constant: no entry of Pyro's parameter store, no gradient.
            parameter.requires_grad_(False)
        # A density must not change from one look to the next, as it would with a user's dropout.
        self.program.eval()
        its_guide.eval()
        self.model, self.guide = copy.deepcopy((self.program, its_guide))
        self._init_strategy = init_strategy
        trace = self._trace({})
        self.transforms: dict[str, Transform] = {}
        like = next(model.parameters(), None)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site["is_observed"]:
                continue
            if site["fn"].support.is_discrete:
                raise ValueError(f"{name!r} has a discrete prior, {site['fn']}: only continuous ones are sampled.")
            if like is not None:
                check_same_type(f"A draw of the prior of {name}", site["value"], like)
            self.transforms[name] = biject_to(site["fn"].support).inv
        self._find_homes(trace)

    def _find_homes(self, trace: Any) -> None:
        """Find which attribute of `model` each site is the value of, in the order in which they depend on others."""
        homes: dict[str, tuple[nn.Module, str]] = {}
        priors: dict[str, Any] = {}
        for path, part in self.program.named_modules():
            for attribute in prior_names(part):
                name = part._pyro_get_fullname(attribute)
                if name not in trace.nodes:
                    raise ValueError(f"{name!r} has a prior, and the model does not read it: remove the prior.")
                copied = self.model.get_submodule(path)
                value = trace.nodes[name]["value"].detach().clone()
                setattr(copied, attribute, nn.Parameter(value, requires_grad=False))
                homes[name], priors[name] = (copied, attribute), unchecked(part._pyro_samples[attribute])
        self._homes = {name: homes[name] for name in trace.nodes if name in homes}
        # A prior may draw from others, in a function of the user's, which only Pyro sees.
        self._priors = priors if set(self.transforms) <= set(homes) else {}
        self._gaussian = GaussianSites(self._priors, self.transforms)

    def _trace(self, values: Mapping[str, Tensor]) -> Any:
        """Run the priors, with some of their values given."""
        try:
            return poutine.trace(poutine.condition(self.program.bind, data=dict(values))).get_trace()
        except NotImplementedError as reason:
            # `ImproperUniform`, among others.
            raise ValueError(
                "A prior cannot be drawn from, as improper ones cannot: chains start from draws, and the posterior may "
                "be improper with it; give a proper one, such as a wide Normal."
            ) from reason

    @torch.no_grad()
    def start(self) -> Values:
        """Draw unconstrained values to start from."""
        trace = poutine.trace(InitMessenger(self._init_strategy)(self.program.bind)).get_trace()
        return {name: transform(trace.nodes[name]["value"]) for name, transform in self.transforms.items()}

    def constrained(self, unconstrained: Mapping[str, Tensor]) -> Values:
        """Return the values that unconstrained ones stand for."""
        return {name: transform.inv(unconstrained[name]) for name, transform in self.transforms.items()}

    @torch.no_grad()
    def assign(self, unconstrained: Mapping[str, Tensor]) -> None:
        """Give the parameters of `model` these values; what depends on them follows."""
        self.at(unconstrained)

    def at(self, unconstrained: Mapping[str, Tensor]) -> tuple[Tensor, BoundModel]:
        """Give `model` these values, and return their log prior density, in nats, and the model there.

        Both are differentiable where gradients are enabled.
        """
        values = self.constrained(unconstrained)
        total = self._direct(values) if self._priors else self._traced(values)
        for name, transform in self.transforms.items():
            if name not in self._gaussian.names:
                total = total - transform.log_abs_det_jacobian(values[name], unconstrained[name]).sum()
        return total + self._gaussian.log_prob(unconstrained), self.model.bind()

    def _direct(self, values: Mapping[str, Tensor]) -> Tensor:
        """Set all values, those that follow from others after these; return the log density of those not Gaussian."""
        total = next(iter(values.values())).new_zeros(())
        for name, (part, attribute) in self._homes.items():
            if name in self._gaussian.names:
                set_value(part, attribute, values[name])
                continue
            prior = self._priors[name]
            found = prior if hasattr(prior, "log_prob") else prior(part)
            if isinstance(found, Tensor):
                set_value(part, attribute, found)
            else:
                set_value(part, attribute, values[name])
                total = total + found.log_prob(values[name]).sum()
        return total

    def _traced(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return what `_direct` does, of priors that draw from others of their own."""
        trace = self._trace(values)
        for name, (part, attribute) in self._homes.items():
            set_value(part, attribute, trace.nodes[name]["value"])
        return torch.as_tensor(trace.log_prob_sum())

    def site_of(self, part: nn.Module, attribute: str) -> str | None:
        """Return the site that an attribute of a part of `model` is the value of, if there is one."""
        return next((name for name, home in self._homes.items() if home == (part, attribute)), None)

    def gaussian(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return mean and scale of a site whose prior is normal, and None of any other."""
        if name not in self._gaussian.names or not _is_real(self.transforms[name]):
            return None
        return self._gaussian.moments[name]

    def others_follow(self, name: str) -> bool:
        """Whether the values or priors of other sites depend on one."""
        values = self.start()
        leaf = values[name].detach().requires_grad_()
        with torch.enable_grad():
            density = self._direct(self.constrained({**values, name: leaf}))
            others = [part._parameters[attribute] for key, (part, attribute) in self._homes.items() if key != name]
            found = torch.stack([density, *(each.sum() for each in others if each is not None)]).sum()
            return found.requires_grad and torch.autograd.grad(found, leaf, allow_unused=True)[0] is not None

    def log_prior(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """Return the log prior density of unconstrained values, in nats; `model` has these values afterwards."""
        return self.at(unconstrained)[0]

    def check_start(self, given: Mapping[str, Tensor]) -> None:
        """Raise unless starting values given by the user are those of all parameters, unconstrained.

        Raises:
            ValueError: if there are others, or they have other shapes.
        """
        expected = {name: tuple(value.shape) for name, value in self.start().items()}
        found = {name: tuple(value.shape) for name, value in given.items() if name != "z"}
        if found != expected:
            raise ValueError(
                f"`initial_params` must hold unconstrained values of the parameters with priors, {expected}, and may "
                f"hold latents 'z', got {found}."
            )


def _is_real(transform: Transform) -> bool:
    """Whether a transform is none, so that constrained values are the unconstrained ones."""
    probe = torch.tensor([[-2.0, 3.0]])
    return torch.equal(transform(probe), probe)


def own_store() -> Any:
    """Return a context in which Pyro's parameter store is empty: a kernel leaves nothing there, and reads nothing."""
    return pyro.get_param_store().scope()
