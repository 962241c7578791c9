"""Random walks that learn their covariance and their scale, blind ones and ones that go uphill."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AdaptiveWalk:
    r"""Proposes values by a random walk, and adapts it to the chain that comes of it.

    .. math:: \theta' = \theta + \lambda\, C^{1/2} \eta, \qquad \eta \sim N(0, I)

    C is the running covariance of the chain, the scale goes after the share of proposals that are accepted.

    Args:
        start: values by name.
        step_size: the standard deviation of the first proposals.
        target: the share of proposals to be accepted.

    Example::

        >>> walk = AdaptiveWalk({"a": torch.zeros(2), "b": torch.zeros(())}, step_size=0.1, target=0.234)
        >>> walk.propose({"a": torch.zeros(2), "b": torch.ones(())}, {})["a"].shape
        torch.Size([2])

    References:
        Haario, Saksman and Tamminen (2001), Bernoulli 7:223; Andrieu and Thoms (2008), Stat. Comput. 18:343,
        algorithm 4.
    """

    def __init__(self, start: dict[str, Tensor], step_size: float, target: float) -> None:
        self._mean = self._flat(start)
        size = len(self._mean)
        self._covariance = step_size**2 * torch.eye(size, dtype=torch.float64)
        self._log_scale, self._target, self._count = 0.0, target, 0

    @property
    def scale(self) -> float:
        """The scale of the proposals, in units of the chain's standard deviations."""
        return math.exp(self._log_scale)

    @staticmethod
    def _flat(values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[name].reshape(-1).double().cpu() for name in sorted(values)])

    def propose(self, values: dict[str, Tensor], slope: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return values one step away; `slope` is the gradient of the log posterior there, or empty."""
        white = self._white_drift(slope) + torch.randn(len(self._mean), dtype=torch.float64)
        moved, proposed = self._flat(values) + self.scale * (self._root() @ white), {}
        for name in sorted(values):
            part, moved = moved[: values[name].numel()], moved[values[name].numel() :]
            proposed[name] = part.reshape(values[name].shape).to(values[name])
        return proposed

    def _root(self) -> Tensor:
        jitter = 1e-10 * torch.eye(len(self._mean), dtype=torch.float64)
        return torch.linalg.cholesky(self._covariance + jitter)

    def _white_drift(self, slope: dict[str, Tensor]) -> Tensor:
        """Return where steps go on average, in their own units."""
        return torch.zeros_like(self._mean)

    def log_ratio(
        self,
        values: dict[str, Tensor],
        slope: dict[str, Tensor],
        proposed: dict[str, Tensor],
        proposed_slope: dict[str, Tensor],
    ) -> float:
        """Return the log density of the way back over that of the way there."""
        return 0.0

    def adapt(self, values: dict[str, Tensor], accept_prob: float) -> None:
        """Learn from where the chain is now, and from the chance with which the last proposal was accepted."""
        self._count += 1
        # Ever smaller steps, so that the walk settles.
        rate = min(0.5, 2.0 * self._count**-0.6)
        self._log_scale += rate * (accept_prob - self._target)
        shift = self._flat(values) - self._mean
        # The covariance of a chain that has not moved says nothing yet.
        slow = (self._count + 20.0) ** -0.7
        self._mean = self._mean + slow * shift
        self._covariance = (1 - slow) * self._covariance + slow * torch.outer(shift, shift)


# No drift is longer, in units of the walk's own spread: estimates of slopes are wild where the filter is poor.
_LONGEST_DRIFT = 2.0


class AdaptiveLangevin(AdaptiveWalk):
    r"""Proposes values uphill, by a Langevin step, and adapts it as `AdaptiveWalk` does.

    .. math:: \theta' = \theta + \tfrac{\lambda^2}{2} C\, g(\theta) + \lambda\, C^{1/2} \eta

    with g an estimate of the gradient of the log posterior, truncated where it is long.

    References:
        Roberts and Tweedie (1996), Bernoulli 2:341; Nemeth, Sherlock and Fearnhead (2016), Biometrika 103:701.
    """

    def _white_drift(self, slope: dict[str, Tensor]) -> Tensor:
        drift = 0.5 * self.scale * (self._root().mT @ self._flat(slope))
        return drift * min(1.0, _LONGEST_DRIFT / max(drift.norm().item(), 1e-12))

    def log_ratio(
        self,
        values: dict[str, Tensor],
        slope: dict[str, Tensor],
        proposed: dict[str, Tensor],
        proposed_slope: dict[str, Tensor],
    ) -> float:
        """Return the log density of the way back over that of the way there."""
        apart = (self._flat(proposed) - self._flat(values)).unsqueeze(-1) / self.scale
        white = torch.linalg.solve_triangular(self._root(), apart, upper=False).squeeze(-1)
        there = (white - self._white_drift(slope)).square().sum()
        back = (-white - self._white_drift(proposed_slope)).square().sum()
        return 0.5 * (there - back).item()
