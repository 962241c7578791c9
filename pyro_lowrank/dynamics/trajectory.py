"""The distribution of a whole latent trajectory, as one Pyro site."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.dynamics.means import next_mean
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.shapes import time_in_front


class Trajectory(TorchDistribution):
    r"""Distribution over the latents of a network at all times.

    .. math::

        p(z_{1:T}) = N(z_1; \mu_1 + M^+ W_u v_1, \Sigma_1) \prod_{t=2}^{T} N(z_t; f(z_{t-1}, v_{t-1}), \Sigma_z)

    Shapes: batch `trials` (from the inputs, or none), and that of sampled parameters; event `time x rank`. Sampling is
    sequential in time; the log density is vectorised over time.

    Args:
        transition: how the latents move, from `dynamics.transition()`.
        num_steps: number of time bins.
        inputs: raw inputs `trials x time x inputs`, or None.
        start: latents `... x rank` that the first ones follow, or None for the beginning of a trial. Inputs are then
            those from the beginning of the trial on, the last `num_steps` of the bins of the trajectory.

    Example::

        >>> import pyro_lowrank as plr
        >>> trajectory = plr.LowRankRNN(rank=2, units=20).trajectory(50)
        >>> z = trajectory.sample((7,))
        >>> z.shape, trajectory.log_prob(z).shape
        (torch.Size([7, 50, 2]), torch.Size([7]))

    References:
        Pals et al. (2024), NeurIPS, eq. 4.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, transition: Transition, num_steps: int, inputs: Tensor | None = None, *, start: Tensor | None = None
    ) -> None:
        effective = None if inputs is None else transition.drift.effective_inputs(inputs)
        if start is not None:
            transition = transition.after(start, None if effective is None else effective[..., -num_steps - 1, :])
            effective = None if effective is None else effective[..., -num_steps:, :]
        self.transition = transition
        self.num_steps = num_steps
        self.effective_inputs = effective
        batch_shape = transition.batch_shape
        if self.effective_inputs is not None:
            batch_shape = torch.broadcast_shapes(batch_shape, self.effective_inputs.shape[:-2])
        super().__init__(batch_shape, torch.Size((num_steps, transition.rank)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Raise: there is no formula for it."""
        raise NotImplementedError(
            "The mean of a network's trajectory has no closed form: guides that start from the prior's mean, such as "
            "AutoHierarchicalNormalMessenger, cannot be used for it; AutoNormal and AutoNormalMessenger can. Average "
            "draws for the mean: trajectory.sample((1000,)).mean(0)."
        )

    @property
    def variance(self) -> Tensor:
        """Raise, likewise."""
        raise NotImplementedError(
            "The variance of a network's trajectory has no closed form: trajectory.sample((1000,)).var(0)."
        )

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Trajectory | None = None
    ) -> Trajectory:
        """Return the same distribution for a larger batch."""
        new = self._get_checked_instance(Trajectory, _instance)
        new.transition, new.num_steps, new.effective_inputs = self.transition, self.num_steps, self.effective_inputs
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def _input(self, time: int | slice) -> Tensor | None:
        return None if self.effective_inputs is None else self.effective_inputs[..., time, :]

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw trajectories `sample_shape x trials x time x rank`, differentiable in the parameters."""
        like = self.transition.initial_mean
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_white(torch.randn(shape, dtype=like.dtype, device=like.device))

    def from_white(self, white: Tensor) -> Tensor:
        """Return the trajectories that standard normal numbers `... x time x rank` lead to."""
        t = self.transition
        first, *later = white.unbind(-2)
        z = [t.first_mean(self._input(0)) + t.initial_noise.colour(first)]
        for time, eta in enumerate(later):
            z.append(t.mean(z[-1], self._input(time)) + t.noise.colour(eta))
        return torch.stack(z, -2)

    def _residuals(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much the first latent, and with time in front all others, miss what is expected of them."""
        t = self.transition
        first = value[..., 0, :] - t.first_mean(self._input(0))
        batch_dims = value.dim() - 2
        before, after = (time_in_front(value[..., times, :], batch_dims) for times in (slice(-1), slice(1, None)))
        v = self._input(slice(-1))
        return first, after - next_mean(t.drift, before, None if v is None else time_in_front(v, batch_dims))

    def to_white(self, value: Tensor) -> Tensor:
        """Return the numbers that lead to trajectories, `... x time x rank`: the inverse of `from_white`."""
        first, later = self._residuals(value)
        white = self.transition.noise.whiten(later)
        return torch.cat([self.transition.initial_noise.whiten(first).unsqueeze(-2), white.movedim(0, -2)], -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of trajectories `... x time x rank` in nats, `... x trials`."""
        if value.shape[-2:] != self.event_shape:
            raise ValueError(
                f"A trajectory has {self.num_steps} time bins x {self.transition.rank} latents in its last dims, got "
                f"shape {tuple(value.shape)}."
            )
        t = self.transition
        value = value.expand(torch.broadcast_shapes(value.shape[:-2], self.batch_shape) + self.event_shape)
        first, later = self._residuals(value)
        return t.initial_noise.log_prob(first) + t.noise.log_prob(later).sum(0)
