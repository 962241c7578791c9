"""The density of the step from one time bin's particles to the next one's, which smoothing weighs ancestors by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean, compiled_mean, fastest_mean
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.linear_memory import Law
from pyro_lowrank.smc.driven import ToCome
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
        before: where observations remember the latents: covariance of what they remember before the first bin; that of
            the beginning if None.
    """

    transition: Transition
    emission: Emission
    data: Sequences
    backend: str
    batch_dims: int = 2
    before: Tensor | None = None

    @classmethod
    def of(cls, pair: Pair, data: Sequences, backend: str) -> BuiltInTransitions:
        """Return the transitions of a run."""
        return cls(pair.transition, pair.emission, data, backend)

    def kept(self) -> BuiltInTransitions:
        """Return a copy of what training may change afterwards."""
        transition, emission, past = copy.deepcopy((self.transition, self.emission, self.data.past))
        return replace(self, transition=transition, emission=emission, data=replace(self.data, past=past))

    def to_come(self) -> ToCome | None:
        """Return what later bins say of particles beside the transitions, where observations remember the latents."""
        if not isinstance(self.emission, DrivenEmission):
            return None
        return ToCome(self.emission, self.data, self.before)

    def laws(self) -> list[Law]:
        """Return how each bin is taken in, where observations remember the latents."""
        assert isinstance(self.emission, DrivenEmission)
        return self.emission.memory.laws(self.data.seen, self.before)

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

    def compiled_paths(self, z: Tensor, log_weights: Tensor, uniforms: Tensor) -> Tensor | None:
        """Return what `backward_paths` draws by the same numbers, in compiled loops; None where there are none.

        Args:
            z: the particles, `particles x trials x time x rank`.
            log_weights: of the particles, `time x particles x trials`.
            uniforms: numbers in [0, 1), `time x draws x trials`.
        """
        if self.backend == "plain" or self.transition.batch_shape or isinstance(self.transition.noise, StudentTNoise):
            return None
        try:
            mean = compiled_mean(self.transition.drift)
        except NoCompiledForm:
            return None
        from pyro_lowrank.smc.compiled.run import backward_paths

        ends = torch.full(z.shape[1:2], z.shape[2] - 1)
        latents, means = (each.permute(1, 2, 3, 0) for each in (z, mean(z, self.data.v)))
        index, _, _ = backward_paths(self.transition, latents, means, log_weights.permute(2, 0, 1), ends, uniforms)
        return index

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
