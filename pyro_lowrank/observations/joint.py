"""Recordings of several kinds at once, such as spikes and field potentials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_lowrank.errors import check_sequence, said_of
from pyro_lowrank.modules import effectful
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory
from pyro_lowrank.observations.base import AffineGaussian, Emission, Observation
from pyro_lowrank.observations.curvature import Curvature, Curved
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.family import ScalarEmission
from pyro_lowrank.observations.joint_distribution import JointDistribution
from pyro_lowrank.observations.readout import AffineMap, RatesMap


@dataclass(frozen=True)
class JointEmission:
    """Several observation models at fixed parameter values, and their `sizes`, the number of features of each."""

    parts: tuple[Any, ...]
    sizes: tuple[int, ...]

    @property
    def mean_name(self) -> str:
        """What the expected observations are called: that of the parts if they agree."""
        names = {getattr(part, "mean_name", "mean") for part in self.parts}
        return names.pop() if len(names) == 1 else "mean"

    @property
    def readout(self) -> AffineMap | None:
        """What is read from latents and inputs, of all features; None where some are read in another way."""
        readouts = [getattr(part, "readout", None) for part in self.parts]
        affine = [readout for readout in readouts if isinstance(readout, AffineMap)]
        return _side_by_side(affine) if len(affine) == len(readouts) else None

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`."""
        return _join([part.mean(z, v) for part in self.parts], -1)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of the observation, with event shape `features`."""
        return JointDistribution([part.distribution(z, v) for part in self.parts])


class CurvedJointEmission(JointEmission):
    """Several observation models that have a curvature each."""

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""
        pieces = zip(self.parts, y.split(self.sizes, -1), strict=True)
        found: list[Curvature] = [part.curvature(z, v, piece) for part, piece in pieces]
        stiffness = [part.information if part.stiffness is None else part.stiffness for part in found]
        return Curvature(
            score=_join([part.score for part in found], -1),
            information=_join([part.information for part in found], -1),
            weight=_join([part.weight for part in found], -2),
            stiffness=None if all(part.stiffness is None for part in found) else _join(stiffness, -1),
        )


def _join(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along -1 or -2 tensors whose dims before may broadcast."""
    shape = torch.broadcast_shapes(*(tensor.shape[:dim] for tensor in tensors))
    return torch.cat([tensor.expand(*shape, *tensor.shape[dim:]) for tensor in tensors], dim)


class JointObservation(Observation):
    r"""Recordings of several kinds of one network: the features of its parts side by side, in their order.

    .. math:: p(y_t \mid z_t) = \prod_i p_i(y_t^{(i)} \mid z_t)

    All guides serve it that serve each of its parts: `OptimalGuide` where all are affine-Gaussian, `LaplaceGuide` where
    all have a curvature. A part that reads some of the latents, `AffineReadout(latents=...)`, is a region of its own.

    Args:
        parts: observation models by name.

    Raises:
        TypeError: if a part is no `Observation`.
        ValueError: if there is none, or a name cannot be one of a module.

    Example::

        >>> import pyro_lowrank as plr
        >>> spikes = plr.PoissonObservation(rank=3, features=40)
        >>> lfp = plr.GaussianObservation(readout=plr.AffineReadout(rank=3, features=8, latents=(0, 1)))
        >>> observation = JointObservation({"spikes": spikes, "lfp": lfp})
        >>> y = observation.join({"spikes": torch.zeros(5, 100, 40), "lfp": torch.randn(5, 100, 8)})
        >>> y.shape, observation.split(y)["lfp"].shape
        (torch.Size([5, 100, 48]), torch.Size([5, 100, 8]))
    """

    def __init__(self, parts: Mapping[str, Observation]) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise ValueError(
                "`parts` must hold observation models by name, as in {'spikes': PoissonObservation(...)}, got "
                f"{parts!r}."
            )
        for name, part in parts.items():
            if not isinstance(part, Observation):
                raise TypeError(f"Part {name!r} must be an Observation, got {type(part).__name__}.")
            if isinstance(part, DrivenObservation):
                raise TypeError(
                    f"Part {name!r} must not remember the latents, got {type(part).__name__}: it is an observation "
                    "model by itself, for all features."
                )
            if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise ValueError(f"Names of parts must be words like 'spikes' or 'region_1', got {name!r}.")
        super().__init__(features=sum(part.features for part in parts.values()))
        container: Any = PyroModule[nn.ModuleDict]
        self.parts: Any = container(dict(parts))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of features of each part."""
        return tuple(part.features for part in self.parts.values())

    def split(self, y: Tensor) -> dict[str, Tensor]:
        """Return the features of each part, by name, of a recording or of expected observations `... x features`."""
        if y.shape[-1] != self.features:
            raise ValueError(
                f"The recording must have the {self.features} features of all parts in its last dim, got "
                f"shape {tuple(y.shape)}."
            )
        return dict(zip(self.parts, y.split(self.sizes, -1), strict=True))

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return recordings of the parts, by name, each `trials x time x features`, as one; those left out as missing.

        Raises:
            ValueError: if a name is unknown, a number of features differs, or trials and time bins do not fit.
        """
        self._check_names(parts)
        shapes = {tuple(y.shape[:-1]) for y in parts.values()}
        if len(shapes) != 1:
            raise ValueError(f"All parts must have the same trials and time bins, got {sorted(shapes)}.")
        like = next(iter(parts.values()))
        missing = [like.new_full((), torch.nan).expand(*like.shape[:-1], size) for size in self.sizes]
        return torch.cat([parts.get(name, gap) for name, gap in zip(self.parts, missing, strict=True)], -1)

    def _check_names(self, parts: Mapping[str, Any]) -> None:
        unknown = sorted(set(parts) - set(self.parts))
        if unknown or not parts:
            raise ValueError(f"The parts are {list(self.parts)}, got {unknown or 'none'}.")
        for name, y in parts.items():
            if y.shape[-1] != self.parts[name].features:
                raise ValueError(
                    f"Part {name!r} has {self.parts[name].features} features, got {y.shape[-1]} in the last dim."
                )

    def attach(self, dynamics: Any) -> None:
        """Tell all parts which network they see."""
        for name, part in self._named_parts():
            _say_where(name, part.attach, dynamics)

    def apply_basis(self, matrix: Tensor) -> None:
        """See the same of latents z' = `matrix` z, in place."""
        for _, part in self._named_parts():
            part.apply_basis(matrix)

    def _named_parts(self) -> list[tuple[str, Observation]]:
        return list(self.parts.items())

    @effectful
    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution of one time bin, with batch shape `...` and event shape `features`."""
        return JointDistribution([part.distribution(z, v) for _, part in self._named_parts()])

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, `... x features`, at latents `... x rank` and effective inputs `u`."""
        return _join([part.mean(z, u) for _, part in self._named_parts()], -1)

    def bind(self, units: Any) -> Emission:
        """Return the observation model at the present parameter values of its own and of the network."""
        parts = tuple(part.bind(units) for _, part in self._named_parts())
        of_one_family = _joined(parts, self.sizes)
        if of_one_family is not None:
            return of_one_family
        curved = all(isinstance(part, Curved) and _is_affine(part) for part in parts)
        return (CurvedJointEmission if curved else JointEmission)(parts, self.sizes)

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return the observation model as an affine-Gaussian one, or None if a part is none."""
        found = [part.affine_gaussian(units) for _, part in self._named_parts()]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        readout = _side_by_side([part.readout for part in parts])
        shared = None
        if any(part.factors is not None for part in parts):
            # Features of different parts share no noise.
            shared = torch.block_diag(
                *(
                    part.variance.new_zeros(len(part.variance), 0) if part.factors is None else part.factors
                    for part in parts
                )
            )
        return AffineGaussian(readout, _join([part.variance for part in parts], -1), shared)

    def bind_memory(self) -> AutoregressiveMemory | None:
        """Return what features of all parts remember, at the present parameter values; None for nothing."""
        memories: list[Any] = [part.bind_memory() for _, part in self._named_parts()]
        return AutoregressiveMemory.joined(memories, self.sizes) if any(m is not None for m in memories) else None

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` is a recording that the parts can produce, naming the part that cannot."""
        check_sequence("y", y, last=self.features, last_name="features")
        for (name, part), piece in zip(self._named_parts(), y.split(self.sizes, -1), strict=True):
            _say_where(name, part.check_data, piece)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"parts": dict(self._named_parts())}


def _side_by_side(readouts: Sequence[AffineMap]) -> AffineMap:
    """Return the readout of the features of several ones."""
    inputs = next((r.input_weight for r in readouts if r.input_weight is not None), None)
    input_weight = None
    if inputs is not None:
        gaps = [r.weight.new_zeros(r.weight.shape[-2], inputs.shape[-1]) for r in readouts]
        input_weight = _join(
            [gap if r.input_weight is None else r.input_weight for r, gap in zip(readouts, gaps, strict=True)], -2
        )
    return AffineMap(_join([r.weight for r in readouts], -2), input_weight, _join([r.bias for r in readouts], -1))


def _joined(parts: Sequence[Any], sizes: Sequence[int]) -> ScalarEmission | None:
    """Return parts of one family as the emission of all their features, or None where they are of several.

    Whatever serves the family serves it: sessions of counts run as fast as one recording of as many units.
    """
    first = parts[0]
    for part in parts:
        if not isinstance(part, ScalarEmission) or not isinstance(part.readout, AffineMap):
            return None
        if part.family is not first.family:
            return None
    values = []
    for each in zip(*(part.parameters for part in parts), strict=True):
        values.append(_join([x.expand(*x.shape[:-1], size) for x, size in zip(each, sizes, strict=True)], -1))
    return ScalarEmission(_side_by_side([part.readout for part in parts]), first.family, tuple(values))


def _is_affine(emission: Any) -> bool:
    return not isinstance(getattr(emission, "readout", None), RatesMap)


def _say_where(name: str, check: Callable[[Any], None], value: Any) -> None:
    """Run a check of a part, and name the part in its error."""
    try:
        check(value)
    except (TypeError, ValueError) as error:
        raise said_of(error, f"In part {name!r}: {error}") from error
