"""A particle that is pinned to a path, in the compiled loop: who precedes it, where it goes on, and its weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import compiled, first_class
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.smc.compiled.pair import CompiledPair
from pyro_lowrank.smc.compiled.paths import fill_shares, pick, whiten
from pyro_lowrank.smc.compiled.records import Signatures
from pyro_lowrank.smc.conditional import Reference
from pyro_lowrank.smc.resampling import (
    MultinomialResampling,
    NoResampling,
    PositionResampling,
    Resampler,
    StratifiedResampling,
    SystematicResampling,
)

# How far from its centre a proposal is probed for its scale: far, so that a mean far from zero costs no digits.
_FAR = 2.0**40


class Pins(NamedTuple):
    """The paths that a particle of each trial is pinned to, and where the loop works.

    Attributes:
        path: `B x T x R`.
        place: of the pinned particle, `B`; written to.
        samples_ancestors: whether the past of the path is drawn anew at each time bin.
        uniforms: in [0, 1), `B x T x 3`: who precedes the path, where in its share a descendant falls, which one.
        inverse: of the Cholesky factor of the transition noise.
        tails: of the draws of a proposal that asks for their log densities, `B x T x 3`: see `CompiledProposal.tails`.
        probes: scratch, `4 x R x (R + 1)`: means, draws, latents and a linear system.
        sums: scratch, `2 x (R + 1)`: log densities and log weights of the probes.
        white: scratch, `(2 R + 2) x K`.
    """

    path: Any
    place: Any
    samples_ancestors: Any
    uniforms: Any
    inverse: Any
    tails: Any
    probes: Any
    sums: Any
    white: Any


# Each moves positions so that a descendant falls to x, as `PositionResampling.through` does, and returns which one.


def _systematic(positions: Any, x: Any, uniform: Any) -> Any:
    size = positions.shape[0]
    place = min(int(x * size), size - 1)
    within = x * size - place
    for k in range(size):
        positions[k] = (within + k) / size
    return place


def _stratified(positions: Any, x: Any, uniform: Any) -> Any:
    place = min(int(x * positions.shape[0]), positions.shape[0] - 1)
    positions[place] = x
    return place


def _multinomial(positions: Any, x: Any, uniform: Any) -> Any:
    place = min(int(uniform * positions.shape[0]), positions.shape[0] - 1)
    positions[place] = x
    return place


_THROUGH: dict[Any, Callable[..., Any]] = {
    SystematicResampling.through: _systematic,
    StratifiedResampling.through: _stratified,
    MultinomialResampling.through: _multinomial,
}


@cache
def _compiled_through(function: Callable[..., Any], dtype: Any) -> Any:
    return first_class(Signatures.of(dtype).through)(function)


def through_of(resampler: Resampler, dtype: Any) -> Any:
    """Return what moves positions so that a descendant falls to a given one, compiled.

    Raises:
        NoCompiledForm: if the scheme is the user's own.
    """
    kind: Any = type(resampler)
    found: Callable[..., Any] | None = None
    if isinstance(resampler, NoResampling):
        # Where nothing is resampled it is never called.
        found = _multinomial
    elif isinstance(resampler, PositionResampling) and kind.conditional is PositionResampling.conditional:
        found = _THROUGH.get(kind.through)
    if found is None:
        raise NoCompiledForm(f"the conditional form of {type(resampler).__name__} has no compiled form")
    return _compiled_through(found, dtype)


def pins_of(reference: Reference, compiled: CompiledPair, recorded: Tensor, num_particles: int) -> Pins:
    """Return a path as the loop reads it, with its random numbers.

    Args:
        reference: the path.
        compiled: the pair.
        recorded: which bins have data, `trials x time`.
        num_particles: number of particles.
    """
    z, dtype = reference.z, compiled.dtype
    trials, steps, rank = z.shape
    root = compiled.pair.transition.noise.scale_tril
    # Any place is as likely as any other: the law of some schemes depends on the order of the particles.
    place = torch.randint(num_particles, (trials,))
    uniforms = torch.rand(trials, steps, 3, dtype=z.dtype)
    inverse = torch.linalg.solve_triangular(root, torch.eye(rank, dtype=root.dtype), upper=False)
    return Pins(
        *(array(z), place.numpy(), reference.ancestor_sampling, array(uniforms), array(inverse)),
        tails=array(compiled.proposal.tails(recorded)),
        probes=np.empty((4, rank, rank + 1), dtype),
        sums=np.empty((2, rank + 1), dtype),
        white=np.empty((2 * rank + 2, num_particles), dtype),
    )


def of_trials(pins: Pins, trials: slice) -> Pins:
    """Return the paths of some trials, with scratch of their own."""
    by_trial = {called: getattr(pins, called)[trials] for called in ("path", "place", "uniforms", "tails")}
    scratch = {called: np.empty_like(getattr(pins, called)) for called in ("probes", "sums", "white")}
    return pins._replace(**by_trial, **scratch)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _precede(pins: Any, b: Any, t: Any, means: Any, log_weights: Any) -> None:
    """Draw which particle precedes the path's latent of a time bin, from the means out of all particles."""
    rank, size = means.shape
    apart, white, logits, shares = pins.white[:rank], pins.white[rank:-2], pins.white[-2], pins.white[-1]
    # Differences first: whitened one by one, what is far from the origin loses the digits that matter here.
    for r in range(rank):
        for k in range(size):
            apart[r, k] = pins.path[b, t, r] - means[r, k]
    whiten(pins.inverse, apart, white)
    for k in range(size):
        logits[k] = log_weights[k]
    for r in range(rank):
        for k in range(size):
            logits[k] -= HALF * white[r, k] * white[r, k]
    largest = logits[0]
    for k in range(size):
        largest = max(largest, logits[k])
    # Where no particle could have led there, by rounding, the path keeps its own past.
    if largest > -np.inf:
        fill_shares(logits, shares)
        pins.place[b] = pick(shares, pins.uniforms[b, t, 0])


@compiled(fastmath=FAST, allocates=False, inner=True)
def _fall(pins: Any, b: Any, t: Any, log_weights: Any, positions: Any, through: Any) -> Any:
    """Let a descendant fall evenly into the share of the pinned particle; return which."""
    low, total = ZERO * log_weights[0], ZERO * log_weights[0]
    for k in range(log_weights.shape[0]):
        low += np.exp(log_weights[k]) if k < pins.place[b] else ZERO * low
        total += np.exp(log_weights[k])
    own = np.exp(log_weights[pins.place[b]])
    return through(positions, (low + own * pins.uniforms[b, t, 1]) / total, pins.uniforms[b, t, 2])


@compiled(allocates=False, inner=True)
def choose(pins: Any, b: Any, t: Any, means: Any, log_weights: Any, drawn: Any, positions: Any, through: Any) -> Any:
    """Choose who precedes the path and where it goes on; return the particle that it comes from.

    Afterwards `place` is where it goes on, and the positions of a draw are such that it does.
    """
    if pins.samples_ancestors:
        _precede(pins, b, t, means, log_weights)
    parent = pins.place[b]
    if drawn:
        pins.place[b] = _fall(pins, b, t, log_weights, positions, through)
    return parent


@compiled(fastmath=FAST, allocates=False, inner=True)
def _solve(matrix: Any, x: Any) -> None:
    """Solve a linear system, its matrix `R x R`, by elimination, the largest pivot first; the solution is left in x."""
    size = x.shape[0]
    for j in range(size):
        pivot = j
        for i in range(j + 1, size):
            if abs(matrix[i, j]) > abs(matrix[pivot, j]):
                pivot = i
        for c in range(size):
            matrix[j, c], matrix[pivot, c] = matrix[pivot, c], matrix[j, c]
        x[j], x[pivot] = x[pivot], x[j]
        for i in range(j + 1, size):
            factor = matrix[i, j] / matrix[j, j]
            for c in range(j, size):
                matrix[i, c] -= factor * matrix[j, c]
            x[i] -= factor * x[j]
    for i in range(size - 1, -1, -1):
        for c in range(i + 1, size):
            x[i] -= matrix[i, c] * x[c]
        x[i] /= matrix[i, i]


@compiled(fastmath=FAST, allocates=False, inner=True)
def aim(
    pins: Any, propose: Any, curve: Any, tables: Any, features: Any, draws: Any, b: Any, t: Any, means: Any, rows: Any
) -> None:
    """Replace the draw of the pinned particle by the one that leads to the path: latents are affine in their draws."""
    rank, k = means.shape[0], pins.place[b]
    around, white, z, system = pins.probes[0], pins.probes[1], pins.probes[2], pins.probes[3]
    for r in range(rank):
        for c in range(rank + 1):
            around[r, c] = means[r, k]
            white[r, c] = _FAR if c == r + 1 else 0.0
    pins.sums[:] = 0.0
    propose(curve, tables, features, b, t, around, white, pins.sums[0], pins.sums[1], z, rows)
    for r in range(rank):
        for c in range(rank):
            system[r, c] = (z[r, c + 1] - z[r, 0]) / _FAR
        system[r, rank] = pins.path[b, t, r] - z[r, 0]
    _solve(system[:, :rank], system[:, rank])
    squared = ZERO * means[0, 0]
    for r in range(rank):
        draws.white[b, t, r, k] = system[r, rank]
        squared += system[r, rank] * system[r, rank]
    log_densities = draws.log_densities[b, t]
    if k < log_densities.shape[0]:
        constant, power, freedom = pins.tails[b, t, 0], pins.tails[b, t, 1], pins.tails[b, t, 2]
        tail = power * np.log1p(squared / freedom) if freedom > ZERO else HALF * squared
        log_densities[k] = constant - tail


@compiled(allocates=False, inner=True)
def pin(pins: Any, b: Any, t: Any, z: Any) -> None:
    """Write the path's latent in its place, free of rounding; latents `R x K`."""
    for r in range(z.shape[0]):
        z[r, pins.place[b]] = pins.path[b, t, r]
