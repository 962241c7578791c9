"""Where the data would have the readout: the most likely one, sought on a grid where nothing says it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Points of the first grid, to either side of zero, from the smallest to the largest readout; then of each closer one.
_POINTS, _SMALLEST, _LARGEST, _CLOSER, _ROUNDS = 32, 1e-3, 1e7, 9, 6
# Where the likelihood has no peak, as of zero counts, so far below its supremum, in nats, is the aim.
_BELOW = 0.5
# More counts than that are not tabulated.
_MOST_COUNTS = 4096
# Entries at once: each is tried at every point of a grid.
_AT_ONCE = 1 << 17


@torch.no_grad()
def aims(log_prob: Callable[..., Tensor], y: Tensor, parameters: tuple[Tensor, ...], *, counts: bool) -> Tensor:
    """Return the readout at which each entry is most likely, of the shape of `y` and the parameters.

    It is good to a few parts in ten thousand of its size. Where the likelihood grows without end the aim is where it
    has all but half a nat of that.

    Args:
        log_prob: of (y, eta, *parameters), which broadcast.
        y: data, `... x features`.
        parameters: that broadcast with `y`.
        counts: whether the data are whole numbers from 0 on, of which few are different.
    """
    shape = torch.broadcast_shapes(y.shape, *(each.shape for each in parameters))
    flat = all(each.dim() <= 1 for each in parameters)
    largest = float(y.amax()) if y.numel() else 0.0
    if counts and flat and largest < _MOST_COUNTS and (largest + 1) * shape[-1] < y.numel():
        values = torch.arange(int(largest) + 1, dtype=y.dtype, device=y.device).unsqueeze(-1)
        table = _sought(log_prob, values, parameters, torch.Size((len(values), shape[-1])))
        return table.gather(0, y.long().reshape(-1, shape[-1])).reshape(shape)
    given = [each.expand(shape).reshape(-1).split(_AT_ONCE) for each in (y, *parameters)]
    pieces = [_sought(log_prob, first, tuple(rest), first.shape) for first, *rest in zip(*given, strict=True)]
    return torch.cat(pieces).reshape(shape)


def _sought(log_prob: Callable[..., Tensor], y: Tensor, parameters: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    side = torch.logspace(
        torch.tensor(_SMALLEST).log10(), torch.tensor(_LARGEST).log10(), _POINTS, dtype=y.dtype, device=y.device
    )
    grid = torch.cat([-side.flip(0), side.new_zeros(1), side])
    column = (-1, *(1,) * len(shape))

    def density(points: Tensor) -> Tensor:
        return log_prob(y, points, *parameters).nan_to_num(nan=-torch.inf, posinf=torch.finfo(y.dtype).max)

    points = grid.reshape(column).expand(-1, *shape)
    found = density(points)
    best, where = found.max(0, keepdim=True)
    edge = (where == 0) | (where == len(grid) - 1)
    # Below this much there is no likelihood; a likelihood that is nowhere that low has its own bottom.
    level = torch.maximum(best - _BELOW, 0.5 * (best + found.amin(0, keepdim=True)))

    def worth(values: Tensor) -> Tensor:
        return torch.where(edge, -(values - level).abs(), values)

    for _ in range(_ROUNDS):
        where = worth(found).argmax(0, keepdim=True)
        low, high = (points.gather(0, (where + step).clamp(0, len(points) - 1)) for step in (-1, 1))
        share = torch.linspace(0, 1, _CLOSER, dtype=y.dtype, device=y.device).reshape(column)
        points = low + share * (high - low)
        found = density(points)
    return points.gather(0, worth(found).argmax(0, keepdim=True))[0]
