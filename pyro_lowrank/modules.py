"""The base of every module: a PyroModule that other modules' parameters cannot overwrite, and that stays frozen."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyro
import pyro.nn.module as pyro_module
from pyro.nn import PyroModule
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import _PYRO_STACK, am_i_wrapped
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to

from pyro_lowrank.errors import warn_user

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="Module")
N = TypeVar("N", bound=nn.Module)


def _store_names(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by the names that they have in Pyro's parameter store."""
    prefix = getattr(module, "_pyro_name", "")
    # Pyro registers a plain module, with all that it holds, as one thing.
    plain = {path for path, part in module.named_modules() if path and not isinstance(part, PyroModule)}
    outermost = {path for path in plain if path.rpartition(".")[0] not in plain}

    def stored(name: str) -> str:
        for path in outermost:
            if name.startswith(f"{path}."):
                name = f"{path}$$${name.removeprefix(f'{path}.')}"
        return f"{prefix}.{name}".removeprefix(".").removesuffix("_unconstrained")

    return {stored(name): parameter for name, parameter in module.named_parameters()}


@contextmanager
def own_values(*modules: Any) -> Iterator[None]:
    """Within it, modules read their own parameters, whatever the global parameter store holds under the same names.

    Pyro keeps the parameters of a `PyroModule` in one global store by name. Two models have the same names, so that
    reading the second would overwrite it with the first. Under Pyro's handlers (as in `SVI.step`) the store is how
    parameters are found, and is left as it is. Sampled attributes are read once, as within one call of `forward`.
    """
    with ExitStack() as stack:
        if not am_i_wrapped() and any(map(_reads_the_store, modules)):
            stack.enter_context(_without(modules))
        for module in modules:
            if isinstance(module, PyroModule):
                stack.enter_context(module._pyro_context)
        yield


def _reads_the_store(module: Any) -> bool:
    """Whether a module has parts that Pyro stores when they are read.

    Those are parts that are not ours (a user's encoder, say), and ours in a program of a user's: it reads them within
    its own plates.
    """
    if not isinstance(module, nn.Module):
        return False
    users = not isinstance(module, Module)
    return any(part._parameters and (users or not isinstance(part, Module)) for part in module.modules())


def _without(modules: tuple[Any, ...]) -> Any:
    """Return Pyro's parameter store, as a context, without the names of the modules."""
    store = pyro.get_param_store()
    own = {name for module in modules if isinstance(module, nn.Module) for name in _store_names(module)}
    state: Any = store.get_state()
    others: Any = {kind: {n: v for n, v in values.items() if n not in own} for kind, values in state.items()}
    return store.scope(others)


def warn_of_shadowed(*modules: Any) -> None:
    """Warn if reading the modules under Pyro's handlers would overwrite them with other values from the store."""
    if not am_i_wrapped() or _parameters_are_local():
        return
    stored = pyro.get_param_store()._params
    for module in modules:
        if not isinstance(module, Module):
            continue
        for name, parameter in _store_names(module).items():
            if stored.get(name, parameter) is not parameter:
                warn_user(
                    f"Pyro's parameter store holds another value under the name {name!r}, left by another model or "
                    "loaded: it would be trained, and as a rule read, in place of that of this model. If that is not "
                    "what you want, call pyro.clear_param_store() between models, or "
                    "pyro.settings.set(module_local_params=True) first."
                )
                return


def check_priors_are_handled(*modules: Any) -> None:
    """Raise if attributes have priors (`PyroSample`) that no enclosing handler scores, replays or conditions."""
    passive = (ScaleMessenger, MaskMessenger, PlateMessenger, BlockMessenger)
    for handler in _PYRO_STACK:
        if not isinstance(handler, passive) and not (isinstance(handler, TraceMessenger) and handler.param_only):
            return
    for module in modules:
        parts = module.named_modules() if isinstance(module, nn.Module) else ()
        sampled = [f"{path}.{name}".removeprefix(".") for path, part in parts for name in prior_names(part)]
        if sampled:
            raise ValueError(
                f"{', '.join(sampled)} have priors (PyroSample), which a particle filter by itself would only draw "
                "from. Make its log evidence a factor of a Pyro program that infers them: "
                "pyro.factor('evidence', -elbo.differentiable_loss(model, guide, y)); or fix them: "
                "with pyro.poutine.condition(data={...})."
            )


def prior_names(part: nn.Module) -> Iterable[str]:
    """Return the names of a module's own attributes that have priors (`PyroSample`)."""
    return part._pyro_samples if isinstance(part, PyroModule) else ()


def read_priors(*modules: Any) -> None:
    """Sample the attributes that have priors, once for all that reads them within `own_values`.

    A filter's particles would each sample its own, and hide it from the program around.
    """
    for module in modules:
        for part in module.modules() if isinstance(module, nn.Module) else ():
            for name in prior_names(part):
                getattr(part, name)


class Module(PyroModule):
    """Base of the networks, observation models, guides and models.

    As a `PyroModule`, with two differences: outside Pyro's handlers its parameters are its own (`own_values`), and
    parameters that do not require a gradient are constants, no Pyro parameters, so that no optimiser finds them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward` with Pyro's effects."""
        with own_values(self):
            return super().__call__(*args, **kwargs)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        # Pyro refuses modules that have run by themselves, whose parameters the store knows under shorter names. Ours
        # were not in the store unless a handler was around, so a model may be looked at before it becomes a part.
        self._pyro_context.used = False
        super()._pyro_set_supermodule(name, context)

    def __getattr__(self, name: str) -> Any:
        """Read a parameter: through Pyro's store only where a handler could notice, and never a frozen one."""
        parameters = self.__dict__.get("_parameters", {})
        plain = parameters.get(name)
        # Pyro would make a frozen parameter trainable by registering it.
        if plain is not None and not (plain.requires_grad and am_i_wrapped()):
            return plain
        unconstrained = parameters.get(f"{name}_unconstrained")
        if unconstrained is not None and not (unconstrained.requires_grad and am_i_wrapped()):
            constraint = self.__dict__["_pyro_params"].get(name, (None,))[0]
            if constraint is not None:
                return _constrained(unconstrained, constraint)
        value = super().__getattr__(name)
        if isinstance(getattr(value, "unconstrained", None), weakref.ref):
            value.unconstrained = Unconstrained(value.unconstrained())
        findable = isinstance(value, nn.Module | nn.Parameter) and not name.endswith("_unconstrained")
        if findable and _parameters_are_local():
            _let_svi_find(value)
        return value


class Unconstrained:
    """Where the unconstrained parameter of a value is, as `SVI` asks for it: a weak reference that can be pickled.

    Args:
        parameter: the parameter, which is not kept alive; None where it is gone.

    Example::

        >>> import torch
        >>> parameter = nn.Parameter(torch.zeros(2))
        >>> Unconstrained(parameter)() is parameter
        True
    """

    def __init__(self, parameter: Tensor | None) -> None:
        self._find = (lambda: None) if parameter is None else weakref.ref(parameter)

    def __call__(self) -> Tensor | None:
        """Return the parameter."""
        return self._find()

    def __deepcopy__(self, memo: dict[int, Any]) -> Unconstrained:
        """Return itself: a copy of the value comes from the same parameter."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the parameter."""
        return Unconstrained, (self(),)


def _parameters_are_local() -> bool:
    """Whether Pyro's setting `module_local_params` is on, read where it is kept.

    `pyro.settings.get` imports the module by name each time: slow, and nothing for `torch.compile`.
    """
    return bool(pyro_module._MODULE_LOCAL_PARAMS)


@functools.cache
def _transform(constraint: constraints.Constraint) -> Transform:
    return transform_to(constraint)


def _constrained(unconstrained: nn.Parameter, constraint: constraints.Constraint) -> Tensor:
    """Return the value of a parameter, as Pyro would."""
    value: Any = _transform(constraint)(unconstrained)
    value.unconstrained = Unconstrained(unconstrained)
    return value


def _let_svi_find(value: Any) -> None:
    """Give a user's plain parameters the attribute that `SVI` asks for, and Pyro sets on `PyroParam`s only."""
    if isinstance(value, nn.Parameter):
        value.unconstrained = Unconstrained(value)  # type: ignore[attr-defined]
    elif isinstance(value, nn.Module) and not isinstance(value, PyroModule):
        for parameter in value.parameters():
            parameter.unconstrained = Unconstrained(parameter)  # type: ignore[attr-defined]


def bound(module: N) -> N:
    """Return a copy of a module whose attributes are the values that they have now, read once, with Pyro's effects.

    What it computes afterwards has no effects: samples are not drawn anew, nor parameters looked up again.
    """
    if not any(isinstance(part, PyroModule) for part in module.modules()):
        return module
    fixed = object.__new__(type(module))
    fixed.__dict__.update(module.__dict__)
    children: dict[str, Any] = {}
    for name, child in module._modules.items():
        # Reading a plain module through one of Pyro's tells Pyro of its parameters.
        children[name] = None if child is None else bound(getattr(module, name))
    fixed.__dict__["_modules"] = children
    if isinstance(module, PyroModule):
        plain = [name for name, value in module._parameters.items() if value is not None]
        own = [name for name in plain if not name.endswith("_unconstrained")]
        values = {name: getattr(module, name) for name in (*own, *module._pyro_params, *module._pyro_samples)}
        # Attributes of the object itself are found before any look-up of Pyro's.
        fixed.__dict__.update(values, **children)
    return fixed


def effectful(method: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """Give a method of a `Module` what `forward` has: Pyro's effects, and sampled attributes read once per call."""

    @functools.wraps(method)
    def wrapped(self: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with own_values(self):
            return method(self, *args, **kwargs)

    return wrapped
