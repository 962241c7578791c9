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
from pyro_lowrank.dynamics.compiled.units import FAST, Arrays, floats, identity
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.density import ETA, ScalarDensity
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.scalars.derivative import derivative
from pyro_lowrank.scalars.expression import name, names_in, terms, total
from pyro_lowrank.scalars.torch_code import on_tensors
from pyro_lowrank.smc.compiled.lanes import WIDTH, at
from pyro_lowrank.smc.compiled.likelihoods.code import Function, Split, at_zero, elsewhere, hoisted, split
from pyro_lowrank.smc.compiled.records import Features, Signatures


class Likelihood:
    """The density of one number, cut into what is computed once and what is for each particle.

    What depends on parameters alone, and what adds to the log density without eta, is computed on tensors, once per
    call; what depends on the data and parameters, feature by feature; the rest for each particle.

    Args:
        density: of one number.
    """

    def __init__(self, density: ScalarDensity) -> None:
        names = density.parameters
        log_density = density.log_density
        parts_at = [at_zero(log_density), elsewhere(log_density)]
        free = [total(term for term in terms(part) if "eta" not in names_in(term[1])) for part in parts_at]
        bound = [total(term for term in terms(part) if "eta" in names_in(term[1])) for part in parts_at]
        # One expression for both is as good where it says the same of zero.
        self._constants = on_tensors(free[1:] if at_zero(free[1]) is free[0] else free, ["y", *names])
        targets = [*bound, density.score, density.stiffness, density.information]
        # Numbers alone stay where they are: log(0) is no parameter, to be multiplied by how often it counts.
        alone, rest = hoisted(targets, lambda found: bool(found) and found <= set(names), "_parameter")
        self.num_parameters = len(alone)
        self._of_parameters = on_tensors(alone, ["y", *names]) if alone else None
        arguments = [f"_parameter{i}" for i in range(len(alone))]
        self.at_zero, self.log_density = (split([each], arguments) for each in rest[:2])
        self.curvature = split(rest[2:], [*arguments, "_aim"])
        by = [ETA, *map(name, arguments)]
        slopes = [[derivative(each, argument) for argument in by] for each in rest[:2]]
        self.gradient_at_zero, self.gradient = (split(each, arguments) for each in slopes)

    def parameters(self, emission: Any, features: int) -> Tensor:
        """Return what the functions are called with, `(some) x features`."""
        like: Tensor = emission.readout.bias
        if self._of_parameters is None:
            return like.new_zeros(0, features)
        found = self._of_parameters(like.new_zeros(()), *emission.parameters)
        return torch.stack([each.to(like.dtype).expand(features) for each in found])

    def constant(self, emission: Any, y: Tensor) -> Tensor:
        """Return what the log density of counts or numbers has without eta, of the shape of `y`."""
        found = [each.to(y.dtype) for each in self._constants(y, *emission.parameters)]
        return (found[0] if len(found) == 1 else torch.where(y == 0, found[0], found[1])).expand(y.shape)


@cache
def likelihood_of(density: ScalarDensity) -> Likelihood:
    """Return the likelihood of a density."""
    return Likelihood(density)


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
        """Return the likelihood of an emission of one family."""
        density = getattr(emission, "density", None)
        if not isinstance(density, ScalarDensity):
            raise NoCompiledForm(f"{type(emission).__name__} has no compiled form")
        found = cls(emission, likelihood_of(density))
        readout = emission.readout
        if any(each.dim() > 1 for each in emission.parameters):
            raise NoCompiledForm(f"parameters of a {type(emission).__name__} have batch dims")
        affine = isinstance(readout, AffineMap) and readout.weight.dim() == 2 and readout.bias.dim() == 1
        rates = isinstance(readout, RatesMap) and isinstance(readout.units, Network)
        if not (affine or rates):
            raise NoCompiledForm(f"its readout, a {type(readout).__name__}, has no compiled form, or has batch dims")
        return found

    def weigher(self, dtype: Any) -> Any:
        """Compile what adds the log likelihood of a time bin to the log weights."""
        return as_weigher(self.weigh(dtype), dtype)

    def weigh(self, dtype: Any) -> Callable[..., None]:
        """Return the function that `weigher` compiles."""
        likelihood, activation, num_hinges = self.likelihood, identity, 0
        if isinstance(self.emission.readout, RatesMap):
            units: Any = self.emission.readout.units
            activation, hinges = compiled_activation(units.activation)
            num_hinges = len(hinges) - 1
        count = likelihood.num_parameters
        return _weigh(likelihood.at_zero, likelihood.log_density, activation, num_hinges, count, dtype)

    def curver(self, dtype: Any) -> Any:
        """Compile what adds up scores and curvature of a time bin.

        Raises:
            NoCompiledForm: if the readout is not affine.
        """
        return as_curver(self.curve(dtype), dtype)

    def curve(self, dtype: Any) -> Callable[..., None]:
        """Return the function that `curver` compiles."""
        likelihood = self.likelihood
        if not isinstance(self.emission.readout, AffineMap):
            raise NoCompiledForm(f"the curvature of a {type(self.emission).__name__} has no compiled form")
        return _curve(likelihood.curvature, likelihood.num_parameters, dtype)

    def along_paths(self, seen: Observed, v: Tensor | None, z: Tensor) -> Tensor:
        """Return what has the gradient of the log likelihood of paths, `paths x trials x time`, but not its value.

        A product of derivatives and what they are by, so that nothing else the size of paths x features is
        differentiated.
        """
        x = self.emission.readout(z, v)
        features = x.shape[-1]
        given = self.likelihood.parameters(self.emission, features)
        values, data, present, parameters = (array(each) for each in (x, seen.y, seen.present, given))
        scores, dtype = np.empty_like(values), values.dtype.type
        sums = np.zeros((*values.shape[:2], len(parameters), features), values.dtype)
        likelihood = self.likelihood
        scorer = _scorer(likelihood.gradient_at_zero, likelihood.gradient, (dtype(0),) * len(parameters), dtype)
        rows = [each.reshape(-1, features) for each in (data, present)]
        flat = [each.reshape(len(values), -1, features) for each in (values, scores)]
        cut = chunks(len(values), values.size)
        run_side_by_side([partial(_scored, scorer, *rows, parameters, flat[0][c], flat[1][c], sums[c]) for c in cut])
        found = (torch.from_numpy(scores) * x).sum(-1)
        if not self.emission.parameters:
            return found
        found = found + self.constant(seen)
        # The parameters have no time bin: the same share to each.
        whole = (torch.from_numpy(sums) * given).sum((-1, -2))
        return found + (whole / found.shape[-1]).unsqueeze(-1)

    def constant(self, seen: Observed) -> Tensor:
        """Return what the log likelihood of the entries that are there adds, `trials x time`."""
        if seen.missing is None:
            return self.likelihood.constant(self.emission, seen.y).sum(-1)
        # In place of what is missing a number that every likelihood has a density for, of which nothing is infinite.
        each = self.likelihood.constant(self.emission, seen.y.masked_fill(seen.missing, 0.5))
        return each.masked_fill(seen.missing, 0.0).sum(-1)

    def _aims(self, seen: Observed) -> Tensor:
        with torch.no_grad():
            return self.emission.density.aims(seen.y, *self.emission.parameters)

    def features(self, seen: Observed, v: Tensor | None, *, with_aims: bool) -> Features:
        """Return the arrays of a recording, with effective inputs `trials x time x inputs`.

        Args:
            seen: the recording.
            v: effective inputs.
            with_aims: whether its curvature will be asked for.
        """
        readout, y = self.emission.readout, seen.y
        stacked = self.likelihood.parameters(self.emission, y.shape[-1])
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
            aims=array(self._aims(seen) if with_aims else y.new_zeros(0, 0, 0)),
            y=array(y),
            present=array(seen.present),
            first=0,
            last=y.shape[-1],
            **nothing_remembered(y),
        )

    def num_rows(self) -> int:
        """Return how much scratch it needs beside that of a proposal."""
        return 0


@compiled(allocates=False)
def _score_paths(score: Any, y: Any, present: Any, parameters: Any, x: Any, scores: Any, sums: Any) -> None:
    for p in range(x.shape[0]):
        score(y, present, parameters, x[p], scores[p], sums[p])


# Type checkers do not see through arguments that are unpacked.
_scored: Any = _score_paths


@cache
def _scorer(zero: Split, other: Split, nothing: tuple[Any, ...], dtype: Any) -> Any:
    matrix, cube, num_parameters = Arrays.of(dtype).matrix, floats(dtype, 3), len(nothing)
    prepare_zero, finish_zero, prepare, finish = zero.prepare, zero.finish, other.prepare, other.finish

    @first_class(types.void(matrix, matrix, matrix, matrix, matrix, cube), fastmath=FAST)
    def write(y: Any, present: Any, of_features: Any, x: Any, scores: Any, sums: Any) -> None:
        """Write the scores of readouts `trials * time x features` and add those of parameters up over time."""
        num_bins = x.shape[0] // sums.shape[0]
        for m in range(x.shape[0]):
            for d in range(x.shape[1]):
                scores[m, d] = ZERO
                if present[m, d] == ZERO:
                    continue
                parameters = nothing
                if num_parameters > 0:
                    for j in range(num_parameters):
                        parameters = tuple_setitem(parameters, j, of_features[j, d])
                if y[m, d] == ZERO:
                    found = finish_zero(x[m, d], *prepare_zero(y[m, d], *parameters))
                else:
                    found = finish(x[m, d], *prepare(y[m, d], *parameters))
                scores[m, d] = found[0]
                if num_parameters > 0:
                    for j in range(num_parameters):
                        sums[m // num_bins, j, d] += found[1 + j]

    return write


def no_features(like: Tensor) -> Features:
    """Return the arrays where no likelihood is left, for a recording `trials x time x features`."""
    nothing = array(like.new_zeros(*like.shape[:2], 0))
    empty = array(like.new_zeros(0, 0))
    no_y = nothing, nothing, nothing
    return Features(empty, nothing, empty, empty, empty, *no_y, 0, 0, **nothing_remembered(like))


def nothing_remembered(like: Tensor) -> dict[str, Any]:
    """Return the arrays of what is remembered where nothing is."""
    dtype = array(like[:0]).dtype
    return {
        "laws": np.zeros((0,) * 4, dtype),
        "links": np.zeros((0, 2), np.int64),
        "past": np.zeros((0,) * 5, dtype),
        "ancestors": np.zeros((0,) * 3, np.int64),
    }


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
    def curve(features: Any, b: Any, t: Any, own: Any, rows: Any, block: Any) -> None:
        pass

    return curve


@cache
def as_weigher(function: Callable[..., None], dtype: Any) -> Any:
    """Compile a function that weighs time bins."""
    return first_class(Signatures.of(dtype).weigh, fastmath=FAST)(function)


@cache
def as_curver(function: Callable[..., None], dtype: Any) -> Any:
    """Compile a function that curves time bins."""
    return first_class(Signatures.of(dtype).curve, fastmath=FAST)(function)


@cache
def _weigh(
    zero: Split, other: Split, activation: Function, num_hinges: int, num_parameters: int, dtype: Any
) -> Callable[..., None]:
    nothing = (dtype(0),) * num_parameters
    prepare_zero, at_zero, prepare, log_density = zero.prepare, zero.finish, other.prepare, other.finish

    def weigh(features: Any, b: Any, t: Any, z: Any, log_weights: Any, rows: Any) -> None:
        """Add the log likelihood of latents `R x K`; the first two rows of scratch are readout and sum."""
        rank, num_particles = z.shape
        for start in range(0, num_particles, WIDTH):
            size = min(WIDTH, num_particles - start)
            for lane in range(size):
                rows[WIDTH + lane] = ZERO
            for i in range(features.first, features.last):
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
                    known = prepare_zero(y, *parameters)
                    for lane in range(size):
                        rows[WIDTH + lane] += at_zero(rows[lane], *known)[0]
                else:
                    found = prepare(y, *parameters)
                    for lane in range(size):
                        rows[WIDTH + lane] += log_density(rows[lane], *found)[0]
            for lane in range(size):
                log_weights[start + lane] += rows[WIDTH + lane]

    return weigh


@cache
def _curve(curvature: Split, num_parameters: int, dtype: Any) -> Callable[..., None]:
    nothing, prepare, finish = (dtype(0),) * num_parameters, curvature.prepare, curvature.finish

    def curve(features: Any, b: Any, t: Any, own: Any, rows: Any, block: Any) -> None:
        """Add each feature's score to the step, its stiffness and information to the matrices: rows of `laplace`."""
        rank, square, lanes = own.shape[0], own.shape[0] * own.shape[0], block.lanes
        found = 4 * rank + 2 * square
        for i in range(features.first, features.last):
            if features.present[b, t, i] == ZERO:
                continue
            y, parameters = features.y[b, t, i], nothing
            if num_parameters > 0:
                for j in range(num_parameters):
                    parameters = tuple_setitem(parameters, j, features.parameters[j, i])
            known = prepare(y, *parameters, features.aims[b, t, i])
            for lane in range(lanes):
                rows[at(found, lane)] = features.offset[b, t, i]
            for r in range(rank):
                weight = features.weight[r, i]
                for lane in range(lanes):
                    rows[at(found, lane)] += weight * rows[at(r, lane)]
            for lane in range(lanes):
                score, stiffness, information = finish(rows[at(found, lane)], *known)
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
