"""Latents given the whole recording: means, and the bands that hold a given share of the posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.errors import check_share

LEVEL, NUM_DRAWS = 0.95, 200
# Draws of all trials whose quantiles are taken at once, in numbers: sorting them copies them a few times.
_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False, repr=False)
class Latents:
    """Smoothed latents: their means and bands, `trials x time x rank` each.

    A band holds `level` of the posterior of one latent at one time bin. After the last time bin with data of a trial
    they are what the model expects to follow.

    Attributes:
        mean: posterior means given the whole recording.
        lower: lower ends of the bands.
        upper: upper ends of the bands.
        level: share of the posterior within the bands.
        lengths: time bins of each trial up to its last one with data, `trials`.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
        >>> latents = plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(torch.randn(4, 10, 3)).latents()
        >>> latents.mean.shape, bool((latents.lower <= latents.upper).all())
        (torch.Size([4, 10, 2]), True)
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    level: float
    lengths: Tensor

    @classmethod
    def of_draws(cls, draws: Tensor, level: float, lengths: Tensor) -> Latents:
        """Return means and central quantiles of paths, `draws x trials x time x rank`."""
        level = check_share("level", level)
        ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=draws.dtype, device=draws.device)
        rows = max(1, _AT_ONCE // max(1, draws[:, :1].numel()))
        parts = [part.quantile(ends, dim=0) for part in draws.split(rows, 1)]
        lower, upper = torch.cat(parts, 1)
        return cls(draws.mean(0), lower, upper, level, lengths)

    @classmethod
    def of_normals(cls, mean: Tensor, variance: Tensor, level: float, lengths: Tensor) -> Latents:
        """Return the bands of normal distributions, `trials x time x rank`."""
        level = check_share("level", level)
        reach = 2**0.5 * torch.erfinv(torch.tensor(level, dtype=mean.dtype, device=mean.device)) * variance.sqrt()
        return cls(mean, mean - reach, mean + reach, level, lengths)

    @property
    def within(self) -> Tensor:
        """Which time bins come no later than the last one with data of their trial, `trials x time`."""
        return torch.arange(self.mean.shape[1], device=self.lengths.device) < self.lengths.unsqueeze(-1)

    def __repr__(self) -> str:
        trials, time, rank = self.mean.shape
        shortest = int(self.lengths.min())
        ragged = f"{shortest} to " if shortest < time else ""
        lines = [
            f"Latents: {trials} trial{'s' * (trials > 1)} x {ragged}{time} time bins x {rank} latent"
            f"{'s' * (rank > 1)}, smoothed, with {100 * self.level:g} % bands"
        ]
        within = self.within
        for latent in range(rank):
            mean, width = self.mean[..., latent][within], (self.upper - self.lower)[..., latent][within]
            lines.append(
                f"  latent {latent + 1:<9}{mean.mean().item():.3g} on average, from {mean.min().item():.3g} to "
                f"{mean.max().item():.3g}; bands {width.mean().item():.2g} wide"
            )
        return "\n".join(lines)
