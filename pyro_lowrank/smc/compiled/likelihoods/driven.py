"""The likelihood of features that remember the latents, in compiled loops: a linear system of each, in each particle.

Loops run over features, which are neighbours in what a particle remembers: a particle that goes on takes its row along.
Rows of the parameters are, of `observations.linear_memory` and with order P, the slope, the baseline, the weight (P),
the drive (P) and the transition (P * P).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO, softplus_and_slope
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.driven import DrivenEmission, RateDrive
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap
from pyro_lowrank.smc.compiled.driven_density import log_densities
from pyro_lowrank.smc.compiled.lanes import WIDTH, at
from pyro_lowrank.smc.compiled.laws import System, add_product, laws_of, links_of, places
from pyro_lowrank.smc.compiled.likelihoods.base import as_curver, as_weigher
from pyro_lowrank.smc.compiled.records import Features

# Of each part of a `LinearMemory` without batch dims.
_DIMS = {
    **dict.fromkeys(("transition", "noise", "before_covariance"), 3),
    **dict.fromkeys(("drive", "readout", "before_mean"), 2),
    **dict.fromkeys(("through", "variance", "baseline"), 1),
}


@dataclass(frozen=True)
class DrivenLikelihood:
    """The likelihood of an emission that remembers, at fixed parameter values.

    Raises:
        NoCompiledForm: if it has none.
    """

    emission: DrivenEmission

    @classmethod
    def of(cls, emission: DrivenEmission) -> DrivenLikelihood:
        """Return the likelihood of an emission."""
        readout, memory = emission.readout, emission.memory
        if not isinstance(readout, AffineMap):
            raise NoCompiledForm(f"what remembers is driven by a {type(readout).__name__}, which has no compiled form")
        batched = any(getattr(memory, name).dim() != dims for name, dims in _DIMS.items())
        if batched or readout.weight.dim() != 2 or readout.bias.dim() != 1:
            raise NoCompiledForm("parameters of observations that remember have batch dims")
        return cls(emission)

    @property
    def rates(self) -> bool:
        """Whether features are driven by rates, the softplus of what is read."""
        return isinstance(self.emission.drive, RateDrive)

    @property
    def _order(self) -> int:
        return self.emission.memory.drive.shape[-1]

    def weigher(self, dtype: Any) -> Any:
        """Compile what adds the log likelihood of a time bin to the log weights, and takes the bin in."""
        return as_weigher(_weigh(self.rates), dtype)

    def curver(self, dtype: Any) -> Any:
        """Compile what adds up scores and information of a time bin."""
        assert isinstance(self.emission.readout, AffineMap)
        return as_curver(_curve(self.rates, self.emission.readout.weight.shape[1], self._order, dtype), dtype)

    def along_paths(self, seen: Observed, v: Tensor | None, z: Tensor) -> Tensor:
        """Return the log likelihood of paths, `paths x trials x time`."""
        return log_densities(self.emission, seen, self.emission.readout(z, v))

    def constant(self, seen: Observed) -> Tensor:
        """Return what the log likelihood adds beside what is weighed, nothing, `trials x time`."""
        return seen.y.new_zeros(seen.y.shape[:2])

    def num_rows(self) -> int:
        """Return how many rows of scratch it needs beside those of a proposal."""
        return -(-2 * self.emission.memory.baseline.shape[-1] // WIDTH)

    def features(self, seen: Observed, v: Tensor | None, *, with_aims: bool) -> Features:
        """Return the arrays of a recording, as `base.CompiledLikelihood.features`."""
        readout, y, system = self.emission.readout, seen.y, System.of(self.emission.memory)
        assert isinstance(readout, AffineMap)
        present, nothing = array(seen.present), array(y.new_zeros(0, 0))
        return Features(
            weight=array(readout.weight.mT),
            offset=array(readout.offset(v).expand(y.shape)),
            readout=nothing,
            hinges=nothing,
            parameters=np.concatenate([system.slope, system.baseline, system.weight, system.drive, system.transition]),
            aims=array(y.new_zeros(0, 0, 0)),
            y=array(y),
            present=present,
            first=0,
            last=y.shape[-1],
            laws=laws_of(system, present),
            links=links_of(system),
            past=np.zeros((0,) * 5, present.dtype),
            ancestors=np.zeros((0,) * 3, np.int64),
        )

    def with_room(self, features: Features, ancestors: Any, *, kept: bool) -> Features:
        """Return the arrays with room for what particles remember: of all time bins where it is kept, else of two.

        Args:
            features: of a recording.
            ancestors: of the particles, `B x T x K`.
            kept: whether it is.
        """
        trials, steps, particles = ancestors.shape
        before = System.of(self.emission.memory).before_mean
        past = np.empty((trials, steps + 1 if kept else 2, particles, *before.shape), before.dtype)
        past[:, 0] = before
        return features._replace(past=past, ancestors=ancestors)


@cache
def _weigh(rates: bool) -> Any:
    def weigh(features: Any, b: Any, t: Any, z: Any, log_weights: Any, rows: Any) -> None:
        """Add the log likelihood of latents `R x K`; the first `2 D` of scratch are drives and surprises."""
        parameters, law = features.parameters, features.laws[min(b, features.laws.shape[0] - 1), t]
        slots, _, order, size = features.past.shape[1:]
        y, offset, gain, links = features.y[b, t], features.offset[b, t], places(order).gain, features.links
        driven, surprise = rows[:size], rows[size : 2 * size]
        constant = ZERO * y[0]
        for d in range(size):
            constant += law[1, d]
        for k in range(z.shape[1]):
            before = features.past[b, t % slots, features.ancestors[b, t, k]]
            after = features.past[b, (t + 1) % slots, k]
            for d in range(size):
                driven[d] = offset[d]
            for r in range(z.shape[0]):
                height = z[r, k]
                for d in range(size):
                    driven[d] += features.weight[r, d] * height
            if rates:
                for d in range(size):
                    driven[d], _ = softplus_and_slope(driven[d])
            for d in range(size):
                surprise[d] = y[d] - parameters[1, d] - parameters[0, d] * driven[d]
            for p in range(order):
                for d in range(size):
                    surprise[d] -= parameters[2 + p, d] * before[p, d]
            total = ZERO * constant
            for d in range(size):
                total += surprise[d] * surprise[d] * law[0, d]
            log_weights[k] += constant - HALF * total
            for p in range(order):
                for d in range(size):
                    after[p, d] = parameters[2 + order + p, d] * driven[d] + law[gain + p, d] * surprise[d]
            for i in range(links.shape[0]):
                p, q = links[i, 0], links[i, 1]
                add_product(after, p, parameters, 2 + 2 * order + p * order + q, before, q)

    return weigh


@cache
def _curve(rates: bool, rank: int, order: int, dtype: Any) -> Any:
    nothing, flat = (dtype(0),) * rank, (dtype(0),) * rank**2

    def curve(features: Any, b: Any, t: Any, own: Any, rows: Any, block: Any) -> None:
        """Add each feature's score to the step, its information to both matrices: rows of `laplace`."""
        slots, law = features.past.shape[1], features.laws[min(b, features.laws.shape[0] - 1), t]
        y, offset, parameters = features.y[b, t], features.offset[b, t], features.parameters
        size = y.shape[0]
        for lane in range(block.size):
            past = features.past[b, t % slots, features.ancestors[b, t, block.start + lane]]
            z, score, information = nothing, nothing, flat
            for r in range(rank):
                z = tuple_setitem(z, r, rows[at(r, lane)])
            for d in range(size):
                read, surprise = offset[d], y[d] - parameters[1, d]
                for r in range(rank):
                    read += features.weight[r, d] * z[r]
                for p in range(order):
                    surprise -= parameters[2 + p, d] * past[p, d]
                driven, growth = read, ONE
                if rates:
                    driven, growth = softplus_and_slope(read)
                grown = parameters[0, d] * growth
                scaled = grown * law[0, d]
                told, known = scaled * (surprise - parameters[0, d] * driven), scaled * grown
                for r in range(rank):
                    score = tuple_setitem(score, r, score[r] + told * own[r, d])
                    for j in range(r + 1):
                        entry = r * rank + j
                        information = tuple_setitem(
                            information, entry, information[entry] + known * own[r, d] * own[j, d]
                        )
            for r in range(rank):
                rows[at(3 * rank + r, lane)] += score[r]
                for j in range(r + 1):
                    entry = r * rank + j
                    rows[at(4 * rank + entry, lane)] += information[entry]
                    rows[at(4 * rank + rank * rank + entry, lane)] += information[entry]

    return curve
