"""The log density of parameters, latents and data along a pinned path, with its gradient, without Pyro's handlers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.infer.mcmc.marginal import GaussianBlock, RightVectors
from pyro_lowrank.infer.mcmc.sampled import Sampled, Values
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.smc.joint import log_likelihood
from pyro_lowrank.smc.pair import Sequences


class Potential:
    r"""Minus the log density of unconstrained parameters, given latents along a path.

    .. math:: U(\vartheta) = -\log p(\vartheta) - \log p(z_{1:T}, y_{1:T} \mid \theta(\vartheta))

    All time bins at once. Parameters are read once, and neither they nor the latents pass Pyro's handlers, which take
    longer than the arithmetic of a network of tens of units. `complete` draws right vectors that are integrated out.

    Args:
        sampled: the parameters.
        y: the recording.
        u: its inputs.
        block: the right vectors, which are integrated out; None where they are parameters as others are.

    Attributes:
        z: the path, `trials x time x rank`, which may change from one look to the next.
    """

    z: Tensor

    def __init__(self, sampled: Sampled, y: Tensor, u: Tensor | None, block: RightVectors | None = None) -> None:
        self._sampled, self._y, self._u = sampled, y, u
        # What depends on parameters is read anew: innovations, and inputs behind the network's leak.
        changes = sampled.model.bind().memory is not None or sampled.model.dynamics.input_filter
        self._data = None if changes else Sequences.of(sampled.model.bind(), y, u)
        self.block = block
        self._filler = {} if self.block is None else {self.block.name: sampled.start()[self.block.name]}

    def __call__(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """Return U in nats, up to a constant, at the unconstrained values of all sites but the right vectors."""
        log_prior, bound, data = self._at(unconstrained)
        transition, z = bound.transition, self.z
        first = transition.initial_noise.log_prob(z[:, 0] - transition.first_mean(data.v_at(0))).sum()
        likelihood = log_likelihood(bound, data, z.unsqueeze(0)).sum()
        return -(log_prior + first + self._log_moves(transition, data) + likelihood)

    def _at(self, unconstrained: Mapping[str, Tensor]) -> tuple[Tensor, BoundModel, Sequences]:
        # The prior of right vectors that stay the same is a constant.
        log_prior, bound = self._sampled.at({**self._filler, **unconstrained})
        return log_prior, bound, self._data or Sequences.of(bound, self._y, self._u)

    def _log_moves(self, transition: Transition, data: Sequences) -> Tensor:
        """Return the log density of all latents but the first ones, whatever was recorded there."""
        if self.block is not None:
            return self._regression(self.block, transition, data).log_integral().to(self.z.dtype)
        v = None if data.v is None else data.v[:, :-1]
        return transition.noise.log_prob(self.z[:, 1:] - next_mean(transition.drift, self.z[:, :-1], v)).sum()

    def _regression(self, block: RightVectors, transition: Transition, data: Sequences) -> GaussianBlock:
        v = None if data.v is None else data.v[:, :-1]
        return block.block(transition, self.z[:, :-1], self.z[:, 1:], v)

    @torch.no_grad()
    def complete(self, unconstrained: Values) -> Values:
        """Return the values with those that were integrated out, drawn given all else."""
        if self.block is None:
            return unconstrained
        _, bound, data = self._at(unconstrained)
        drawn = self.block.drawn(self._regression(self.block, bound.transition, data))
        return {**unconstrained, self.block.name: drawn}

    def gradient(self, unconstrained: Values) -> Values:
        """Return the gradient of U by name."""
        leaves = {name: value.detach().requires_grad_() for name, value in unconstrained.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(self(leaves), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def curvature(self, unconstrained: Values) -> Tensor:
        """Return the second derivatives of U by each value, those of sites side by side in the order of their names."""
        names = sorted(unconstrained)
        flat = torch.cat([unconstrained[name].detach().reshape(-1) for name in names]).requires_grad_()
        with torch.enable_grad():
            parts = flat.split([unconstrained[name].numel() for name in names])
            values = {n: x.reshape(unconstrained[n].shape) for n, x in zip(names, parts, strict=True)}
            (slope,) = torch.autograd.grad(self(values), flat, create_graph=True)
            second = [torch.autograd.grad(x, flat, retain_graph=True)[0][i] for i, x in enumerate(slope)]
        return torch.stack(second)
