"""How latents move without noise, at fixed parameter values: pure tensor functions, no Pyro effects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from pyro_lowrank.dynamics.activations import Activation
from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.recurrence import RecurrentDrive, Workspace
from pyro_lowrank.shapes import apply_matrix


@dataclass(frozen=True)
class Network(Drift):
    r"""The deterministic part of the dynamics, with every parameter read once.

    .. math::

        x_t &= M z_t + W_u v_t \\
        E[z_t \mid z_{t-1}] &= a z_{t-1} + V \phi(x_{t-1}; h)

    where v is the input u or, with `input_filter`, the input after the network's own leak.

    Args:
        decay: a, of last dim 1 or `rank`.
        left: M, `units x rank`; None stands for the identity (a full-rank network).
        right: V, `rank x units`.
        bias: h, `units`.
        input_weights: W_u, `units x inputs`.
        activation: of the units.
        input_filter: whether inputs pass the leak.
    """

    decay: Tensor
    left: Tensor | None
    right: Tensor
    bias: Tensor
    input_weights: Tensor
    activation: Activation
    input_filter: bool

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The number of latents."""
        return self.right.shape[-2]

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        """The number of input channels."""
        return self.input_weights.shape[-1]

    @cached_property
    def batch_shape(self) -> torch.Size:
        """The batch dims of the parameters: none, unless some of them are sampled."""
        matrices = [self.right, self.input_weights] + ([] if self.left is None else [self.left])
        shapes = [matrix.shape[:-2] for matrix in matrices] + [vector.shape[:-1] for vector in (self.decay, self.bias)]
        return torch.broadcast_shapes(*shapes) if any(shapes) else torch.Size()

    def currents(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the currents of the units, `... x units`: latents `... x rank`, effective inputs `... x inputs`."""
        x = z if self.left is None else apply_matrix(self.left, z)
        return x if v is None or self.num_inputs == 0 else x + apply_matrix(self.input_weights, v)

    def rates(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the rates of the units, `... x units`."""
        return self.activation(self.currents(z, v), self.bias)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, `... x rank`."""
        return self.decay * z + apply_matrix(self.right, self.rates(z, v))

    def mean_of_particles(self, z: Tensor, v: Tensor | None, workspace: Workspace) -> Tensor:
        """Return `mean` for latents `particles x trials x rank`, inputs `trials x inputs`, for first derivatives only.

        Same values; less memory and time under autograd, see `RecurrentDrive`.
        """
        if self.batch_shape:
            return self.mean(z, v)
        offset = None if v is None or self.num_inputs == 0 else apply_matrix(self.input_weights, v)
        drive = RecurrentDrive.apply(z, offset, self.left, self.right, self.bias, self.activation, workspace)
        return self.decay * z + drive

    def start(self, v: Tensor | None) -> Tensor | None:
        """Return the projection of the first input's current on M, M^+ W_u v, `... x rank`."""
        if v is None or self.num_inputs == 0:
            return None
        projected = self.input_weights
        if self.left is not None:
            # Not `solve`: left vectors that are linearly dependent have a projection too.
            inverse = torch.linalg.pinv(self.left.mT @ self.left, hermitian=True)
            projected = inverse @ (self.left.mT @ self.input_weights)
        return apply_matrix(projected, v)

    def first_input(self, u: Tensor) -> Tensor:
        """Return the effective input of the first time bin: zero where inputs are filtered."""
        return torch.zeros_like(u) if self.input_filter else u

    def next_input(self, v: Tensor, u_before: Tensor, u: Tensor) -> Tensor:
        """Return the effective input of a time bin from that of the bin before, the raw input then and now."""
        return self.decay * v + (1 - self.decay) * u_before if self.input_filter else u

    def effective_inputs(self, u: Tensor) -> Tensor:
        """Return the inputs as the units see them, `... x time x inputs`, from raw ones of the same shape."""
        if not self.input_filter:
            return u
        raw = u.unbind(-2)
        effective = [self.first_input(raw[0])]
        for u_before, u_now in pairwise(raw):
            effective.append(self.next_input(effective[-1], u_before, u_now))
        # A sampled decay carries batch dims, which the first bin lacks.
        return torch.stack(torch.broadcast_tensors(*effective), -2)
