"""What observation models that factorise over features are made of: a family of distributions of one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.curvature import Curvature, Expansion, weight_of
from pyro_lowrank.observations.density import Link, ScalarDensity
from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.observations.tabulated import COUNTS, ZERO_OR_ONE, Moments, draw, inside, moments
from pyro_lowrank.scalars.torch_code import on_tensors
from pyro_lowrank.scalars.trace import traced


@dataclass(frozen=True, eq=False)
class ScalarFamily:
    """What all observation models of a class share: the density, and how its values are drawn and expected.

    Attributes:
        density: of one number.
        support: what the number may be.
        mean_name: what the mean is called in exports.
        predictor: of eta, what the functions below take, as tensors.
        expected: of (x, *parameters), the mean, as tensors; by summing up the density if None.
        variance: likewise.
        sample: of (x, *parameters), draws; by inverse transform if None.
        reparametrised: whether these are differentiable.
        origin: a function of a module and its arguments, of which it is the result: so it is copied and pickled.
    """

    density: ScalarDensity
    support: constraints.Constraint
    mean_name: str
    predictor: Callable[..., tuple[Tensor, ...]]
    expected: Callable[..., tuple[Tensor, ...]] | None
    variance: Callable[..., tuple[Tensor, ...]] | None
    sample: Callable[..., Tensor] | None
    reparametrised: bool
    origin: tuple[Callable[..., ScalarFamily], tuple[Any, ...]]

    def __reduce__(self) -> Any:
        return self.origin

    def __deepcopy__(self, memo: Any) -> ScalarFamily:
        return self

    @classmethod
    def of(
        cls,
        log_density: Callable[..., Any],
        parameters: Sequence[str],
        *,
        information: Callable[..., Any] | None = None,
        aim: Callable[..., Any] | None = None,
        expected: Callable[..., Any] | None = None,
        variance: Callable[..., Any] | None = None,
        sample: Callable[..., Tensor] | None = None,
        support: constraints.Constraint = constraints.real,
        mean_name: str = "mean",
        link: Link | None = None,
        reparametrised: bool = False,
        origin: tuple[Callable[..., ScalarFamily], tuple[Any, ...]],
    ) -> ScalarFamily:
        """Return that of functions of numbers, as `ScalarObservation` takes them; further arguments as of the class.

        Raises:
            TypeError: if one cannot be traced.
        """
        link = link or Link()
        of_counts = str(support) in (COUNTS, ZERO_OR_ONE)
        density = ScalarDensity.of(
            log_density, parameters, information=information, aim=aim, link=link, of_counts=of_counts
        )

        def on(function: Callable[..., Any], arguments: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
            return on_tensors(traced(function, arguments), arguments)

        arguments = ("eta", *parameters)
        return cls(
            density,
            support,
            mean_name,
            on(link.function, ["eta"]),
            None if expected is None else on(expected, arguments),
            None if variance is None else on(variance, arguments),
            sample,
            reparametrised,
            origin,
        )


class ScalarDistribution(dist.TorchDistribution):
    """The distribution of numbers of a family at readouts `eta`, with parameters that broadcast against them.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.PoissonObservation(rank=2, features=5, link="exp")
        >>> model.distribution(torch.zeros(3, 2)).base_dist
        ScalarDistribution()
    """

    arg_constraints = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, family: ScalarFamily, eta: Tensor, parameters: tuple[Tensor, ...]) -> None:
        self.family, self.eta, self.parameters = family, eta, parameters
        shape = torch.broadcast_shapes(eta.shape, *(each.shape for each in parameters))
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> Any:
        """What is drawn."""
        return self.family.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScalarDistribution:
        """Return the same distribution for a larger batch."""
        return ScalarDistribution(self.family, self.eta.expand(batch_shape), self.parameters)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, or log probability, of values, in nats."""
        return self.family.density.log_prob(value, self.eta, *self.parameters)

    def _given(self, function: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        (x,) = self.family.predictor(self.eta)
        return function(x, *self.parameters)[0].expand(self.batch_shape)

    def _moments(self) -> Moments:
        return moments(self, str(self.family.support))

    @property
    def mean(self) -> Tensor:
        """The mean; not differentiable where it is summed up numerically."""
        return self._moments().mean if self.family.expected is None else self._given(self.family.expected)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self._moments().variance if self.family.variance is None else self._given(self.family.variance)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws are differentiable."""
        return self.family.reparametrised

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw values, differentiable in the parameters where `has_rsample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.family.sample is None:
            return draw(self.expand(shape), str(self.family.support))
        (x,) = self.family.predictor(self.eta)
        drawn: Tensor = self.family.sample(*(each.expand(shape) for each in (x, *self.parameters)))
        return drawn

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw values."""
        with torch.no_grad():
            return self.rsample(sample_shape)


@dataclass(frozen=True)
class ScalarEmission:
    """Observations of a family at fixed parameter values: `readout`, and `parameters` that broadcast over features."""

    readout: AffineMap | RatesMap
    family: ScalarFamily
    parameters: tuple[Tensor, ...]

    @property
    def mean_name(self) -> str:
        """What the mean is called in exports."""
        return self.family.mean_name

    @property
    def density(self) -> ScalarDensity:
        """The density of one number."""
        return self.family.density

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""
        eta = self.readout(z, v)
        if self.family.expected is None:
            return ScalarDistribution(self.family, eta, self.parameters).mean
        # Without a distribution, which torch.compile does not see through.
        (x,) = self.family.predictor(eta)
        return self.family.expected(x, *self.parameters)[0].expand(eta.shape)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return ScalarDistribution(self.family, self.readout(z, v), self.parameters).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""
        # What is missing came as zero, which may have no density.
        y = inside(y, str(self.family.support))
        score, information, stiffness = self.density.curvature(y, self.readout(z, v), *self.parameters)
        return Curvature(score, information, weight_of(self.readout), stiffness)

    def expansion(self, z: Tensor, v: Tensor | None, y: Tensor) -> Expansion | None:
        """Return what the log likelihood looks like around latents, to third order; None where that is not known."""
        y = inside(y, str(self.family.support))
        found = self.density.expansion(y, self.readout(z, v), *self.parameters)
        if found is None:
            return None
        score, information, observed, change = found
        return Expansion(score, information, observed, change, weight_of(self.readout))
