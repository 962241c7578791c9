"""The stochastic low-rank recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.initial_weights import contracting, gaussian_weights, uniform_weights
from pyro_lowrank.dynamics.noise import full_noise_parameter
from pyro_lowrank.dynamics.rnn import RNNDynamics
from pyro_lowrank.errors import check_choice
from pyro_lowrank.parameters import copy_module, parameter
from pyro_lowrank.piecewise import PiecewiseLinear


class LowRankRNN(RNNDynamics):
    r"""A recurrent network of N units whose weights J = M V have rank R, driven by noise in its R latents.

    .. math::

        x_t &= M z_t + W_u u_t \\
        z_t &= a z_{t-1} + V \phi(x_{t-1}; h) + \varepsilon_t, \qquad \varepsilon_t \sim N(0, \Sigma_z) \\
        z_1 &\sim N(\mu_1 + M^+ W_u u_1,\ \Sigma_1)

    Attributes: `decay` a, `left` M `units x rank`, `right` V = N^T `rank x units`, `bias` h `units`, `input_weights`
    W_u `units x inputs`, `initial_mean` mu_1 `rank`, `noise_covariance` and `initial_covariance` `rank x rank`.

    Args:
        rank: number of latents, R.
        units: number of units, N.
        activation: `"relu"`, `"clipped_relu"`, `"tanh"`, `"softplus"`, `"identity"` or a `PiecewiseLinear`.
        inputs: number of input channels.
        noise: `"scalar"`, `"diagonal"` or `"full"` covariance of the transition noise.
        input_filter: pass inputs through the leak, v_t = a v_{t-1} + (1 - a) u_{t-1}, and use v for u.
        decay: a, strictly between 0 and 1, per time bin: one number, or one per latent.
        noise_scale: standard deviation of the transition noise before training, or its scale if it is heavy-tailed.
        noise_freedom: degrees of freedom of Student-t transition noise before training, for latents that jump at times;
            None for Gaussian noise.
        initial_noise: as `noise`, for the first latent.
        initial_scale: standard deviation of the first latent before training.
        weights: `"uniform"`, within 1 / sqrt(R) and 1 / sqrt(N), or `"gaussian"`, M and V correlated with `overlap`; V
            is smaller where units without an upper bound would otherwise take the latents away to infinity.
        overlap: that correlation, between -1 and 1.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if `rank` exceeds `units`, `decay` leaves (0, 1), or an option is not one of its choices.

    Example::

        >>> dynamics = LowRankRNN(rank=3, units=512, activation="clipped_relu")
        >>> dynamics(torch.zeros(10, 3)).shape
        torch.Size([10, 3])

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS.
    """

    left: Tensor

    def __init__(
        self,
        *,
        rank: int,
        units: int,
        activation: str | PiecewiseLinear | Activation = "clipped_relu",
        inputs: int = 0,
        noise: str = "full",
        input_filter: bool = False,
        decay: float | Sequence[float] = 0.9,
        noise_scale: float = 0.1,
        noise_freedom: float | None = None,
        initial_noise: str = "full",
        initial_scale: float = 1.0,
        weights: str = "uniform",
        overlap: float = 0.6,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            units=units,
            activation_function=activation,
            inputs=inputs,
            input_filter=input_filter,
            decay=decay,
            noise=noise,
            noise_scale=noise_scale,
            noise_freedom=noise_freedom,
            initial_noise=initial_noise,
            initial_scale=initial_scale,
            dtype=dtype,
            device=device,
        )
        if rank > units:
            raise ValueError(f"`rank` must be at most `units`, got rank={rank}, units={units}.")
        if not -1 <= overlap <= 1:
            raise ValueError(f"`overlap` is a correlation between -1 and 1, got {overlap}.")
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        if check_choice("weights", weights, ("uniform", "gaussian")) == "uniform":
            left, right = uniform_weights(rank, units, **factory)
        else:
            left, right = gaussian_weights(rank, units, overlap, **factory)
        self.left = parameter(left)
        self.right = parameter(contracting(self.decay.detach(), left, right, self.activation))

    def _left(self) -> Tensor:
        return self.left

    @property
    def recurrent_weights(self) -> Tensor:
        """J = M V, the recurrent weights, `units x units`."""
        return self.left @ self.right

    def change_basis(self, matrix: Tensor) -> LowRankRNN:
        r"""Return a copy with latents z' = A z: M' = M A^{-1}, V' = A V, \Sigma' = A \Sigma A^T; J stays as it is.

        Args:
            matrix: A, `rank x rank`, invertible; a rotation if it is orthogonal.

        Raises:
            ValueError: if A is not invertible or of the wrong shape, or each latent has its own decay.

        Example::

            >>> dynamics = LowRankRNN(rank=2, units=20)
            >>> turned = dynamics.change_basis(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
            >>> torch.allclose(turned.recurrent_weights, dynamics.recurrent_weights)
            True
        """
        changed = copy_module(self)
        changed.apply_basis(matrix)
        return changed

    def apply_basis(self, matrix: Tensor) -> None:
        """Change the basis of the latents in place; see `change_basis`."""
        if self.decay_per_latent:
            raise ValueError("Latents with a decay each cannot change their basis: they are told apart by their decay.")
        if matrix.shape != (self.rank, self.rank) or torch.linalg.matrix_rank(matrix) < self.rank:
            raise ValueError(f"`matrix` must be invertible, {self.rank} x {self.rank}, got {matrix}.")
        matrix = matrix.to(self.left)
        with torch.no_grad():
            self.left.copy_(torch.linalg.solve(matrix, self.left, left=False))
            self.right.copy_(matrix @ self.right)
            self.initial_mean.copy_(matrix @ self.initial_mean)
            noise = torch.linalg.cholesky(matrix @ self._noise().spread @ matrix.mT)
            initial_noise = torch.linalg.cholesky(matrix @ self.initial_covariance @ matrix.mT)
        self.noise_kind = self.initial_noise_kind = "full"
        self.noise_scale = full_noise_parameter(noise)
        self.initial_noise_scale = full_noise_parameter(initial_noise)

    @torch.no_grad()
    def orthogonal_basis(self, latents: Tensor | None = None) -> Tensor:
        """Return the A that makes M's columns orthonormal and the latents A z uncorrelated, largest variance first.

        Args:
            latents: `... x rank`, whose covariance is used; 20 trajectories of 500 time bins are simulated if None.
        """
        if latents is None:
            u = self.left.new_zeros(20, 500, self.num_inputs) if self.num_inputs else None
            latents = self.trajectory(500, u).sample(() if self.num_inputs else (20,))
        # M = Q T with orthonormal Q: in the coordinates T z, only a rotation is left to choose.
        _, triangular = torch.linalg.qr(self.left)
        covariance = torch.cov((latents.reshape(-1, self.rank) @ triangular.mT).mT).reshape(self.rank, self.rank)
        _, vectors = torch.linalg.eigh(covariance)
        return vectors.flip(-1).mT @ triangular

    def orthogonalise(self, latents: Tensor | None = None) -> LowRankRNN:
        """Return a copy in the basis of `orthogonal_basis`: same network, latents that can be told apart.

        Args:
            latents: as of `orthogonal_basis`.
        """
        return self.change_basis(self.orthogonal_basis(latents))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a network of the same form (its parameter values are its state)."""
        return {"rank": self.rank, **super().settings()}
