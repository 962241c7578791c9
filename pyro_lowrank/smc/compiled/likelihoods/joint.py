"""The likelihood of features of several families side by side, in compiled loops: that of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from torch import Tensor

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.joint import JointEmission
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap
from pyro_lowrank.smc.compiled.likelihoods.base import CompiledLikelihood, as_curver, as_weigher
from pyro_lowrank.smc.compiled.likelihoods.driven import DrivenLikelihood
from pyro_lowrank.smc.compiled.records import Features


@dataclass(frozen=True)
class JointLikelihood:
    """The likelihood of an emission of several families, each read from latents and inputs.

    Args:
        parts: of the families.
        sizes: how many features each has.
    """

    parts: tuple[CompiledLikelihood, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, emission: JointEmission) -> JointLikelihood:
        """Return the likelihood of an emission.

        Raises:
            NoCompiledForm: if a part has none, or is not read from latents and inputs.
        """
        parts = tuple(CompiledLikelihood.of(part) for part in emission.parts)
        if any(not isinstance(part.emission.readout, AffineMap) for part in parts):
            raise NoCompiledForm("a part of a JointEmission is read from the units' rates")
        return cls(parts, emission.sizes)

    @property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes))

    def weigher(self, dtype: Any) -> Any:
        """Compile what adds the log likelihood of a time bin to the log weights."""
        return as_weigher(_in_turn(tuple(part.weigh(dtype) for part in self.parts), self._ends), dtype)

    def curver(self, dtype: Any) -> Any:
        """Compile what adds up scores and curvature of a time bin."""
        return as_curver(_in_turn(tuple(part.curve(dtype) for part in self.parts), self._ends), dtype)

    def _pieces(self, seen: Observed) -> Iterator[tuple[CompiledLikelihood, Observed]]:
        for part, (start, end) in zip(self.parts, pairwise((0, *self._ends)), strict=True):
            missing = None if seen.missing is None else seen.missing[..., start:end]
            yield part, Observed(seen.y[..., start:end], missing)

    def along_paths(self, seen: Observed, v: Tensor | None, z: Tensor) -> Tensor:
        """Return what has the gradient of the log likelihood of paths, as `CompiledLikelihood.along_paths`."""
        return _sum([part.along_paths(piece, v, z) for part, piece in self._pieces(seen)])

    def num_rows(self) -> int:
        """Return how much scratch it needs beside that of a proposal."""
        return 0

    def constant(self, seen: Observed) -> Tensor:
        """Return what the log likelihood of the entries that are there adds, `trials x time`."""
        return _sum([part.constant(piece) for part, piece in self._pieces(seen)])

    def features(self, seen: Observed, v: Tensor | None, *, with_aims: bool) -> Features:
        """Return the arrays of a recording, as `CompiledLikelihood.features`."""
        found = [part.features(piece, v, with_aims=with_aims) for part, piece in self._pieces(seen)]
        rows = max(len(each.parameters) for each in found)
        padded = [np.pad(each.parameters, ((0, rows - len(each.parameters)), (0, 0))) for each in found]
        joined = {
            called: np.concatenate([getattr(each, called) for each in found], -1)
            for called in ("weight", "offset", "aims", "y", "present")
        }
        parameters = np.ascontiguousarray(np.concatenate(padded, -1))
        return found[0]._replace(**joined, parameters=parameters, last=seen.y.shape[-1])


AnyLikelihood = CompiledLikelihood | JointLikelihood | DrivenLikelihood


def likelihood_of_emission(emission: Any) -> AnyLikelihood:
    """Return the compiled likelihood of an emission.

    Raises:
        NoCompiledForm: if it has none.
    """
    if isinstance(emission, DrivenEmission):
        return DrivenLikelihood.of(emission)
    return JointLikelihood.of(emission) if isinstance(emission, JointEmission) else CompiledLikelihood.of(emission)


def _sum(tensors: list[Tensor]) -> Tensor:
    """Return the sum of tensors."""
    return reduce(lambda a, b: a + b, tensors)


@cache
def _in_turn(functions: tuple[Callable[..., None], ...], ends: tuple[int, ...]) -> Callable[..., None]:
    """Return a function that calls others, each with its features, the last of which `ends` tells."""
    start = ends[-2] if len(ends) > 1 else 0
    last = _of_features(functions[-1], start, ends[-1])
    if len(functions) == 1:
        return last
    own = compiled(fastmath=FAST, allocates=False)(last)
    others = compiled(fastmath=FAST, allocates=False)(_in_turn(functions[:-1], ends[:-1]))

    def call(features: Any, b: Any, t: Any, matrix: Any, vector: Any, third: Any) -> None:
        others(features, b, t, matrix, vector, third)
        own(features, b, t, matrix, vector, third)

    return call


def _of_features(function: Callable[..., None], first: int, last: int) -> Callable[..., None]:
    """Return a function that sees some features only."""
    compiled_function = compiled(fastmath=FAST, allocates=False)(function)

    def call(features: Any, b: Any, t: Any, matrix: Any, vector: Any, third: Any) -> None:
        some = Features(
            features.weight,
            features.offset,
            features.readout,
            features.hinges,
            features.parameters,
            features.aims,
            features.y,
            features.present,
            first,
            last,
            features.laws,
            features.links,
            features.past,
            features.ancestors,
        )
        compiled_function(some, b, t, matrix, vector, third)

    return call
