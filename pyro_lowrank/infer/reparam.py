"""Trajectories as functions of standard normal numbers, for inferences that cannot follow how latents hang together."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult

from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.dynamics.trajectory import Trajectory


class TrajectoryReparam(Reparam):
    r"""Non-centred trajectories, a reparametrisation of Pyro's: the latent site is white noise.

    .. math::

        \varepsilon_t \sim N(0, I), \qquad z_1 = \mu_1 + L_1 \varepsilon_1, \qquad
        z_t = f(z_{t-1}, v_{t-1}) + L \varepsilon_t

    Under `poutine.reparam(model, config={"z": TrajectoryReparam()})` a site `"z_white"` takes the place of `"z"`, which
    follows from it. Where parameters of the dynamics have priors and the data say little of each time bin, `NUTS` and
    mean-field guides such as `AutoNormal` do better so: noise and latents are independent before the data come.

    Raises:
        TypeError: if the site is no trajectory.
        ValueError: if the trajectory is observed, or its noise is heavy-tailed.

    Example::

        >>> import pyro_lowrank as plr, torch
        >>> from pyro import poutine
        >>> observation = plr.GaussianObservation(rank=2, features=3)
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
        >>> non_centred = poutine.reparam(model, config={"z": TrajectoryReparam()})
        >>> trace = poutine.trace(non_centred).get_trace(torch.randn(4, 10, 3))
        >>> trace.nodes["z_white"]["value"].shape, trace.nodes["z"]["value"].shape
        (torch.Size([4, 10, 2]), torch.Size([4, 10, 2]))

    References:
        Papaspiliopoulos, Roberts and Skold (2007), Statist. Sci. 22:59; Gorinova, Moore and Hoffman (2020), ICML.
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Return the site as a function of white noise."""
        trajectory: Any = msg["fn"]
        name, value = msg["name"], msg["value"]
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"`TrajectoryReparam` is for trajectories of latents, got {trajectory} at site {name!r}.")
        transition = trajectory.transition
        if any(isinstance(noise, StudentTNoise) for noise in (transition.noise, transition.initial_noise)):
            raise ValueError(
                "Heavy-tailed noise has no non-centred form of normal numbers alone: leave the site as it is."
            )
        if msg["is_observed"]:
            raise ValueError(f"Site {name!r} is observed: only latent trajectories can be functions of white noise.")
        zero = transition.initial_mean.new_zeros(())
        shape = trajectory.batch_shape + trajectory.event_shape
        white = pyro.sample(
            f"{name}_white",
            dist.Normal(zero, zero + 1).expand(shape).to_event(2),
            obs=None if value is None else trajectory.to_white(value),
            infer={"is_observed": False},
        )
        value = trajectory.from_white(white) if value is None else value
        return {"fn": dist.Delta(value, event_dim=2).mask(False), "value": value, "is_observed": True}
