"""A likelihood of one's own that factorises over features, from its density alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.base import ReadoutObservation
from pyro_lowrank.observations.density import Link
from pyro_lowrank.observations.family import ScalarDistribution, ScalarEmission, ScalarFamily
from pyro_lowrank.observations.readout import Readout
from pyro_lowrank.observations.tabulated import SUPPORTS, typical_values
from pyro_lowrank.parameters import parameter

# How a readout is sought at which the mean is given.
_DOUBLINGS, _HALVINGS = 40, 60


@dataclass(frozen=True)
class FeatureParameter:
    """A parameter of a `ScalarObservation`, declared in its class under the name that `log_density` has for it.

    Args:
        start: its value before training.
        constraint: of torch's.
        shared: whether all features have one value, in place of one each.

    Example::

        >>> FeatureParameter(0.1, constraints.unit_interval).start
        0.1
    """

    start: float
    constraint: constraints.Constraint = constraints.real
    shared: bool = False


class ScalarObservation(ReadoutObservation):
    r"""Base of likelihoods that factorise over features, of which one function says the density of one number.

    .. math:: p(y_t \mid z_t) = \prod_i p(y_{ti} \mid \eta_{ti}, \theta_i), \qquad \eta_t = C z_t + b

    A subclass defines `log_density(y, eta, *parameters)`, in nats: operators, `if`, and functions of `math`, `numpy`
    or `torch`; no `self`, and `@staticmethod` may be left out. It is called once, with symbols, and from it come the
    gradient, the curvature for `LaplaceGuide`, and the compiled loops. Parameters are declared in the class as
    `FeatureParameter`, under the names of its further arguments. It may also define, likewise as functions of numbers,

    - `information(y, eta, *parameters)`: what stands for minus the second derivative and is not negative; by default
      that itself, or zero;
    - `aim(y, *parameters)`: the eta at which y is most likely, by which steps towards the data are measured; by default
      it is sought, once per call, which costs more than all else where data are no counts;
    - `expected(eta, *parameters)` and `variance(eta, *parameters)`: by default summed up from the density;
    - `sample(eta, *parameters)`: draws, of tensors; by default by inverse transform;

    and `support`, one of `torch.distributions.constraints`: `real`, `positive`, `nonnegative_integer`, `boolean` or
    `unit_interval`.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        TypeError: if a function cannot be traced; it names the function and the line.
        ValueError: if the parameters that are declared are not those of `log_density`, or the density is NaN.

    Example::

        >>> import math
        >>> import pyro_lowrank as plr
        >>> from torch.distributions import constraints
        >>> class ZeroInflatedPoisson(plr.ScalarObservation):
        ...     support = constraints.nonnegative_integer
        ...     gate = plr.FeatureParameter(0.1, constraints.unit_interval)
        ...
        ...     def log_density(y, eta, gate):
        ...         rate = math.log(1 + math.exp(eta))
        ...         if y == 0:
        ...             return math.log(gate + (1 - gate) * math.exp(-rate))
        ...         return math.log(1 - gate) + y * math.log(rate) - rate - math.lgamma(y + 1)
        >>> observation = ZeroInflatedPoisson(rank=2, features=40)
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), observation)
        >>> guide = plr.LaplaceGuide(model)
        >>> model.simulate(num_trials=3, num_steps=20).y.shape
        torch.Size([3, 20, 40])
    """

    support: ClassVar[constraints.Constraint] = constraints.real
    mean_name: ClassVar[str] = "mean"
    _declared: ClassVar[dict[str, FeatureParameter]] = {}
    _FUNCTIONS: ClassVar[tuple[str, ...]] = ("log_density", "information", "aim", "expected", "variance", "sample")
    log_density: Callable[..., Any]
    information: Callable[..., Any] | None = None
    aim: Callable[..., Any] | None = None
    expected: Callable[..., Any] | None = None
    variance: Callable[..., Any] | None = None
    sample: Callable[..., Any] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for called in cls._FUNCTIONS:
            own = cls.__dict__.get(called)
            if inspect.isfunction(own):
                setattr(cls, called, staticmethod(own))
        found = {called: value for called, value in cls.__dict__.items() if isinstance(value, FeatureParameter)}
        for called in found:
            delattr(cls, called)
        cls._declared = {**cls._declared, **found}

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        for called, declared in self._declared.items():
            shape = () if declared.shared else (self.features,)
            setattr(
                self,
                called,
                parameter(torch.full(shape, declared.start, dtype=dtype, device=device), declared.constraint),
            )
        _check_class(type(self))
        # Kept: `torch.compile` looks through what only a cache remembers.
        self._family = _family_of(type(self), None)

    def family(self) -> ScalarFamily:
        """Return what all observation models of the class with this link share."""
        return self._family

    def _set_link(self, link: Link) -> None:
        """Put something between the readout and the class's functions."""
        self._family = _family_of(type(self), link)

    def bind(self, units: Any) -> ScalarEmission:
        """Return the observation model at the present parameter values."""
        family = self.family()
        values = tuple(self._broadcast(called) for called in family.density.parameters)
        return ScalarEmission(self.readout.bind(units), family, values)

    def _broadcast(self, called: str) -> Tensor:
        value = getattr(self, called, None)
        if value is None:
            raise ValueError(
                f"{_place_of(type(self).log_density)} takes {called}: declare it in the class, "
                f"`{called} = plr.FeatureParameter(...)`, or set it as an attribute."
            )
        if not isinstance(value, Tensor):
            value = next(self.readout.parameters()).new_tensor(value)
        return value.unsqueeze(-1) if self._is_shared(called) else value

    def _is_shared(self, called: str) -> bool:
        """Whether all features have one value of a parameter."""
        declared = self._declared.get(called)
        return getattr(self, called).dim() == 0 if declared is None else declared.shared

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` holds what the likelihood can produce."""
        super().check_data(y)
        bad = ~self.support.check(y) & ~y.isnan()
        if bad.any():
            what, others, instead = _SAID_OF[str(self.support)]
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{type(self).__name__} takes {what}: `y` holds {int(bad.sum())} {others} values, the first at index "
                f"{where}, {y[where].item():g}; {instead}."
            )

    @torch.no_grad()
    def predictor_of_mean(self, mean: Tensor) -> Tensor:
        """Return the readout at which the expected observation is `mean`, `features`; zero where none is found.

        By bisection, of a mean that grows with the readout.
        """
        low, high = -torch.ones_like(mean), torch.ones_like(mean)
        for _ in range(_DOUBLINGS):
            low = torch.where(self._mean_at(low) > mean, 2 * low, low)
            high = torch.where(self._mean_at(high) < mean, 2 * high, high)
        found = (self._mean_at(low) <= mean) & (mean <= self._mean_at(high))
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            below = self._mean_at(middle) < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(found, 0.5 * (low + high), 0.0)

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Return how much the expected observation changes with the readout where it is `mean`, `features`."""
        eta, step = self.predictor_of_mean(mean), torch.finfo(mean.dtype).eps ** (1 / 3)
        step = step * eta.abs().clamp(min=1.0)
        return ((self._mean_at(eta + step) - self._mean_at(eta - step)) / (2 * step)).detach()

    def _mean_at(self, eta: Tensor) -> Tensor:
        parameters = tuple(self._broadcast(called) for called in self.family().density.parameters)
        return ScalarDistribution(self.family(), eta, parameters).mean

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"readout": self.readout}


def _parameters_of(cls: type) -> list[str]:
    log_density: Any = getattr(cls, "log_density", None)
    if log_density is None:
        raise TypeError(f"{cls.__name__} must define `log_density(y, eta, ...)`, a function of numbers without `self`.")
    return list(inspect.signature(log_density).parameters)[2:]


@cache
def _family_of(cls: type[ScalarObservation], link: Link | None) -> ScalarFamily:
    return ScalarFamily.of(
        cls.log_density,
        _parameters_of(cls),
        information=cls.information,
        aim=cls.aim,
        expected=cls.expected,
        variance=cls.variance,
        sample=cls.sample,
        support=cls.support,
        mean_name=cls.mean_name,
        link=link,
        origin=(_family_of, (cls, link)),
    )


_SAID_OF: dict[str, tuple[str, str, str]] = {
    str(constraints.nonnegative_integer): (
        "counts, 0, 1, 2, ...",
        "negative or fractional",
        "bin the spikes, or use GaussianObservation",
    ),
    str(constraints.boolean): ("zeros and ones", "other", "use shorter bins, or PoissonObservation for counts"),
    str(constraints.positive): ("numbers above zero", "other", "leave them out as NaN, or use another likelihood"),
    str(constraints.unit_interval): ("shares from 0 to 1", "other", "divide by the largest, or use another likelihood"),
}


@cache
def _check_class(cls: type[ScalarObservation]) -> None:
    """Raise unless a class's parameters are declared and its density is a number at their starts."""
    taken, declared = _parameters_of(cls), cls._declared
    unused = [called for called in declared if called not in taken]
    if unused:
        raise ValueError(
            f"{cls.__name__} declares {', '.join(unused)}, but `log_density` takes {', '.join(taken) or 'none'} "
            "beside y and eta: it must take all that are declared."
        )
    if str(cls.support) not in SUPPORTS:
        raise ValueError(f"`{cls.__name__}.support` must be one of {', '.join(SUPPORTS)}, got {cls.support}.")
    density = _family_of(cls, None).density
    if declared.keys() != set(taken):
        return
    starts = [torch.tensor(declared[called].start, dtype=torch.float64) for called in taken]
    values = torch.tensor(typical_values(str(cls.support)), dtype=torch.float64)
    found = density.log_prob(values, torch.zeros(1, dtype=torch.float64), *starts)
    if found.isnan().any():
        raise ValueError(
            f"{_place_of(cls.log_density)} must return the log density, got {found.tolist()} for y={values.tolist()}, "
            "eta=0 and the parameters' starts."
        )


def _place_of(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"`{function.__qualname__}` ({code.co_filename}, line {code.co_firstlineno})"
