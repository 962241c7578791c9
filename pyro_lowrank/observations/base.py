"""What an observation model is, to the model, the guides and the filter."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.errors import NoMean, check_no_infinities, check_positive_int, check_sequence
from pyro_lowrank.modules import Module, effectful
from pyro_lowrank.observations.memory import Memory
from pyro_lowrank.observations.readout import AffineMap, AffineReadout, Readout, UnitReadout
from pyro_lowrank.observations.shared_noise import Precision


class Emission(Protocol):
    """An observation model at fixed parameter values: pure tensor functions, no Pyro effects."""

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""


@dataclass(frozen=True)
class AffineGaussian:
    """What a locally optimal proposal needs: y ~ N(readout(z, v), diag(variance) + F F^T).

    Attributes:
        readout: the mean.
        variance: of each feature's own noise, `features`.
        factors: F, how noise that features share enters, `features x factors`; None if there is none.
    """

    readout: AffineMap
    variance: Tensor
    factors: Tensor | None = None

    def precision(self, missing: Tensor | None) -> Precision:
        """Return the inverse of the noise's covariance for each pattern of missing features, `... x features`."""
        return Precision.of(self.variance, self.factors, missing)


class Observation(Module):
    r"""Base of the observation models, built in or a user's own.

    A subclass defines `distribution(z, v)`: the distribution of one time bin of the recording, with event shape
    `features`, given latents `... x rank` and effective inputs `... x inputs`. An `Independent` distribution over
    features (`.to_event(1)`) gets missing entries for free.

    Batch dims of a parameter, which it has when it is sampled under a vectorised inference, line up with the leading
    dims of `z`: apply a matrix that may be sampled as `(weight @ z.unsqueeze(-1)).squeeze(-1)`.

    Args:
        features: number of features of the recording.

    Example::

        >>> import pyro.distributions as dist
        >>> class LaplaceObservation(Observation):
        ...     def distribution(self, z, v=None):
        ...         return dist.Laplace(z, 1.0).to_event(1)
        >>> LaplaceObservation(features=2).distribution(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    def __init__(self, *, features: int) -> None:
        super().__init__()
        self.features = check_positive_int("features", features)

    @abstractmethod
    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of one time bin, with batch shape `...` and event shape `features`."""

    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`.

        Raises:
            NoMean: if its distribution has none, as that over categories, whose numbers are names.
        """
        return mean_of(self.distribution(z, u))

    def bind(self, units: Any) -> Emission:
        """Return the observation model at the present parameter values of its own and of the network."""
        return self

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return the observation model as an affine-Gaussian one, or None if it is none."""
        return None

    def bind_memory(self) -> Memory | None:
        """Return what features remember of their own past, at the present parameter values; None for nothing.

        What the other methods call observations are then innovations: what is left of the recording when its own past
        has had its say.
        """
        return None

    def attach(self, dynamics: Any) -> None:
        """Be told which network the observation model sees.

        Raises:
            ValueError: if it does not fit.
        """
        return

    def apply_basis(self, matrix: Tensor) -> None:
        """See the same of latents z' = `matrix` z, in place.

        Raises:
            TypeError: if it cannot.
        """
        raise TypeError(f"Only built-in observation models see latents of another basis, got {type(self).__name__}.")

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` is a recording, `trials x time x features`, that the observation model can produce."""
        check_sequence("y", y, last=self.features, last_name="features")
        check_no_infinities("y", y)


_WITHOUT_MEAN = (torch.distributions.Categorical, torch.distributions.Cauchy, torch.distributions.HalfCauchy)


def mean_of(distribution: Any) -> Tensor:
    """Return the mean of a distribution.

    Raises:
        NoMean: if it has none.

    Example::

        >>> mean_of(dist.Normal(torch.tensor([1.0]), 1.0).to_event(1))
        tensor([1.])
    """
    inner = distribution
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    try:
        if not isinstance(inner, _WITHOUT_MEAN):
            found: Tensor = distribution.mean
            return found
    except NotImplementedError:
        pass
    raise NoMean(f"A {type(inner).__name__} has no mean: draw observations, or define the `mean` of the observation.")


def mean_if_any(emission: Emission, z: Tensor, v: Tensor | None) -> Tensor | None:
    """Return the mean of the observation, `... x features`, or None if it has none."""
    try:
        return emission.mean(z, v)
    except NoMean:
        return None


class ReadoutObservation(Observation):
    """Base of the built-in observation models: a readout, then a link or noise.

    The readout is affine from `rank` latents (and from `inputs`), unless another is passed in.
    """

    readout: Readout

    def __init__(
        self,
        *,
        rank: int | None,
        features: int | None,
        inputs: int,
        readout: Readout | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        if readout is None:
            if rank is None or features is None:
                raise ValueError(
                    f"Pass `rank` and `features` for an affine readout, or a `readout`; got rank={rank}, "
                    f"features={features}, readout=None."
                )
            readout = AffineReadout(rank=rank, features=features, inputs=inputs, dtype=dtype, device=device)
        elif features not in (None, readout.features):
            raise ValueError(f"`features` must be those of the readout, {readout.features}, got {features}.")
        super().__init__(features=readout.features)
        self.readout = readout
        # A readout from units reads the network; registering it here would own its parameters twice.
        self._network: tuple[Any, ...] = ()

    def attach(self, dynamics: Any) -> None:
        """Tell the observation model which network a readout from units reads."""
        self._network = (dynamics,)
        units = getattr(dynamics, "units", 0)
        if isinstance(self.readout, UnitReadout) and self.readout.units != units:
            raise ValueError(
                f"A readout from units needs one feature per unit, got {self.readout.units} features and {units} units "
                f"of {type(dynamics).__name__}."
            )
        if isinstance(self.readout, AffineReadout) and self.readout.rank != dynamics.rank:
            raise ValueError(
                f"The observation model reads rank={self.readout.rank} latents, the dynamics have rank={dynamics.rank}."
            )
        if isinstance(self.readout, AffineReadout) and self.readout.num_inputs not in (0, dynamics.num_inputs):
            raise ValueError(
                f"The observation model reads inputs={self.readout.num_inputs}, the dynamics have "
                f"inputs={dynamics.num_inputs}."
            )

    def apply_basis(self, matrix: Tensor) -> None:
        """See the same of latents z' = `matrix` z, in place."""
        self.readout.apply_basis(matrix)

    def _units(self) -> Any:
        if isinstance(self.readout, UnitReadout) and not self._network:
            raise RuntimeError("A readout from units reads a network: put it in a StateSpaceModel first.")
        return self._network[0].transition().drift if isinstance(self.readout, UnitReadout) else None

    @effectful
    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of one time bin, with batch shape `...` and event shape `features`."""
        return self.bind(self._units()).distribution(z, v)

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`, at latents `... x rank` and effective inputs `u`."""
        return self.bind(self._units()).mean(z, u)
