"""The density of the step from one time bin's particles to the next one's, which smoothing weighs ancestors by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.infer.smcfilter import SMCState
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean, fastest_mean
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.handlers import invisible
from pyro_lowrank.modules import own_values
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.smc.effects import Call, EffectsKernel, is_of_trials, site_log_prob
from pyro_lowrank.smc.loop import State, take
from pyro_lowrank.smc.pair import Pair, Sequences
from pyro_lowrank.smc.smoothing import take_states


@dataclass(frozen=True)
class BuiltInTransitions:
    """Of a built-in model, at the parameter values of the run.

    Args:
        transition: how the latents move.
        emission: how they are seen.
        data: the recording and its inputs.
        backend: as of `SMCFilter`.
    """

    transition: Transition
    emission: Emission
    data: Sequences
    backend: str
    batch_dims: int = 2

    @classmethod
    def of(cls, pair: Pair, data: Sequences, backend: str) -> BuiltInTransitions:
        """Return the transitions of a run."""
        return cls(pair.transition, pair.emission, data, backend)

    def kept(self) -> BuiltInTransitions:
        """Return a copy of what training may change afterwards."""
        transition, emission = copy.deepcopy((self.transition, self.emission))
        return replace(self, transition=transition, emission=emission)

    @cached_property
    def _mean(self) -> Mean:
        return fastest_mean(self.transition.drift, self.backend)

    def _white(self, time: int, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return means of the next latents in units of the noise, and what brings latents to the same units."""
        mean = self._mean(z, self.data.v_at(time))
        inverse = torch.linalg.inv(self.transition.noise.scale_tril)
        # Seen from the middle of the cloud, so that no digits are lost far from the origin.
        middle = mean.mean(0, keepdim=True)
        return (mean - middle) @ inverse.mT, lambda after: (after - middle) @ inverse.mT

    def _log_kernel(self, after: Tensor, mean: Tensor) -> Tensor:
        """Return the log density, up to a constant, of whitened latents `... x rank` around whitened means."""
        return self.transition.noise.log_kernel((after - mean).square().sum(-1), mean.shape[-1])

    def pairs(self, time: int, before: State) -> Callable[[State], Tensor]:
        """Return the log density of later latents as a function of them, `D x trials x particles`."""
        mean, whiten = self._white(time, before["z"])
        # Laid out so that the particles of one latent are neighbours in memory.
        per_latent = mean.permute(2, 1, 0).contiguous()

        def score(after: State) -> Tensor:
            points = whiten(after["z"]).unbind(-1)
            # Differences first, then squares: the product form of a distance loses the digits that matter here.
            distance = (points[0].unsqueeze(-1) - per_latent[0]).square_()
            for point, means in zip(points[1:], per_latent[1:], strict=True):
                distance.add_((point.unsqueeze(-1) - means).square_())
            return self.transition.noise.log_kernel(distance, len(points))

        return score

    def matched(self, time: int, before: State, after: State) -> Tensor:
        """Return the log density of later latents given as many earlier ones, `D x trials`."""
        mean, whiten = self._white(time, before["z"])
        return self._log_kernel(whiten(after["z"]), mean)

    def chosen(self, time: int, before: State, num_uses: int) -> Callable[[Tensor, State], Tensor]:
        """Return the log density of later latents given earlier ones by index, `D x trials`, for so many indices."""
        if num_uses < len(before["z"]):
            return lambda index, after: self.matched(time, take_states(before, index, self.batch_dims), after)
        # Fewer particles than uses: the mean of each is computed once.
        mean, whiten = self._white(time, before["z"])
        return lambda index, after: self._log_kernel(whiten(after["z"]), take(mean, index, self.batch_dims))


class _Fixed(Messenger):
    """Gives latent sites the values of a list, in order; without a list, notes the values that they draw."""

    def __init__(self, values: list[Tensor] | None = None) -> None:
        super().__init__()
        self.values = values
        self.sites: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        subsampling = type(msg["fn"]).__name__ == "_Subsample"
        if self.values is None or msg["is_observed"] or subsampling or msg["infer"].get("_do_not_trace"):
            return
        msg["value"] = self.values[sum(not site["is_observed"] for site in self.sites)]
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" and not msg["infer"].get("_do_not_trace"):
            self.sites.append(msg)
        msg["stop"] = True


@dataclass(frozen=True)
class ReplayedTransitions:
    """Of a user-written model, whose `step` is run again with its latent sites set to a path's values.

    That needs every latent site of `step` to be kept in the state as it was drawn; what else the state holds must
    follow from them and from the data. The model is run at its present parameters.

    Args:
        kernel: of the run.
        calls: arguments of each time bin.
    """

    kernel: EffectsKernel
    calls: list[Call]

    @property
    def batch_dims(self) -> int:
        """Number of leading dims of state tensors before their own."""
        return self.kernel.batch_dims

    def pairs(self, time: int, before: State) -> Callable[[State], Tensor]:
        """Return the log density of a later state and its data, as a function of it, `D x trials x particles`."""
        names = self._names(time, before)
        num_particles = self.kernel.num_particles

        def score(after: State) -> Tensor:
            draws = next(iter(after.values())).shape[0]
            earlier = {n: value.repeat(draws, *(1,) * (value.dim() - 1)) for n, value in before.items()}
            later = {n: value.repeat_interleave(num_particles, 0) for n, value in after.items()}
            return self._score(time, earlier, later, names).unflatten(0, (draws, num_particles)).movedim(1, -1)

        return score

    def matched(self, time: int, before: State, after: State) -> Tensor:
        """Return the log density of later states and their data given as many earlier ones, `D x trials`."""
        return self._score(time, before, after, self._names(time, before))

    def chosen(self, time: int, before: State, num_uses: int) -> Callable[[Tensor, State], Tensor]:
        """Return the log density of later states and their data given earlier ones by index, `D x trials`."""
        return lambda index, after: self.matched(time, take_states(before, index, self.batch_dims), after)

    def _run(self, time: int, state: State, handler: _Fixed) -> State:
        size = next(iter(state.values())).shape[0]
        particles = SMCState(size)
        particles.update(state)
        call = self.calls[time + 1]
        model = self.kernel.model
        with own_values(model), invisible(), handler, pyro.plate("particles", size, dim=-self.batch_dims):
            model.step(particles, *call.args, **call.kwargs)
        return dict(particles)

    def _names(self, time: int, before: State) -> list[Any]:
        """Return where the state keeps each latent site of the step."""
        # The draws only show where they are kept: the random numbers that follow must not depend on them.
        with torch.random.fork_rng(devices=[]):
            drawn = _Fixed()
            state = self._run(time, before, drawn)
        names = []
        for site in (site for site in drawn.sites if not site["is_observed"]):
            homes = [name for name, value in state.items() if value is site["value"]]
            if not homes:
                raise ValueError(
                    f"The transition density of {type(self.kernel.model).__name__} cannot be replayed: its state does "
                    f"not keep the latent site {site['name']!r} as it was drawn. Keep it, "
                    f"`state[{site['name']!r}] = pyro.sample({site['name']!r}, ...)`, or pass method='genealogy'."
                )
            names.append(homes[0])
        return names

    def _score(self, time: int, before: State, after: State, names: list[Any]) -> Tensor:
        fixed = _Fixed([after[name] for name in names])
        state = self._run(time, before, fixed)
        for name in set(after) - set(names):
            if not torch.allclose(state[name].expand_as(after[name]), after[name], rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"The transition density of {type(self.kernel.model).__name__} cannot be replayed: {name!r} of its "
                    "state remembers the state before, so a path cannot change its ancestor; pass method='genealogy'."
                )
        size = next(iter(before.values())).shape[0]
        total: Tensor | float = 0.0
        for site in fixed.sites:
            per_trial = any(map(is_of_trials, site["cond_indep_stack"]))
            found = site_log_prob(site, size, self.batch_dims, per_trial=per_trial)
            total = total + found.reshape(size, -1)
        assert isinstance(total, Tensor)
        return total
