"""A Gaussian random walk that learns its covariance and its scale."""

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
        >>> walk.propose({"a": torch.zeros(2), "b": torch.ones(())})["a"].shape
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

    def propose(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return values one step away."""
        jitter = 1e-10 * torch.eye(len(self._mean), dtype=torch.float64)
        step = torch.linalg.cholesky(self._covariance + jitter) @ torch.randn(len(self._mean), dtype=torch.float64)
        moved, proposed = self._flat(values) + self.scale * step, {}
        for name in sorted(values):
            part, moved = moved[: values[name].numel()], moved[values[name].numel() :]
            proposed[name] = part.reshape(values[name].shape).to(values[name])
        return proposed

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
