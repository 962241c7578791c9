"""The transition density of a network at fixed parameter values: pure tensor functions, no Pyro effects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.shapes import apply_matrix


@dataclass(frozen=True)
class Transition(Network):
    r"""How the latents move, with every parameter read once.

    .. math::

        z_t &= E[z_t \mid z_{t-1}] + \varepsilon_t, \qquad \varepsilon_t \sim N(0, \Sigma_z) \\
        z_1 &\sim N(\mu_1 + M^+ W_u v_1,\ \Sigma_1)

    Args beside those of a `Network`:
        noise: of the transition.
        initial_mean: `rank`.
        initial_noise: of the first latent.
    """

    noise: GaussianNoise
    initial_mean: Tensor
    initial_noise: GaussianNoise

    def _batch_shapes(self) -> list[torch.Size]:
        own = [self.initial_mean.shape[:-1], self.noise.batch_shape, self.initial_noise.batch_shape]
        return super()._batch_shapes() + own

    def first_mean(self, v: Tensor | None = None) -> Tensor:
        """Return the mean of the first latent, `... x rank`: the initial mean plus the first input projected on M."""
        if v is None or self.num_inputs == 0:
            return self.initial_mean
        projected = self.input_weights
        if self.left is not None:
            # Not `solve`: left vectors that are linearly dependent have a projection too.
            inverse = torch.linalg.pinv(self.left.mT @ self.left, hermitian=True)
            projected = inverse @ (self.left.mT @ self.input_weights)
        return self.initial_mean + apply_matrix(projected, v)
