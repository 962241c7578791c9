r"""The proposals of the Laplace guide, in compiled loops over particles, feature by feature.

In units of the transition noise a latent is z = m + L eta, and with C the readout's weights and B = C L a feature's
readout is x = C z + d. Gauss-Newton steps lead from eta = 0 on, as `guides.laplace` says; the last matrix of
information is P = F F^T, and

    eta = eta_K + F^{-T} e,    log weight = const - eta . eta / 2 - log det F - log q(e),

beside the likelihood, for a draw e of density q, all of one time bin. Features of the tables are B^T, the matrix L.

Rows of a block of particles (see `lanes`), R latents, are

    z (R), e, then F^{-T} e (R), eta (R), a step (R), the matrix that steers it (R * R), P (R * R),

and readout, score, stiffness and information of a feature. Features, of which there are many, are summed up by the
likelihood for all particles side by side, and so are the small matrices factorised.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.compilation import compiled, first_class
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, ZERO
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Encoding
from pyro_lowrank.guides.laplace import LaplaceProposal
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineMap
from pyro_lowrank.smc.compiled.lanes import WIDTH, Block, at, lanes_of
from pyro_lowrank.smc.compiled.likelihoods.joint import AnyLikelihood
from pyro_lowrank.smc.compiled.proposals.base import CompiledProposal, first_or_rest, register
from pyro_lowrank.smc.compiled.records import Signatures, Tables


@compiled(fastmath=FAST, allocates=False, inner=True)
def _prepare(rank: Any, rows: Any, means: Any, root: Any, start: Any, size: Any, lanes: Any) -> None:
    """Write z = m + L eta; set the step to -eta and both matrices to the identity, which is what the transition says.

    Lanes without a particle hold a copy of the first.
    """
    square = rank * rank
    for r in range(rank):
        for lane in range(lanes):
            rows[at(r, lane)] = means[r, start + (lane if lane < size else 0)]
            rows[at(3 * rank + r, lane)] = -rows[at(2 * rank + r, lane)]
        for j in range(r + 1):
            for lane in range(lanes):
                rows[at(r, lane)] += root[r, j] * rows[at(2 * rank + j, lane)]
    for entry in range(2 * square):
        diagonal = (entry % square) // rank == entry % rank
        for lane in range(lanes):
            rows[at(4 * rank + entry, lane)] = ONE if diagonal else ZERO


@compiled(fastmath=FAST, allocates=False, inner=True)
def _factorise(rank: Any, rows: Any, a: Any, lanes: Any) -> None:
    """Turn the lower triangle of each particle's matrix into its Cholesky factor; NaN where there is none."""
    for j in range(rank):
        for i in range(j, rank):
            entry, diagonal = a + i * rank + j, a + j * rank + j
            for k in range(j):
                _take(rows, entry, a + i * rank + k, a + j * rank + k, lanes)
            if i == j:
                for lane in range(lanes):
                    rows[at(entry, lane)] = math.sqrt(rows[at(entry, lane)])
            else:
                _divide(rows, entry, diagonal, lanes)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _take(rows: Any, x: Any, first: Any, second: Any, lanes: Any) -> None:
    """Subtract the product of two rows from another."""
    for lane in range(lanes):
        rows[at(x, lane)] -= rows[at(first, lane)] * rows[at(second, lane)]


@compiled(fastmath=FAST, allocates=False, inner=True)
def _divide(rows: Any, x: Any, by: Any, lanes: Any) -> None:
    """Divide a row by another."""
    for lane in range(lanes):
        rows[at(x, lane)] /= rows[at(by, lane)]


@compiled(fastmath=FAST, allocates=False, inner=True)
def _solve_transposed(rank: Any, rows: Any, a: Any, x: Any, lanes: Any) -> None:
    """Turn each particle's vector x into F^{-T} x."""
    for i in range(rank - 1, -1, -1):
        for k in range(i + 1, rank):
            _take(rows, x + i, a + k * rank + i, x + k, lanes)
        _divide(rows, x + i, a + i * rank + i, lanes)


@compiled(fastmath=FAST, allocates=False, inner=True)
def _take_step(rank: Any, rows: Any, lanes: Any) -> None:
    """Solve for each particle's step and take it."""
    a, x = 4 * rank, 3 * rank
    _factorise(rank, rows, a, lanes)
    for i in range(rank):
        for k in range(i):
            _take(rows, x + i, a + i * rank + k, x + k, lanes)
        _divide(rows, x + i, a + i * rank + i, lanes)
    _solve_transposed(rank, rows, a, x, lanes)
    for r in range(rank):
        for lane in range(lanes):
            rows[at(2 * rank + r, lane)] += rows[at(x + r, lane)]


@cache
def _proposer(num_iterations: int, dtype: Any) -> Any:
    @first_class(Signatures.of(dtype).propose, fastmath=FAST)
    def propose(
        curve: Any,
        tables: Any,
        features: Any,
        b: Any,
        t: Any,
        means: Any,
        white: Any,
        log_densities: Any,
        log_weights: Any,
        z: Any,
        rows: Any,
    ) -> None:
        rank, num_particles = means.shape
        index, factor = tables.index[b, t], 4 * rank + rank * rank
        root, own = tables.matrices[index, 0], tables.features[index]
        for start in range(0, num_particles, WIDTH):
            size = min(WIDTH, num_particles - start)
            lanes = lanes_of(size)
            for r in range(rank):
                for lane in range(lanes):
                    rows[at(2 * rank + r, lane)] = ZERO
            for _ in range(num_iterations):
                _prepare(rank, rows, means, root, start, size, lanes)
                curve(features, b, t, own, rows, Block(start, size, lanes))
                _take_step(rank, rows, lanes)
            _factorise(rank, rows, factor, lanes)
            for r in range(rank):
                for lane in range(lanes):
                    rows[at(rank + r, lane)] = white[r, start + (lane if lane < size else 0)]
            _solve_transposed(rank, rows, factor, rank, lanes)
            for lane in range(size):
                log_weights[start + lane] += tables.constant[b, t] - log_densities[start + lane]
            for r in range(rank):
                for lane in range(size):
                    rows[at(2 * rank + r, lane)] += rows[at(rank + r, lane)]
                    eta = rows[at(2 * rank + r, lane)]
                    scale = rows[at(factor + r * rank + r, lane)]
                    log_weights[start + lane] -= HALF * eta * eta + math.log(scale)
            for r in range(rank):
                for lane in range(size):
                    z[r, start + lane] = means[r, start + lane]
                for j in range(r + 1):
                    for lane in range(size):
                        z[r, start + lane] += root[r, j] * rows[at(2 * rank + j, lane)]

    return propose


@register(LaplaceProposal)
class LaplaceForm(CompiledProposal):
    """The Laplace proposal, for likelihoods with a curvature."""

    needs_curvature = True

    def __init__(self, proposal: LaplaceProposal, transition: Transition, likelihood: AnyLikelihood | None) -> None:
        super().__init__(proposal, transition, likelihood)
        readout = getattr(proposal.emission, "readout", None)
        if likelihood is None or not isinstance(readout, AffineMap):
            raise NoCompiledForm(f"LaplaceProposal has no compiled form for a {type(proposal.emission).__name__}")
        self.weight: Tensor = readout.weight

    def proposer(self, dtype: Any) -> Any:
        """Compile what writes the latents of a time bin and adds to their log weights."""
        return _proposer(self.proposal.num_iterations, dtype)

    def num_rows(self) -> int:
        """Return how many rows of scratch it needs."""
        rank = self.transition.rank
        return 4 * rank + 2 * rank**2 + 4

    def tables(self, seen: Observed, v: Tensor | None, *, first: bool, encoding: Encoding | None = None) -> Tables:
        """Return what it knows of a recording."""
        roots = torch.stack([self.transition.initial_noise.scale_tril, self.transition.noise.scale_tril])
        shape = seen.y.shape[:2]
        vectors, constant = seen.y.new_zeros(*shape, 0, self.transition.rank), seen.y.new_zeros(shape)
        index = first_or_rest(seen, first=first)
        return Tables(*map(array, (vectors, constant, roots.unsqueeze(1), (self.weight @ roots).mT, index)))

    def draw(self, white: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn standard normal numbers into draws of the proposal in units of its scale."""
        noise = self.transition.noise
        assert not isinstance(noise, StudentTNoise)
        x, log_density = self.proposal.draw(noise, white, recorded.unsqueeze(1))
        # The loops leave out the constant of the transition's density.
        return x, log_density + 0.5 * self.transition.rank * math.log(2 * math.pi)

    def tails(self, recorded: Tensor) -> Tensor:
        """Return the log density of a draw as that of `draw`, given by three numbers."""
        rank, freedom = self.transition.rank, self.proposal.freedom
        gaussian = self.transition.initial_mean.new_zeros(3)
        if freedom is None:
            return gaussian.expand(*recorded.shape, 3)
        peak = self.proposal.law(self.transition.noise).standard_log_prob(gaussian.new_zeros(rank))
        heavy = torch.stack([peak + 0.5 * rank * math.log(2 * math.pi), 0.5 * (freedom + rank), freedom])
        return torch.where(recorded.unsqueeze(-1), heavy, gaussian)
