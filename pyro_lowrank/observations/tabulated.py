"""Moments and draws of a distribution of numbers of which only the log density is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

COUNTS, ZERO_OR_ONE = str(constraints.nonnegative_integer), str(constraints.boolean)

# What is left out of a table of counts, and how long it may get.
_LEFT_OUT, _ROUNDING, _LONGEST = 1e-10, 1e-6, 1 << 20
# Points of a continuous table, and how far its grid reaches, in widths of the peak and on the scale of the inverse
# hyperbolic sine.
_POINTS, _REACH = 257, 12.0
# How the peak is sought: points at first, the smallest distance between them, points and rounds after that.
_SEARCH, _SMALLEST, _CLOSER, _ROUNDS = 129, 1e-12, 33, 4
# Points of a table times numbers that are tabulated at once.
_AT_ONCE = 4_000_000


class Moments(NamedTuple):
    """Mean and variance, of the shape of the distribution."""

    mean: Tensor
    variance: Tensor


# From the real line to a support, the log of the slope, and how far from zero the line is looked at.
_COORDINATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    str(constraints.real): (lambda x: x, torch.zeros_like, 1e12),
    str(constraints.positive): (torch.exp, lambda x: x, 300.0),
    str(constraints.unit_interval): (
        torch.sigmoid,
        lambda x: functional.logsigmoid(x) + functional.logsigmoid(-x),
        36.0,
    ),
}
SUPPORTS = (*_COORDINATES, COUNTS, ZERO_OR_ONE)
"""What a number may be, as the names of torch's constraints, which are other objects in every process."""


class _Table(NamedTuple):
    values: Tensor
    """`points x numbers`, in their order."""
    shares: Tensor
    """Probability of each, likewise."""


def typical_values(support: str) -> list[float]:
    """Return a few values of a support.

    Example::

        >>> typical_values(str(constraints.real))
        [0.5]
    """
    return [0.0, 1.0] if support in (COUNTS, ZERO_OR_ONE) else [0.5]


def moments(distribution: Any, support: str) -> Moments:
    """Return mean and variance, summed up from the density in float64, of a density with one peak.

    Args:
        distribution: with `eta` and `parameters`, and a `log_prob` that broadcasts.
        support: one of `SUPPORTS`.

    Raises:
        ValueError: if the mass of counts does not end.
    """
    found: list[Tensor] = []
    for table in _tables(distribution, support):
        mean = (table.shares * table.values).sum(0)
        found.append(torch.stack([mean, (table.shares * (table.values - mean).square()).sum(0)]))
    mean, variance = torch.cat(found, -1).to(distribution.eta.dtype).unbind(0)
    return Moments(mean.reshape(distribution.batch_shape), variance.reshape(distribution.batch_shape))


def draw(distribution: Any, support: str) -> Tensor:
    """Return a draw of each number by inverse transform.

    Args:
        distribution: as for `moments`.
        support: one of `SUPPORTS`.

    Raises:
        ValueError: if the mass of counts does not end.
    """
    found: list[Tensor] = []
    for table in _tables(distribution, support):
        cumulative = table.shares.cumsum(0).mT.contiguous()
        position = torch.rand(len(cumulative), 1, dtype=torch.float64, device=cumulative.device)
        index = torch.searchsorted(cumulative, position * cumulative[:, -1:]).clamp(max=len(table.values) - 1)
        below = (index - 1).clamp(min=0)
        end, start = (table.values.mT.gather(-1, which) for which in (index, below))
        if support in (COUNTS, ZERO_OR_ONE):
            found.append(end.squeeze(-1))
            continue
        # The share of a point is that of its surroundings, half of it towards each neighbour.
        above = (index + 1).clamp(max=len(table.values) - 1)
        after = table.values.mT.gather(-1, above)
        reached = cumulative.gather(-1, index)
        way = 1 - (reached - position * cumulative[:, -1:]) / table.shares.mT.gather(-1, index).clamp(min=1e-300)
        low, high = 0.5 * (start + end), 0.5 * (end + after)
        found.append((low + way.clamp(0, 1) * (high - low)).squeeze(-1))
    return inside(torch.cat(found).to(distribution.eta.dtype).reshape(distribution.batch_shape), support)


def inside(values: Tensor, support: str) -> Tensor:
    """Return values with those at the ends of an open range, where there is no density, moved into it.

    Example::

        >>> inside(torch.tensor([0.0, 2.0]), str(constraints.positive)) > 0
        tensor([True, True])
    """
    limits = torch.finfo(values.dtype)
    if support == str(constraints.unit_interval):
        return values.clamp(limits.tiny, 1 - limits.eps)
    return values.clamp(min=limits.tiny) if support == str(constraints.positive) else values


@torch.no_grad()
def _tables(distribution: Any, support: str) -> Iterator[_Table]:
    """Yield tables of all numbers, a part of them at a time."""
    shape = distribution.batch_shape
    given = [each.double().expand(shape).reshape(-1) for each in (distribution.eta, *distribution.parameters)]
    if not len(given[0]):
        empty = given[0].new_zeros(1, 0)
        yield _Table(empty, empty)
        return
    for piece in zip(*(each.split(max(1, _AT_ONCE // _POINTS)) for each in given), strict=True):

        def log_prob(y: Tensor, piece: tuple[Tensor, ...] = piece) -> Tensor:
            found: Tensor = distribution.family.density.log_prob(y, *piece)
            return found.nan_to_num(nan=-torch.inf)

        if support in (COUNTS, ZERO_OR_ONE):
            yield _of_counts(log_prob, piece[0], 2 if support == ZERO_OR_ONE else _LONGEST)
        else:
            yield _of_density(log_prob, piece[0], support)


def _of_counts(log_prob: Callable[[Tensor], Tensor], like: Tensor, longest: int) -> _Table:
    length = min(64, longest)
    while True:
        values = torch.arange(length, dtype=like.dtype, device=like.device).unsqueeze(-1).expand(-1, len(like))
        shares = log_prob(values).exp()
        total = shares.sum(0)
        too_many = length * len(like) > 16 * _AT_ONCE or length > longest or (total > 1 + _ROUNDING).any()
        if length == longest or (not too_many and (1 - total).max() < _LEFT_OUT):
            break
        if too_many:
            raise ValueError(
                f"The probabilities of counts 0 to {length - 1} add up to {float(total.min()):.3g} to "
                f"{float(total.max()):.3g}, not to 1: define `sample` and `expected`, or mend the density."
            )
        length *= 2
    return _Table(values, shares / total)


def _of_density(log_prob: Callable[[Tensor], Tensor], like: Tensor, support: str) -> _Table:
    """Return a table of a density with one peak, on a grid as fine as the peak that reaches far to both sides."""
    to_value, log_slope, limit = _COORDINATES[support]

    def line(points: int) -> Tensor:
        return torch.linspace(-1, 1, points, dtype=like.dtype, device=like.device).unsqueeze(-1)

    def log_density(points: Tensor) -> Tensor:
        found = log_prob(to_value(points)) + log_slope(points)
        return torch.where(points.abs() <= limit, found, -torch.inf)

    # Evenly in the logarithm on either side of zero at first, then closer and closer around the peak.
    points = (_SMALLEST * torch.sinh(math.asinh(limit / _SMALLEST) * line(_SEARCH))).expand(-1, len(like))
    for _ in range(_ROUNDS):
        best = log_density(points).argmax(0, keepdim=True)
        low, high = (points.gather(0, (best + step).clamp(0, len(points) - 1)) for step in (-1, 1))
        points = low + (0.5 + 0.5 * line(_CLOSER)) * (high - low)
    peak = points.gather(0, log_density(points).argmax(0, keepdim=True))
    # The distance at which the density has fallen by half a nat.
    distances = torch.exp(math.log(limit) * line(_SEARCH)).expand(-1, len(like))
    fallen = torch.maximum(log_density(peak + distances), log_density(peak - distances)) < log_density(peak) - 0.5
    width = distances.gather(0, fallen.int().argmax(0, keepdim=True))
    points = peak + width * torch.sinh(_REACH * line(_POINTS))
    found = log_density(points)
    # In the grid's own coordinate, where neighbours are as far apart everywhere.
    shares = (found - found.amax(0)).exp() * torch.cosh(_REACH * line(_POINTS))
    return _Table(to_value(points.clamp(-limit, limit)), shares / shares.sum(0))
