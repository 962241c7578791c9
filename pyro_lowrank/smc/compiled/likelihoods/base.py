"""A likelihood that factorises over features, from functions of numbers to loops over particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem
from torch import Tensor

from pyro_lowrank.compilation import compiled, first_class, run_side_by_side
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO
from pyro_lowrank.dynamics.compiled.arrays import array, chunks
from pyro_lowrank.dynamics.compiled.network import compiled_activation
from pyro_lowrank.dynamics.compiled.units import FAST, Arrays, identity
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.smc.compiled.lanes import WIDTH, at
from pyro_lowrank.smc.compiled.records import Features, Signatures

Function = Callable[..., Any]


def _none(emission: Any) -> tuple[Tensor, ...]:
    return ()


@dataclass(frozen=True)
class Likelihood:
    """What the loops need of a likelihood: functions of a module, decorated with `scalar`.

    Attributes:
        log_density: of (y, x, *parameters), the log density of y at readout x, less what depends on neither x nor a
            parameter through x.
        constant: of (emission, y), what the log density lacks, `... x features`.
        parameters: of an emission, tensors `features` that the functions are called with; none if left out.
        at_zero: as `log_density` where y is zero, if that is cheaper.
        score: of (y, x), the derivative of the log density by x, of a likelihood without parameters; where it is left
            out, torch differentiates.
        aim: of (y, *parameters), where the data would have the readout: (target, readout), for `curvature`.
        curvature: of (y, target, aimed, x, *parameters): score, stiffness and information, see
            `observations.curvature.Curvature`.
    """

    log_density: Function
    constant: Callable[[Any, Tensor], Tensor]
    parameters: Callable[[Any], tuple[Tensor, ...]] = _none
    at_zero: Function | None = None
    score: Function | None = None
    aim: Function | None = None
    curvature: Function | None = None


_REGISTERED: dict[type, Callable[[Any], Likelihood]] = {}


def register(emission: type) -> Callable[[Callable[[Any], Likelihood]], Callable[[Any], Likelihood]]:
    """Return a decorator of a function that says which likelihood an emission of that type has."""

    def decorate(function: Callable[[Any], Likelihood]) -> Callable[[Any], Likelihood]:
        _REGISTERED[emission] = function
        return function

    return decorate


def likelihood_of(emission: Any) -> Likelihood:
    """Return the likelihood of an emission.

    Raises:
        NoCompiledForm: if there is none.
    """
    if type(emission) not in _REGISTERED:
        raise NoCompiledForm(f"{type(emission).__name__} has no compiled form")
    return _REGISTERED[type(emission)](emission)


@dataclass(frozen=True)
class CompiledLikelihood:
    """The likelihood of an emission at fixed parameter values.

    Raises:
        NoCompiledForm: if it has none.
    """

    emission: Any
    likelihood: Likelihood

    @classmethod
    def of(cls, emission: Any) -> CompiledLikelihood:
        """Return the likelihood of an emission."""
        found = cls(emission, likelihood_of(emission))
        readout = emission.readout
        affine = isinstance(readout, AffineMap) and readout.weight.dim() == 2 and readout.bias.dim() == 1
        rates = isinstance(readout, RatesMap) and isinstance(readout.units, Network)
        if not (affine or rates):
            raise NoCompiledForm(f"its readout, a {type(readout).__name__}, has no compiled form, or has batch dims")
        return found

    def weigher(self, dtype: Any) -> Any:
        """Compile what adds the log likelihood of a time bin to the log weights."""
        likelihood, activation, num_hinges = self.likelihood, identity, 0
        if isinstance(self.emission.readout, RatesMap):
            units: Any = self.emission.readout.units
            activation, hinges = compiled_activation(units.activation)
            num_hinges = len(hinges) - 1
        number = len(likelihood.parameters(self.emission))
        at_zero = likelihood.log_density if likelihood.at_zero is None else likelihood.at_zero
        return _weigher(likelihood.log_density, at_zero, activation, num_hinges, (dtype(0),) * number, dtype)

    def curver(self, dtype: Any) -> Any:
        """Compile what adds up scores and curvature of a time bin.

        Raises:
            NoCompiledForm: if they are not known, or the readout is not affine.
        """
        likelihood = self.likelihood
        if likelihood.curvature is None or likelihood.aim is None or not isinstance(self.emission.readout, AffineMap):
            raise NoCompiledForm(f"the curvature of a {type(self.emission).__name__} has no compiled form")
        number = len(likelihood.parameters(self.emission))
        return _curver(likelihood.aim, likelihood.curvature, (dtype(0),) * number, dtype)

    def along_paths(self, seen: Observed, v: Tensor | None, z: Tensor) -> Tensor | None:
        """Return what has the gradient of the log likelihood of paths, `paths x trials x time`, but not its value.

        A product of scores and readouts, so that nothing else the size of paths x features is differentiated. None
        where the likelihood says no score.
        """
        if self.likelihood.score is None:
            return None
        x = self.emission.readout(z, v)
        values, data, present = (array(each) for each in (x, seen.y, seen.present))
        scores, dtype = np.empty_like(values), values.dtype.type
        scorer = _scorer(self.likelihood.score, dtype)
        shape = (len(values), -1, values.shape[-1])
        flat = [each.reshape(shape) for each in (values, scores)]
        rows = [each.reshape(-1, values.shape[-1]) for each in (data, present)]
        cut = chunks(len(flat[0]), values.size)
        run_side_by_side([partial(_scored, scorer, *rows, flat[0][c], flat[1][c]) for c in cut])
        return (torch.from_numpy(scores) * x).sum(-1)

    def constant(self, seen: Observed) -> Tensor:
        """Return what the log likelihood of the entries that are there adds, `trials x time`."""
        each = self.likelihood.constant(self.emission, seen.y).expand(seen.y.shape)
        return (each if seen.missing is None else each.masked_fill(seen.missing, 0.0)).sum(-1)

    def features(self, seen: Observed, v: Tensor | None) -> Features:
        """Return the arrays of a recording, with effective inputs `trials x time x inputs`."""
        readout, y = self.emission.readout, seen.y
        parameters = [each.expand(y.shape[-1]) for each in self.likelihood.parameters(self.emission)]
        stacked = torch.stack(parameters) if parameters else y.new_zeros(0, y.shape[-1])
        hinges = np.zeros((1, 3), array(y[:0]).dtype)
        if isinstance(readout, AffineMap):
            weight, offset, of_rates = readout.weight, readout.offset(v), y.new_zeros(3, 0)
        else:
            network, inputs = readout.units, v is not None and readout.units.num_inputs
            weight = torch.eye(y.shape[-1], dtype=y.dtype) if network.left is None else network.left
            offset = v @ network.input_weights.mT if inputs else y.new_zeros(())
            of_rates = torch.stack([each.expand(y.shape[-1]) for each in (network.bias, readout.scale, readout.bias)])
            hinges = np.array(compiled_activation(network.activation)[1], hinges.dtype)
        return Features(
            weight=array(weight.mT),
            offset=array(offset.expand(y.shape)),
            readout=array(of_rates),
            hinges=hinges,
            parameters=array(stacked),
            y=array(y),
            present=array(seen.present),
        )


@compiled(allocates=False)
def _score_paths(score: Any, y: Any, present: Any, x: Any, scores: Any) -> None:
    for p in range(x.shape[0]):
        score(y, present, x[p], scores[p])


# Type checkers do not see through arguments that are unpacked.
_scored: Any = _score_paths


@cache
def _scorer(score: Function, dtype: Any) -> Any:
    matrix = Arrays.of(dtype).matrix

    @first_class(types.void(matrix, matrix, matrix, matrix), fastmath=FAST)
    def write(y: Any, present: Any, x: Any, scores: Any) -> None:
        """Write the scores of readouts `bins x features`, zero where data are missing."""
        for m in range(x.shape[0]):
            for d in range(x.shape[1]):
                scores[m, d] = present[m, d] * score(y[m, d], x[m, d])

    return write


def no_features(like: Tensor) -> Features:
    """Return the arrays where no likelihood is left, for a recording `trials x time x features`."""
    nothing = array(like.new_zeros(*like.shape[:2], 0))
    empty = array(like.new_zeros(0, 0))
    return Features(empty, nothing, empty, empty, empty, nothing, nothing)


@cache
def no_weigher(dtype: Any) -> Any:
    """Compile a likelihood of 1, where a proposal has weighed the data already."""

    @first_class(Signatures.of(dtype).weigh)
    def weigh(features: Any, b: Any, t: Any, z: Any, log_weights: Any, rows: Any) -> None:
        pass

    return weigh


@cache
def no_curver(dtype: Any) -> Any:
    """Compile what stands for the curvature where a proposal does not ask for it."""

    @first_class(Signatures.of(dtype).curve)
    def curve(features: Any, b: Any, t: Any, own: Any, rows: Any, lanes: Any) -> None:
        pass

    return curve


@cache
def _weigher(
    log_density: Function,
    at_zero: Function,
    activation: Function,
    num_hinges: int,
    nothing: tuple[Any, ...],
    dtype: Any,
) -> Any:
    num_parameters = len(nothing)

    @first_class(Signatures.of(dtype).weigh, fastmath=FAST)
    def weigh(features: Any, b: Any, t: Any, z: Any, log_weights: Any, rows: Any) -> None:
        """Add the log likelihood of latents `R x K`; the first two rows of scratch are readout and sum."""
        rank, num_particles = z.shape
        for start in range(0, num_particles, WIDTH):
            size = min(WIDTH, num_particles - start)
            for lane in range(size):
                rows[WIDTH + lane] = ZERO
            for i in range(features.y.shape[2]):
                if features.present[b, t, i] == ZERO:
                    continue
                y, parameters = features.y[b, t, i], nothing
                if num_parameters > 0:
                    for j in range(num_parameters):
                        parameters = tuple_setitem(parameters, j, features.parameters[j, i])
                for lane in range(size):
                    rows[lane] = features.offset[b, t, i]
                for r in range(rank):
                    weight = features.weight[r, i]
                    for lane in range(size):
                        rows[lane] += weight * z[r, start + lane]
                if features.readout.shape[1] > 0:
                    h, scale, shift = features.readout[0, i], features.readout[1, i], features.readout[2, i]
                    for lane in range(size):
                        rate, _, _ = activation(num_hinges, features.hinges, rows[lane], h, ONE)
                        rows[lane] = scale * rate + shift
                if y == ZERO:
                    for lane in range(size):
                        rows[WIDTH + lane] += at_zero(y, rows[lane], *parameters)
                else:
                    for lane in range(size):
                        rows[WIDTH + lane] += log_density(y, rows[lane], *parameters)
            for lane in range(size):
                log_weights[start + lane] += rows[WIDTH + lane]

    return weigh


@cache
def _curver(aim: Function, curvature: Function, nothing: tuple[Any, ...], dtype: Any) -> Any:
    num_parameters = len(nothing)

    @first_class(Signatures.of(dtype).curve, fastmath=FAST)
    def curve(features: Any, b: Any, t: Any, own: Any, rows: Any, lanes: Any) -> None:
        """Add each feature's score to the step, its stiffness and information to the matrices: rows of `laplace`."""
        rank, square = own.shape[0], own.shape[0] * own.shape[0]
        found = 4 * rank + 2 * square
        for i in range(features.y.shape[2]):
            if features.present[b, t, i] == ZERO:
                continue
            y, parameters = features.y[b, t, i], nothing
            if num_parameters > 0:
                for j in range(num_parameters):
                    parameters = tuple_setitem(parameters, j, features.parameters[j, i])
            target, aimed = aim(y, *parameters)
            for lane in range(lanes):
                rows[at(found, lane)] = features.offset[b, t, i]
            for r in range(rank):
                weight = features.weight[r, i]
                for lane in range(lanes):
                    rows[at(found, lane)] += weight * rows[at(r, lane)]
            for lane in range(lanes):
                score, stiffness, information = curvature(y, target, aimed, rows[at(found, lane)], *parameters)
                rows[at(found + 1, lane)] = score
                rows[at(found + 2, lane)] = stiffness
                rows[at(found + 3, lane)] = information
            for r in range(rank):
                for lane in range(lanes):
                    rows[at(3 * rank + r, lane)] += rows[at(found + 1, lane)] * own[r, i]
                for j in range(r + 1):
                    product, entry = own[r, i] * own[j, i], 4 * rank + r * rank + j
                    for lane in range(lanes):
                        rows[at(entry, lane)] += rows[at(found + 2, lane)] * product
                        rows[at(entry + square, lane)] += rows[at(found + 3, lane)] * product

    return curve
