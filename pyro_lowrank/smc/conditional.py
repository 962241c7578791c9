r"""Conditional sequential Monte Carlo: a particle filter one of whose particles is pinned to a given path.

Its law is that of the filter's particles given that the path is one of those that they left, with the place of the
pinned particle among the others drawn with them. A path drawn from such a run, by its last weights and its genealogy,
has the smoothing distribution if the given one has it, however few the particles are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.errors import check_same_type
from pyro_lowrank.guides.base import Bin
from pyro_lowrank.smc.joint import path_likelihood
from pyro_lowrank.smc.loop import Particles, Scheme, resample, take
from pyro_lowrank.smc.pair import Sequences
from pyro_lowrank.smc.plain import PlainKernel, Slice
from pyro_lowrank.smc.resampling import Resampler, State


@dataclass(frozen=True)
class Reference:
    """The path that one particle is pinned to.

    Attributes:
        z: latents, `trials x time x rank`.
        ancestor_sampling: whether the past of the path is drawn anew among all particles at each time bin.
    """

    z: Tensor
    ancestor_sampling: bool = True

    def check(self, data: Sequences, like: Tensor) -> None:
        """Raise, saying what was expected, unless the path fits the data and the model's latents, `rank`."""
        expected = (*data.shape, like.shape[-1])
        if not isinstance(self.z, Tensor):
            raise TypeError(
                f"`reference` must be a torch.Tensor of latents, trials x time x rank, got {type(self.z).__name__}."
            )
        if self.z.shape != expected:
            hint = "; take one draw, as in `posterior.smooth(1)[0]`" if self.z.dim() == 4 else ""
            raise ValueError(
                f"`reference` must hold latents of the recording's trials and time bins, trials x time x rank, "
                f"{tuple(expected)}, got {tuple(self.z.shape)}{hint}."
            )
        check_same_type("reference", self.z, like)
        if not self.z.isfinite().all():
            where = tuple(int(i) for i in (~self.z.isfinite()).nonzero()[0])
            raise ValueError(
                f"`reference` is not finite at index {where}: take a path that a filter has drawn, as "
                "`SMCFilter(...).run(y, u).smooth(1)[0]`."
            )


class _Conditional(Resampler):
    """A scheme with one particle that goes on in any case; remembers where it went on to."""

    def __init__(self, scheme: Resampler, pinned: Tensor) -> None:
        self.scheme, self.pinned = scheme, pinned
        self.independent = scheme.independent

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        """Draw what the scheme draws."""
        return self.scheme.draw(num_steps, num_particles, batch, **factory)

    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor | None:
        """Return the ancestor of each particle, the pinned one among them."""
        found = self.scheme.conditional(log_weights, random, self.pinned)
        if found is None:
            return None
        drawn, self.pinned = found
        return drawn


def check_scheme(resampler: Resampler) -> None:
    """Raise unless a scheme has a conditional form.

    Raises:
        NoConditionalForm: if it has none; a ValueError.
    """
    one = torch.zeros(1, 1)
    devices: list[int] = []
    with torch.random.fork_rng(devices=devices):
        resampler.conditional(one, resampler.draw(1, 1, torch.Size((1,)))[0], torch.zeros(1, dtype=torch.long))


class ConditionalKernel:
    r"""Moves and weighs particles, one of which is pinned to a path, and chooses which go on.

    The path's latent at a time bin has the weight that it would have had if it had been proposed:

    .. math:: w_t = p(y_t \mid z_t)\, p(z_t \mid z_{t-1}) / q(z_t \mid z_{t-1}, y_t)

    With ancestor sampling the particle that precedes it is drawn first, among all of them, with weights

    .. math:: W_{t-1}^i\, p(z_t \mid z_{t-1}^i)

    whether or not trials resample then: where they do not, the path goes on in the place of that particle.

    Args:
        kernel: moves and weighs the others.
        reference: the path.
        data: the recording and its inputs.

    References:
        Andrieu, Doucet and Holenstein (2010), J. R. Stat. Soc. B 72:269; Lindsten, Jordan and Schön (2014), J. Mach.
        Learn. Res. 15:2145; Chopin and Singh (2015), Bernoulli 21:1855.
    """

    def __init__(self, kernel: PlainKernel, reference: Reference, data: Sequences) -> None:
        self.kernel = kernel
        self.num_particles, self.batch_dims = kernel.num_particles, kernel.batch_dims
        transition = kernel.pair.transition
        self._path = reference.z.unbind(1)
        self._samples_ancestors = reference.ancestor_sampling
        self._seen = path_likelihood(kernel.pair, data, reference.z.unsqueeze(0))[0].unbind(-1)
        self._inverse = torch.linalg.inv(transition.noise.scale_tril).mT.contiguous()
        self._log_scale = transition.noise.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._inputs = [data.v_at(time) for time in range(data.shape[1])]
        self._time = 0
        # Any place is as likely as any other: the law of some schemes depends on the order of the particles.
        self.pinned = torch.randint(self.num_particles, data.shape[:1], device=reference.z.device)

    def slices(self, data: Any) -> Sequence[Slice]:
        """Return what is needed of each time bin of whole sequences."""
        return self.kernel.slices(data)

    def init(self, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the first latents, one of which is the path's."""
        transition = self.kernel.pair.transition
        state, log_weights = self.kernel.init(slice_t)
        mean = transition.first_mean(slice_t.bin.v).expand_as(self._path[0]).unsqueeze(0)
        density = transition.initial_noise.log_prob(self._path[0].unsqueeze(0) - mean)
        return self._pin(state["z"], log_weights, transition.initial_noise, mean, density, slice_t.bin)

    def step(self, state: State, slice_t: Slice) -> tuple[State, Tensor]:
        """Propose and weigh the next latents, one of which is the path's; the state holds their means."""
        self._time += 1
        z, log_weights = self.kernel.propose(state["mean"], slice_t.white, slice_t.bin, first=False)
        place = self.pinned.unsqueeze(0)
        mean, density = take(state["mean"], place, self.batch_dims), state["density"].gather(0, place)
        return self._pin(z, log_weights, self.kernel.pair.transition.noise, mean, density, slice_t.bin)

    def _pin(
        self, z: Tensor, log_weights: Tensor, noise: GaussianNoise, mean: Tensor, density: Tensor, bin_t: Bin
    ) -> tuple[State, Tensor]:
        """Put the path's latent in its place, with its weight; `density` is that of its transition."""
        latent = self._path[self._time].unsqueeze(0)
        proposed = self.kernel.pair.proposal.distribution(noise, mean, bin_t.encoding).log_prob(latent)
        weight = self._seen[self._time] + density - proposed
        place = self.pinned.unsqueeze(0)
        latents = z.scatter(0, place.unsqueeze(-1).expand_as(latent), latent)
        log_weights = _buried(log_weights)
        return {"z": latents}, log_weights.scatter(0, place, weight.to(log_weights.dtype))

    def succession(self, particles: Particles, scheme: Scheme, random: Tensor, batch_dims: int) -> Particles:
        """Return the particles that go on, the pinned one among them, with the means of their next latents."""
        mean = self.kernel.mean(particles.state["z"], self._inputs[self._time])
        white = (self._path[self._time + 1] - mean) @ self._inverse
        density = _buried(self.kernel.pair.transition.noise.standard_log_prob(white) - self._log_scale)
        if self._samples_ancestors:
            self.pinned = self._ancestor(particles.log_weights + density)
        resampler = _Conditional(scheme.resampler, self.pinned)
        moving = replace(particles, state={"mean": mean, "density": density})
        chosen = resample(moving, replace(scheme, resampler=resampler), random, batch_dims)
        self.pinned = torch.where(chosen.resampled, resampler.pinned, self.pinned)
        return chosen

    def _ancestor(self, logits: Tensor) -> Tensor:
        """Draw the particle that precedes the path's next latent, `trials`, by log weights `particles x trials`."""
        cumulative = torch.softmax(logits.mT, -1).cumsum(-1)
        uniform = torch.rand_like(cumulative[:, :1]) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, uniform, right=True).squeeze(-1).clamp(max=self.num_particles - 1)
        # Where no particle could have led there, by rounding, the path keeps its own past.
        return torch.where(logits.isneginf().all(0), self.pinned, found)


def _buried(log_weights: Tensor) -> Tensor:
    """Return log weights in which a particle that went to infinity is dead: the path goes on in any case."""
    return log_weights.masked_fill(log_weights.isnan(), -torch.inf)
