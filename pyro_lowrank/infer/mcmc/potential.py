"""The log density of parameters, latents and data along pinned paths, with its gradient, without Pyro's handlers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.infer.mcmc.sampled import Sampled, Values
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.smc.joint import log_joint_of_all_bins
from pyro_lowrank.smc.pair import Sequences


class Potential:
    r"""Minus the log density of unconstrained parameters, given latents along paths.

    .. math:: U(\vartheta) = -\log p(\vartheta) - \frac{1}{P} \sum_p \log p(z^p_{1:T}, y_{1:T} \mid \theta(\vartheta))

    All time bins at once. Parameters are read once, and neither they nor the latents pass Pyro's handlers, which take
    longer than the arithmetic of a network of tens of units.

    Args:
        sampled: the parameters.
        y: the recording.
        u: its inputs.

    Attributes:
        z: paths, `paths x trials x time x rank`, that may change from one look to the next.
    """

    z: Tensor

    def __init__(self, sampled: Sampled, y: Tensor, u: Tensor | None) -> None:
        self._sampled, self._y, self._u = sampled, y, u
        # What depends on parameters is read anew: innovations, and inputs behind the network's leak.
        changes = sampled.model.bind().memory is not None or sampled.model.dynamics.input_filter
        self._data = None if changes else Sequences.of(sampled.model.bind(), y, u)

    def __call__(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """Return U in nats."""
        log_prior, bound = self._sampled.at(unconstrained)
        data = Sequences.of(bound, self._y, self._u) if self._data is None else self._data
        return -(log_prior + self.log_joint(bound, data))

    def log_joint(self, bound: BoundModel, data: Sequences) -> Tensor:
        """Return the log density of latents and data given parameters, summed over trials."""
        mean = partial(next_mean, bound.transition.drift)
        return log_joint_of_all_bins(bound, data, self.z, mean).sum()

    def gradient(self, unconstrained: Values) -> tuple[Values, Tensor]:
        """Return the gradient of U by name, and U."""
        leaves = {name: value.detach().requires_grad_() for name, value in unconstrained.items()}
        with torch.enable_grad():
            value = self(leaves)
            found = torch.autograd.grad(value, list(leaves.values()))
        return dict(zip(leaves, found, strict=True)), value.detach()
