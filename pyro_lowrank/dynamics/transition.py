"""The transition density at fixed parameter values: pure tensor functions, no Pyro effects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.noise import GaussianNoise


@dataclass(frozen=True)
class Transition:
    r"""How the latents move, with every parameter read once.

    .. math::

        z_t &= f(z_{t-1}, v_{t-1}) + \varepsilon_t, \qquad \varepsilon_t \sim N(0, \Sigma_z) \\
        z_1 &\sim N(\mu_1 + s(v_1),\ \Sigma_1)

    Args:
        drift: f, and s, by which the first input moves the first latent.
        noise: of the transition.
        initial_mean: `rank`.
        initial_noise: of the first latent.
    """

    drift: Drift
    noise: GaussianNoise
    initial_mean: Tensor
    initial_noise: GaussianNoise

    @property
    def rank(self) -> int:
        """The number of latents."""
        return self.drift.rank

    @property
    def num_inputs(self) -> int:
        """The number of input channels."""
        return self.drift.num_inputs

    @cached_property
    def batch_shape(self) -> torch.Size:
        """The batch dims of the parameters: none, unless some of them are sampled."""
        own = [self.initial_mean.shape[:-1], self.noise.batch_shape, self.initial_noise.batch_shape]
        shapes = [self.drift.batch_shape, *own]
        return torch.broadcast_shapes(*shapes) if any(shapes) else torch.Size()

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, `... x rank`: latents `... x rank`, effective inputs `... x inputs`."""
        return self.drift.mean(z, v)

    def first_mean(self, v: Tensor | None = None) -> Tensor:
        """Return the mean of the first latent, `... x rank`, under its effective input."""
        moved = self.drift.start(v)
        return self.initial_mean if moved is None else self.initial_mean + moved

    def after(self, z: Tensor, v: Tensor | None = None) -> Transition:
        """Return how latents go on from others `... x rank`, of a bin with effective inputs `... x inputs`."""
        return _Continuation(self.drift, self.noise, self.mean(z, v), self.noise)


@dataclass(frozen=True)
class _Continuation(Transition):
    """One whose first latent follows a latent that is known."""

    def first_mean(self, v: Tensor | None = None) -> Tensor:
        """Return where that leads, which the inputs of the next bin do not change."""
        return self.initial_mean
