"""Loadings of latents from how counts covary from one time bin to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.arrays import varies


def lagged_loadings(y: Tensor, mean: Tensor, rank: int) -> Tensor | None:
    r"""Return how much the means of features change with latents of unit variance, `features x rank`.

    With the leading eigenvectors E and eigenvalues D of the symmetric part of the correlation between neighbouring time
    bins, and the standard deviations s of the features:

    .. math::

        S^{-1} \, \mathrm{sym}\, \mathrm{Cov}(y_t, y_{t+1}) \, S^{-1} \approx E D E^T, \qquad L = S E D^{1/2}

    Noise that is independent from bin to bin adds nothing to this covariance, whatever its distribution, so nothing has
    to be taken from the diagonal. Rows longer than the mean are shortened to it: no rate falls below zero.

    Args:
        y: recording, `trials x time x features`, NaN where missing.
        mean: of each feature, `features`, above zero.
        rank: number of latents.

    Returns:
        The loadings; None if there are not as many positive eigenvalues.

    Example::

        >>> z = torch.sin(torch.arange(4000.0) / 10).reshape(1, -1, 1)
        >>> weight = torch.tensor([[0.5, -0.3, 0.2]])
        >>> y = torch.poisson(2.0 + 2**0.5 * z @ weight, generator=torch.Generator().manual_seed(0))
        >>> loadings = lagged_loadings(y, y.mean((0, 1)), 1)
        >>> (loadings - weight.mT).abs().max() < 0.1
        tensor(True)

    References:
        Buesing, Macke and Sahani (2012), NeurIPS, on moments of counts.
    """
    seen = (~y.isnan()).double()
    deviation = torch.where(y.isnan(), 0.0, y - mean).double()
    before, after = deviation[:, :-1].flatten(0, 1), deviation[:, 1:].flatten(0, 1)
    pairs = (seen[:, :-1].flatten(0, 1).mT @ seen[:, 1:].flatten(0, 1)).clamp(min=1.0)
    covariance = before.mT @ after / pairs
    variance = deviation.square().sum((0, 1)) / seen.sum((0, 1)).clamp(min=1.0)
    low, high = (y.nan_to_num(nan=end).flatten(0, 1) for end in (torch.inf, -torch.inf))
    # A feature that never varies has no correlation with any.
    scale = torch.where(varies(low.amin(0), high.amax(0)), variance, torch.inf).sqrt()
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT) / scale / scale.unsqueeze(-1))
    if rank > len(values) or values[-rank] <= 0:
        return None
    vectors = fixed_signs(vectors[:, -rank:].flip(-1))
    loadings = variance.sqrt().unsqueeze(-1) * vectors * values[-rank:].flip(-1).sqrt()
    length = loadings.norm(dim=-1).clamp(min=torch.finfo(loadings.dtype).tiny)
    return (loadings * (mean / length).clamp(max=1.0).unsqueeze(-1)).to(y.dtype)


def fixed_signs(vectors: Tensor) -> Tensor:
    """Return eigenvectors, in columns, with the largest entry of each positive: every machine then has the same."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
