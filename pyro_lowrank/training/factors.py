"""Factor analysis: what features share, and what each has by itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.training.moments import fixed_signs

_MOST_STEPS = 1000
_SMALLEST_SHARE = 1e-6


class Factors(NamedTuple):
    """A covariance taken apart, L L^T + diag(variance).

    Attributes:
        loadings: L, `features x factors`, largest first.
        variance: of each feature's own part, `features`.
    """

    loadings: Tensor
    variance: Tensor

    def scores(self, rows: Tensor) -> Tensor:
        """Return the expected factors, `... x factors`, of centred data `... x features`."""
        weighed = self.loadings / self.variance.unsqueeze(-1)
        eye = torch.eye(self.loadings.shape[-1], dtype=rows.dtype, device=rows.device)
        return rows @ torch.linalg.solve(eye + self.loadings.mT @ weighed, weighed.mT).mT


def factor_analysis(covariance: Tensor, number: int, *, tolerance: float = 1e-6) -> Factors:
    r"""Return the factors of largest likelihood.

    .. math:: S \approx L L^T + \mathrm{diag}(\psi)

    By turns: given psi the loadings are the leading eigenvectors of the covariance in its units, and given these psi is
    what they leave over.

    Args:
        covariance: S, `features x features`.
        number: of factors, fewer than features.
        tolerance: relative change of psi at which it is done.

    Example::

        >>> loadings = torch.tensor([[1.0], [0.5], [-1.0], [0.3]], dtype=torch.float64)
        >>> found = factor_analysis(loadings @ loadings.mT + torch.diag(loadings.new_tensor([0.2, 0.3, 0.4, 0.5])), 1)
        >>> (found.loadings - loadings).abs().max() < 1e-3, found.variance.mul(1e2).round() / 1e2
        (tensor(True), tensor([0.2000, 0.3000, 0.4000, 0.5000], dtype=torch.float64))

    References:
        Lawley and Maxwell (1971), "Factor analysis as a statistical method"; Rubin and Thayer (1982), Psychometrika
        47:69.
    """
    total = covariance.diagonal()
    least = _SMALLEST_SHARE * torch.where(total > 0, total, total.mean().clamp(min=torch.finfo(total.dtype).tiny))
    if not number:
        return Factors(covariance.new_zeros(len(total), 0), total.maximum(least))
    variance = (0.5 * total).maximum(least)
    for _ in range(_MOST_STEPS):
        root = variance.sqrt()
        values, vectors = torch.linalg.eigh(covariance / root / root.unsqueeze(-1))
        size = (values[-number:].flip(-1) - 1).clamp(min=0.0).sqrt()
        loadings = root.unsqueeze(-1) * fixed_signs(vectors[:, -number:].flip(-1)) * size
        before, variance = variance, (total - loadings.square().sum(-1)).maximum(least)
        if bool(((variance - before).abs() < tolerance * before).all()):
            break
    return Factors(loadings, variance)


def slowest_first(scores: Tensor) -> Tensor:
    """Return the rotation, `factors x factors`, after which scores `trials x time x factors` go from slow to white.

    By the size of their covariance from one time bin to the next: noise without memory has none.
    """
    before, after = scores[:, :-1].flatten(0, 1), scores[:, 1:].flatten(0, 1)
    lagged = before.mT @ after / max(1, len(before))
    values, vectors = torch.linalg.eigh(0.5 * (lagged + lagged.mT))
    return fixed_signs(vectors[:, values.abs().argsort(descending=True)])
