r"""Proposals whose mean is affine in that of the transition: the optimal one, the transition itself, an encoder's.

With m the mean of the transition of a particle, r a reference and eps a white draw, its latent is z = m + s,

    s = g - G d + S eps,    d = m - r,

and its log weight, beside the likelihood, one of

    NO_WEIGHT    const
    QUADRATIC    const + c . d - d . A d / 2
    RATIO        const + eps . eps / 2 - s . A s / 2

Rows of the tables are r, g and c, matrices G, S (lower triangular) and A.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.compilation import first_class
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO
from pyro_lowrank.dynamics.compiled.arrays import array
from pyro_lowrank.dynamics.compiled.units import FAST
from pyro_lowrank.guides.base import Encoding
from pyro_lowrank.guides.bootstrap import BootstrapProposal
from pyro_lowrank.guides.encoder import EncoderProposal
from pyro_lowrank.guides.optimal import OptimalProposal
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.compiled.proposals.base import CompiledProposal, first_or_rest, register
from pyro_lowrank.smc.compiled.records import Signatures, Tables

NO_WEIGHT, QUADRATIC, RATIO = range(3)


@cache
def _proposer(weighing: int, dtype: Any) -> Any:
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
        """Rows of scratch are d, `R x K`."""
        rank, size = means.shape
        reference, shift, linear = tables.vectors[b, t, 0], tables.vectors[b, t, 1], tables.vectors[b, t, 2]
        i = tables.index[b, t]
        gain, scale, metric = tables.matrices[i, 0], tables.matrices[i, 1], tables.matrices[i, 2]
        for r in range(rank):
            for k in range(size):
                rows[r * size + k] = means[r, k] - reference[r]
        # The shift first, on its own: added to a far mean, its digits would be lost to the weights.
        for r in range(rank):
            for k in range(size):
                z[r, k] = shift[r]
            for j in range(rank):
                for k in range(size):
                    z[r, k] -= gain[r, j] * rows[j * size + k]
            for j in range(r + 1):
                for k in range(size):
                    z[r, k] += scale[r, j] * white[j, k]
        constant = tables.constant[b, t]
        for k in range(size):
            log_weights[k] += constant
        if weighing == QUADRATIC:
            for r in range(rank):
                for k in range(size):
                    curved = ZERO * constant
                    for j in range(rank):
                        curved += metric[r, j] * rows[j * size + k]
                    log_weights[k] += rows[r * size + k] * (linear[r] - HALF * curved)
        if weighing == RATIO:
            for r in range(rank):
                for k in range(size):
                    curved = ZERO * constant
                    for j in range(rank):
                        curved += metric[r, j] * z[j, k]
                    log_weights[k] += HALF * (white[r, k] * white[r, k] - z[r, k] * curved)
        for r in range(rank):
            for k in range(size):
                z[r, k] += means[r, k]

    return propose


class AffineForm(CompiledProposal):
    """Base of the proposals of this file."""

    weighing: int

    def proposer(self, dtype: Any) -> Any:
        """Compile what writes the latents of a time bin and adds to their log weights."""
        return _proposer(self.weighing, dtype)

    def num_rows(self) -> int:
        """Return how many rows of scratch it needs."""
        return max(2, self.transition.rank)

    def _tables(self, seen: Observed, vectors: Tensor, constant: Tensor, matrices: Tensor, index: Tensor) -> Tables:
        nothing = seen.y.new_zeros(len(matrices), self.transition.rank, 0)
        return Tables(*map(array, (vectors, constant, matrices, nothing, index)))


@register(OptimalProposal)
class OptimalForm(AffineForm):
    """The posterior of the latent given the one before and the data, whose weights do not depend on the draw."""

    weighing, weighs_data = QUADRATIC, True

    def tables(self, seen: Observed, v: Tensor | None, *, first: bool, encoding: Encoding | None = None) -> Tables:
        """Return what it knows of a recording."""
        noises = (self.transition.initial_noise, self.transition.noise)[0 if first else 1 :]
        reduced = self.proposal.reduce(seen, v, noises)
        curvature, scale = reduced.conditioning.curvature, reduced.conditioning.scale_tril
        covariances = torch.stack([noise.covariance for noise in noises])
        number, patterns = curvature.shape[:2]
        gain = covariances.unsqueeze(1) @ curvature
        which = first_or_rest(seen, first=True) if number > 1 else torch.zeros(seen.y.shape[:2], dtype=torch.long)
        shift = (covariances[which] @ reduced.linear.unsqueeze(-1)).squeeze(-1)
        index = which * patterns + (0 if reduced.index is None else reduced.index)
        vectors = torch.stack([reduced.reference, shift, reduced.linear], 2)
        return self._tables(
            seen, vectors, reduced.constant, torch.stack([gain, scale, curvature], 2).flatten(0, 1), index
        )


@register(BootstrapProposal)
class BootstrapForm(AffineForm):
    """The transition."""

    weighing = NO_WEIGHT

    def tables(self, seen: Observed, v: Tensor | None, *, first: bool, encoding: Encoding | None = None) -> Tables:
        """Return what it knows of a recording."""
        scale = torch.stack([self.transition.initial_noise.scale_tril, self.transition.noise.scale_tril])
        nothing = torch.zeros_like(scale)
        vectors = seen.y.new_zeros(*seen.y.shape[:2], 3, self.transition.rank)
        matrices = torch.stack([nothing, scale, nothing], 1)
        return self._tables(
            seen, vectors, seen.y.new_zeros(seen.y.shape[:2]), matrices, first_or_rest(seen, first=first)
        )


@register(EncoderProposal)
class EncoderForm(AffineForm):
    """The transition times what an encoder reads, normalised."""

    weighing = RATIO

    def tables(self, seen: Observed, v: Tensor | None, *, first: bool, encoding: Encoding | None = None) -> Tables:
        """Return what it knows of a recording."""
        if encoding is None:
            encoding = self.proposal.encode(seen, v, first=first)
        shape = (*seen.y.shape[:2], self.transition.rank, self.transition.rank)
        gain, scale = (encoding[name].reshape(shape) for name in ("gain", "scale_tril"))
        roots = torch.stack([self.transition.initial_noise.scale_tril, self.transition.noise.scale_tril])
        which = first_or_rest(seen, first=first)
        metric = torch.cholesky_inverse(roots)[which]
        log_dets = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)[which]
        constant = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1) - log_dets
        nothing = torch.zeros_like(encoding["mean"])
        return self._tables(
            seen,
            torch.stack([encoding["mean"], nothing, nothing], 2),
            constant,
            torch.stack([gain, scale, metric], 2).flatten(0, 1),
            torch.arange(which.numel()).reshape(which.shape),
        )
