"""The loop over time: the only one in the library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

from pyro_lowrank.smc.gradients import GradientEstimator
from pyro_lowrank.smc.resampling import Resampler, State
from pyro_lowrank.smc.weights import effective_sample_size, normalise

SliceT = TypeVar("SliceT", contravariant=True)


class ParticlesDied(SMCFailed):
    """All particles of a trial are dead.

    Args:
        message: what is said; Pyro makes errors anew from it alone, and so do pickles.
        time: the time bin at which they died, where it is known.
        trial: the trial, or None where all trials are weighed together.
        cause: why.
    """

    def __init__(self, message: str, *, time: int | None = None, trial: int | None = None, cause: str = "") -> None:
        self.time, self.trial, self.cause = time, trial, cause
        super().__init__(message)

    @classmethod
    def at(cls, time: int, trial: int | None, cause: str) -> ParticlesDied:
        """Return the error of a trial and time bin."""
        where = "" if trial is None else f"of trial {trial} "
        return cls(f"All particles {where}are dead at time {time}: {cause}.", time=time, trial=trial, cause=cause)


class Kernel(Protocol[SliceT]):
    """How particles are moved and weighed at one time bin; `SliceT` is what it needs of the data there."""

    num_particles: int
    batch_dims: int
    """Number of leading dims of state tensors before their own: particles, then plates."""

    def slices(self, data: Any) -> Sequence[Any]:
        """Return what is needed of each time bin of whole sequences."""

    def init(self, slice_t: SliceT) -> tuple[State, Tensor]:
        """Return the particles of the first time bin, and their log incremental weights, `particles (x trials)`."""

    def step(self, state: State, slice_t: SliceT) -> tuple[State, Tensor]:
        """Return the particles of the next time bin, and their log incremental weights, `particles (x trials)`."""


@dataclass(frozen=True)
class Scheme:
    """When and how to resample, and how gradients see it.

    Args:
        resampler: draws the ancestors.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles;
            at 1 always.
        gradient: the gradient estimator.
        cut_every: gradients do not pass from a time bin that is a multiple of this to the one before; None for never.
        allow_dead: whether a run goes on where all particles of a trial are dead, whose increment is then -inf.
    """

    resampler: Resampler
    ess_threshold: float
    gradient: GradientEstimator
    cut_every: int | None = None
    allow_dead: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("resampler", Resampler), ("gradient", GradientEstimator)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"`{name}` must be a {kind.__name__}, got {getattr(self, name)!r}.")
        if self.cut_every is not None and not self.gradient.along_particles:
            raise ValueError(
                f"`cut_every` bounds how far gradients reach back, and {type(self.gradient).__name__} sends none "
                "through time: leave it out, or pass gradient=PathwiseGradient()."
            )
        if not 0 < self.ess_threshold <= 1:
            raise ValueError(
                f"`ess_threshold` is a share of the particles, above 0 and at most 1, got {self.ess_threshold}; "
                "pass resampler=NoResampling() for none."
            )
        if self.gradient.needs_independent_ancestors and not self.resampler.independent:
            raise ValueError(
                f"{type(self.gradient).__name__} needs ancestors drawn independently, got "
                f"{type(self.resampler).__name__}; pass resampler=MultinomialResampling()."
            )


@dataclass(frozen=True)
class Particles:
    """The particles at one time bin, weighted.

    Attributes:
        state: tensors `particles (x trials) x ...`.
        log_weights: normalised, `particles (x trials)`.
        increment: of the log evidence, in nats, `(trials)`.
        ess: effective sample size, `(trials)`.
        ancestors: index of each particle's ancestor at the bin before, `particles (x trials)`.
        resampled: whether they were drawn anew, `(trials)`.
        ancestor_log_prob: log probability of the draw, `(trials)`.
    """

    state: State
    log_weights: Tensor
    increment: Tensor
    ess: Tensor
    ancestors: Tensor
    resampled: Tensor
    ancestor_log_prob: Tensor


@dataclass(frozen=True)
class FilterHistory:
    """What a run leaves behind: `last` particles, and per-bin records, each `time x ...`.

    `states` (stacked in front of their own dims), `log_weights` and `ancestors` are None unless they were asked for.
    `compiled` is what the compiled loop left, for those who go on from there.
    """

    last: Particles
    increments: Tensor
    ess: Tensor
    resampled: Tensor
    ancestor_log_probs: Tensor
    states: State | None = None
    log_weights: Tensor | None = None
    ancestors: Tensor | None = None
    compiled: Any = None

    @classmethod
    def of(cls, bins: Sequence[Particles], *, store: bool) -> FilterHistory:
        """Stack the particles of all time bins; of their states, what every bin has."""
        records: dict[str, Any] = {
            "increments": torch.stack([p.increment for p in bins]),
            "ess": torch.stack([p.ess for p in bins]),
            "resampled": torch.stack([p.resampled for p in bins]),
            "ancestor_log_probs": torch.stack([p.ancestor_log_prob for p in bins]),
        }
        if store:
            # A user's model may add state as it goes; only what every time bin has makes a sequence.
            names = [name for name in bins[0].state if all(name in p.state for p in bins)]
            records["states"] = {name: torch.stack([p.state[name] for p in bins]) for name in names}
            records["log_weights"] = torch.stack([p.log_weights for p in bins])
            records["ancestors"] = torch.stack([p.ancestors for p in bins])
        return cls(last=bins[-1], **records)


def _normalise(log_weights: Tensor, *, allow_dead: bool) -> tuple[Tensor, Tensor]:
    """Return normalised log weights and the log of their sum; where all are -inf and may be, equal ones and -inf."""
    if not allow_dead:
        return normalise(log_weights)
    dead = log_weights.isneginf().all(0)
    log_weights, log_sum = normalise(log_weights.masked_fill(dead, 0.0))
    return log_weights, log_sum.masked_fill(dead, -torch.inf)


def start(kernel: Kernel[SliceT], slice_t: SliceT, *, allow_dead: bool = False) -> Particles:
    """Return the weighted particles of the first time bin."""
    state, log_increments = kernel.init(slice_t)
    num_particles = log_increments.shape[0]
    log_weights, log_sum = _normalise(log_increments, allow_dead=allow_dead)
    batch = log_sum.shape
    own = torch.arange(num_particles, device=log_sum.device)
    return Particles(
        state=state,
        log_weights=log_weights,
        increment=log_sum - math.log(num_particles),
        ess=effective_sample_size(log_weights.detach()),
        ancestors=own.reshape(-1, *(1,) * len(batch)).expand(num_particles, *batch),
        resampled=torch.zeros(batch, dtype=torch.bool, device=log_sum.device),
        ancestor_log_prob=torch.zeros_like(log_sum),
    )


def resample(particles: Particles, scheme: Scheme, random: Tensor, batch_dims: int) -> Particles:
    """Return the particles that go on, with the weights they carry."""
    everybody = scheme.ess_threshold >= 1
    resampled = (
        torch.ones_like(particles.resampled)
        if everybody
        else particles.ess < scheme.ess_threshold * particles.log_weights.shape[0]
    )
    if not everybody and resampled.device.type == "cpu":
        # On other devices trials are selected below without asking: the host would wait for the answer.
        everybody = bool(resampled.all())
        if not (everybody or resampled.any()):
            return _kept(particles)
    found = scheme.resampler.resample(particles.log_weights, random, particles.state)
    if found is None:
        return _kept(particles)
    drawn = found.ancestors if everybody else torch.where(resampled, found.ancestors, _own(particles))
    state = {name: take(value, drawn, batch_dims) for name, value in particles.state.items()}
    if found.state is not None:
        state = {name: _of_trials(resampled, moved, state[name], batch_dims) for name, moved in found.state.items()}
    ancestor_log_weights = particles.log_weights.gather(0, drawn)
    carried = found.log_weights
    if carried is None:
        carried = scheme.gradient.carried(ancestor_log_weights)
    log_prob = ancestor_log_weights.sum(0)
    if not everybody:
        carried = torch.where(resampled, carried, particles.log_weights)
        log_prob = torch.where(resampled, log_prob, 0.0)
    return replace(
        particles,
        state=state,
        log_weights=carried,
        ancestors=drawn,
        resampled=resampled,
        ancestor_log_prob=log_prob,
    )


def _of_trials(chosen: Tensor, ours: Tensor, theirs: Tensor, batch_dims: int) -> Tensor:
    """Return state tensors `particles x plates x ...`, ours in the trials that are chosen."""
    return torch.where(chosen.reshape(chosen.shape + (1,) * (ours.dim() - batch_dims)), ours, theirs)


def _own(particles: Particles) -> Tensor:
    """Return every particle's own index, `particles (x trials)`."""
    own = torch.arange(particles.log_weights.shape[0], device=particles.ess.device)
    return own.reshape(-1, *(1,) * particles.ess.dim()).expand_as(particles.log_weights)


def _kept(particles: Particles) -> Particles:
    """Return the particles, all of which go on as they are."""
    return replace(
        particles,
        ancestors=_own(particles),
        resampled=torch.zeros_like(particles.resampled),
        ancestor_log_prob=torch.zeros_like(particles.increment),
    )


def take(value: Tensor, ancestors: Tensor, batch_dims: int) -> Tensor:
    """Return the ancestors' rows of a state tensor `particles x plates x ...`; the trials are the innermost plate."""
    if ancestors.dim() == 1:
        return value[ancestors]
    if value.dim() < batch_dims:
        raise ValueError(
            f"A state tensor of a model with a plate 'trials' must have shape particles x plates x ..., with "
            f"{batch_dims} leading dims and trials the last of them, got {tuple(value.shape)}."
        )
    num_trials = ancestors.shape[1]
    trial_dim = batch_dims - 1
    if value.shape[trial_dim] == 1 != num_trials:
        value = value.expand(*value.shape[:trial_dim], num_trials, *value.shape[batch_dims:])
    # One index_select over (particles x trials) is cheaper, forward and back, than a gather per element.
    moved = value.movedim(trial_dim, 1)
    rows = (ancestors * num_trials + torch.arange(num_trials, device=ancestors.device)).reshape(-1)
    taken = moved.reshape(-1, *moved.shape[2:]).index_select(0, rows)
    return taken.reshape(-1, *moved.shape[1:]).movedim(1, trial_dim)


class Succession(Protocol):
    """Who goes on from one time bin to the next: `resample`, unless told otherwise."""

    def __call__(self, particles: Particles, scheme: Scheme, random: Tensor, batch_dims: int) -> Particles:
        """Return the particles that go on, with the weights they carry."""


def advance(
    kernel: Kernel[SliceT],
    slice_t: SliceT,
    particles: Particles,
    scheme: Scheme,
    random: Tensor,
    succession: Succession = resample,
) -> Particles:
    """Resample, move and weigh: the particles of the next time bin."""
    chosen = succession(particles, scheme, random, kernel.batch_dims)
    state, log_increments = kernel.step(chosen.state, slice_t)
    if log_increments.shape != chosen.log_weights.shape:
        raise ValueError(
            f"Particles were weighed with shape {tuple(chosen.log_weights.shape)} before and with "
            f"{tuple(log_increments.shape)} now: every call of `init` and `step` must have a site in the plate of "
            "trials, or none may."
        )
    log_weights, log_sum = _normalise(chosen.log_weights + log_increments, allow_dead=scheme.allow_dead)
    return replace(
        chosen,
        state=state,
        log_weights=log_weights,
        increment=log_sum,
        ess=effective_sample_size(log_weights.detach()),
    )


def without_gradients(particles: Particles) -> Particles:
    """Return the particles, through which no gradient passes into the past."""
    state = {name: value.detach() for name, value in particles.state.items()}
    return replace(particles, state=state, log_weights=particles.log_weights.detach())


def run_loop(
    kernel: Kernel[SliceT],
    slices: Sequence[SliceT],
    scheme: Scheme,
    *,
    store: bool,
    succession: Succession = resample,
) -> FilterHistory:
    """Run the particle filter over whole sequences.

    Args:
        kernel: moves and weighs the particles.
        slices: what it needs of the data, one per time bin.
        scheme: when and how to resample.
        store: keep the particles, weights and ancestors of every time bin, not only of the last.
        succession: who goes on from one time bin to the next.

    Raises:
        SMCFailed: if all particles of a trial are dead, naming trial and time.
    """
    particles = start(kernel, slices[0], allow_dead=scheme.allow_dead)
    bins = [particles]
    like = particles.increment
    random = scheme.resampler.draw(
        len(slices) - 1, kernel.num_particles, like.shape, dtype=like.dtype, device=like.device
    )
    for t, (slice_t, random_t) in enumerate(zip(slices[1:], random, strict=True), start=1):
        if scheme.cut_every is not None and t % scheme.cut_every == 0:
            particles = without_gradients(particles)
        particles = advance(kernel, slice_t, particles, scheme, random_t, succession)
        bins.append(particles if store else replace(particles, state={}))
    history = FilterHistory.of(bins, store=store)
    check_alive(history.increments, allow_dead=scheme.allow_dead)
    return history


def check_alive(increments: Tensor, *, first_time: int = 0, allow_dead: bool = False) -> None:
    """Raise `SMCFailed` where an increment of the evidence, `time (x trials)`, is not finite; -inf may be allowed."""
    dead = ~increments.isfinite()
    if allow_dead:
        dead = dead & ~increments.isneginf()
    if not dead.any():
        return
    time, *trial = (int(i) for i in dead.nonzero()[0])
    value = increments[(time, *trial)].item()
    cause = (
        "every particle has weight zero: the observation is impossible, or overflows, under the model"
        if value == float("-inf")
        else "a weight is not a number: look for parameters or data that are not finite"
    )
    raise ParticlesDied.at(first_time + time, trial[0] if trial else None, cause)
