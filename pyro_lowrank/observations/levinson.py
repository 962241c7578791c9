"""Coefficients of autoregression, partial autocorrelations, and what data say of these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Nearer to 1 the stationary variance has no digits left in float32.
LARGEST_PARTIAL = 1 - 1e-6


class _Levinson(torch.autograd.Function):
    """Levinson's recursion, and back: a dozen operations in place of the hundred of its graph."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        order = partial.shape[-1]
        table = partial.new_zeros(*partial.shape[:-1], order + 1, order)
        for m in range(1, order + 1):
            r, shorter = partial[..., m - 1 : m], table[..., m - 1, : m - 1]
            table[..., m, : m - 1] = shorter - r * shorter.flip(-1)
            table[..., m, m - 1] = partial[..., m - 1]
        ctx.save_for_backward(partial, table)
        return table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        partial, table = ctx.saved_tensors
        grad, found = grads[0], []
        later = grad[..., -1, :]
        for m in range(partial.shape[-1], 0, -1):
            r, shorter, row = partial[..., m - 1 : m], table[..., m - 1, : m - 1], later[..., : m - 1]
            found.append(later[..., m - 1] - (row * shorter.flip(-1)).sum(-1))
            later = grad[..., m - 1, : m - 1] + row - r * row.flip(-1)
        return torch.stack(found[::-1], -1)


def predictors_of(partial: Tensor) -> Tensor:
    r"""Return the coefficients of the best linear predictors from the last 0, 1, 2, ... bins, the latest first.

    .. math:: \phi^{(m)}_m = r_m, \qquad \phi^{(m)}_k = \phi^{(m-1)}_k - r_m\, \phi^{(m-1)}_{m-k}

    for partial autocorrelations r: Levinson's recursion.

    Shapes: partial autocorrelations `... x order`; coefficients `... x (order + 1) x order`, zero beyond the bins that
    there are; those of the process itself come last.

    Example::

        >>> predictors_of(torch.tensor([0.5, 0.2]))
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000],
                [0.4000, 0.2000]])

    References:
        Levinson (1947); Durbin (1960); Barndorff-Nielsen and Schou (1973), J. Multivar. Anal. 3:408.
    """
    found: Any = _Levinson.apply(partial)
    table: Tensor = found
    return table


def partials_of(coefficients: Tensor) -> Tensor:
    """Return the partial autocorrelations, `... x order`, of coefficients; beyond 1 in size where not stationary.

    Example::

        >>> partials_of(torch.tensor([0.4, 0.2]))
        tensor([0.5000, 0.2000])
    """
    found, rest = [], coefficients
    while rest.shape[-1]:
        r, shorter = rest[..., -1:], rest[..., :-1]
        found.append(r)
        rest = (shorter + r * shorter.flip(-1)) / (1 - r.square())
    return torch.cat(found[::-1], -1)


@torch.no_grad()
def partials_of_data(deviation: Tensor, missing: Tensor | None, order: int) -> Tensor:
    r"""Return the partial autocorrelations of data by Burg's method, `features x order`: stationary, whatever the data.

    .. math:: r_m = \frac{2 \sum_t f_t b_{t-1}}{\sum_t f_t^2 + b_{t-1}^2}

    with the errors f and b of the predictions forwards and backwards from m - 1 bins.

    Args:
        deviation: recording less its mean, `trials x time x features`.
        missing: where entries are, or None if nowhere.
        order: number of lags, fewer than time bins.

    Example::

        >>> x = torch.zeros(1, 5000, 1)
        >>> noise = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        >>> for t in range(1, 5000):
        ...     x[0, t] = 0.8 * x[0, t - 1] + noise[t]
        >>> (partials_of_data(x, None, 2) - torch.tensor([[0.8, 0.0]])).abs().max() < 0.05
        tensor(True)

    References:
        Burg (1967), on maximum entropy spectra.
    """
    forward = backward = deviation.double()
    there = torch.ones_like(deviation, dtype=torch.bool) if missing is None else ~missing
    both, found = there, []
    for lag in range(1, order + 1):
        ahead, behind = forward[:, 1:], backward[:, :-1]
        both = there[:, lag:] & there[:, :-lag] & both[:, 1:] & both[:, :-1]
        ahead, behind = (torch.where(both, each, 0.0) for each in (ahead, behind))
        power = (ahead.square() + behind.square()).sum((0, 1))
        r = 2 * (ahead * behind).sum((0, 1)) / torch.where(power > 0, power, 1.0)
        found.append(r)
        forward, backward = ahead - r * behind, behind - r * ahead
    return torch.stack(found, -1).clamp(-LARGEST_PARTIAL, LARGEST_PARTIAL)
