"""What the data say of the weights, and what only the prior does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from pyro_lowrank.errors import check_positive_int, check_share
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.infer.mcmc.fixed_points import sampled_model
from pyro_lowrank.infer.mcmc.sampled import Sampled, Values, own_store


@dataclass(frozen=True, eq=False)
class Determined:
    r"""How much narrower the posterior is than the prior: by entries of each parameter, and by directions among all.

    .. math:: \Sigma_0^{-1/2}\, \Sigma_{\mathrm{post}}\, \Sigma_0^{-1/2} = Q\, \mathrm{diag}(r^2)\, Q^T

    in unconstrained values, with the prior's standard deviations and correlations in :math:`\Sigma_0`.

    Attributes:
        entries: of each parameter, standard deviations over those of the prior, of its shape.
        ratios: r, of the directions, smallest first: near 0 the data fix it, near 1 only the prior does.
        directions: Q, one column each, in whitened units of the prior.
        labels: name and number of the entry that each row is of.
    """

    entries: dict[str, Tensor]
    ratios: Tensor
    directions: Tensor
    labels: tuple[tuple[str, int], ...]

    def number_below(self, ratio: float = 0.5) -> int:
        """Return how many directions are narrower than that share of the prior."""
        check_share("ratio", ratio)
        return int((self.ratios < ratio).sum())

    def shares_of(self, direction: int) -> dict[str, float]:
        """Return how much of a direction lies in each parameter, summing to one, most first."""
        weights = self.directions[:, direction].square()
        shares: dict[str, float] = {}
        for (name, _), weight in zip(self.labels, weights.tolist(), strict=True):
            shares[name] = shares.get(name, 0.0) + weight
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        count = len(self.ratios)
        lines = [f"Determined: {self.number_below()} of {count} directions are narrower than half of the prior"]
        width = max(map(len, self.entries))
        lines.append(f"  {'parameter':<{width}}  sd over prior: least  median   most")
        for name, value in self.entries.items():
            low, middle, high = value.min().item(), value.median().item(), value.max().item()
            lines.append(f"  {name:<{width}}  {low:20.3f} {middle:7.3f} {high:6.3f}")
        for direction in dict.fromkeys((0, count - 1)):
            told = ", ".join(f"{share:.0%} {name}" for name, share in list(self.shares_of(direction).items())[:3])
            lines.append(f"  direction of ratio {self.ratios[direction]:.3f}: {told}")
        return "\n".join(lines)


@torch.no_grad()
def determined(
    posterior: Any, samples: Mapping[str, Tensor] | None = None, *, num_prior_draws: int = 2000
) -> Determined:
    """Return which combinations of weights the data fix, and which only the prior does.

    Weights that the data do not fix come out as whatever the prior makes of them: connectivity that is read from them
    is not recovered. Units may be permuted, which makes the posterior of a single weight as wide as its prior where
    chains have found several orders; all draws of one chain then tell more.

    Args:
        posterior: an `MCMC` after `run`, of a kernel for a `StateSpaceModel`; or that model.
        samples: with a model, draws by the names of its sites, `draws x ...`.
        num_prior_draws: number of draws of the prior, which tell how wide that is.

    Raises:
        TypeError: if it is of another model.
        ValueError: if there are no draws, or fewer than two.

    Example::

        >>> import pyro, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> sampled = plr.with_priors(model, only=["dynamics.bias"])
        >>> found = determined(sampled, {"dynamics.bias": 0.1 * torch.randn(50, 5)})
        >>> found.number_below(0.5)
        5
    """
    check_positive_int("num_prior_draws", num_prior_draws, minimum=2)
    model, given = (sampled_model(posterior), posterior.get_samples()) if samples is None else (posterior, samples)
    with own_store():
        parts = Sampled(model, BootstrapGuide(model), init_to_sample)
        prior = [parts.start() for _ in range(num_prior_draws)]
        names = tuple(parts.transforms)
        number = len(next(iter(given.values())))
        if number < 2:
            raise ValueError(f"There must be at least two draws, got {number}.")
        drawn = [{name: parts.transforms[name](given[name][i]) for name in names} for i in range(number)]
    before, after = _rows(prior, names), _rows(drawn, names)
    entries, start = {}, 0
    ratio = after.std(0) / before.std(0)
    for name in names:
        shape = prior[0][name].shape
        entries[name] = ratio[start : start + shape.numel()].reshape(shape)
        start += shape.numel()
    values, vectors = torch.linalg.eigh(torch.atleast_2d(before.mT.cov()))
    white = vectors @ values.rsqrt().diag_embed() @ vectors.mT
    squares, directions = torch.linalg.eigh(white @ torch.atleast_2d(after.mT.cov()) @ white)
    labels = tuple((name, index) for name in names for index in range(prior[0][name].numel()))
    return Determined(entries, squares.clamp(min=0).sqrt(), directions, labels)


def _rows(draws: list[Values], names: tuple[str, ...]) -> Tensor:
    return torch.stack([torch.cat([draw[name].reshape(-1).double() for name in names]) for draw in draws])
