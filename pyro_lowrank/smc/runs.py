"""Runs of the particle filter over whole sequences: which loop runs, and what gradients along paths need."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean, compiled_mean
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Bin, LooksBack
from pyro_lowrank.observations.driven import REMEMBERED, DrivenEmission
from pyro_lowrank.smc.conditional import ConditionalKernel, Reference, check_scheme
from pyro_lowrank.smc.driven import check_forgets, plain_kernel
from pyro_lowrank.smc.effects import EffectsKernel
from pyro_lowrank.smc.joint import log_joint, log_proposal
from pyro_lowrank.smc.loop import FilterHistory, Scheme, State, run_loop
from pyro_lowrank.smc.pair import Pair, Sequences
from pyro_lowrank.smc.plain import PlainKernel
from pyro_lowrank.smc.replayed import ReplayedTransitions
from pyro_lowrank.smc.resampling import Resampler
from pyro_lowrank.smc.smoothing import along, backward_paths, mcmc_paths, take_states, uniform_of_paths
from pyro_lowrank.smc.taped import TapedKernel, Tapes, Untaped
from pyro_lowrank.smc.transitions import BuiltInTransitions

if TYPE_CHECKING:
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean
    from pyro_lowrank.smc.compiled.pair import CompiledPair

BACKENDS = ("auto", "compiled", "plain")

_USERS_OWN = "the model or guide is written by the user"
_log = logging.getLogger("pyro_lowrank")


@cache
def say_once(line: str) -> None:
    """Write a line to the log, once."""
    _log.info(line)


def compiled_pair(pair: Pair | None, backend: str, *, with_inputs: bool) -> CompiledPair | None:
    """Return the compiled form of a pair, or None where the backend or the lack of one leaves it to tensor operations.

    Args:
        pair: built in; None for one that the user has written.
        backend: one of `BACKENDS`.
        with_inputs: whether inputs will come.

    Raises:
        NoCompiledForm: if the backend is `"compiled"` and there is none.
    """
    if backend == "plain":
        return None
    try:
        if pair is None:
            raise NoCompiledForm(_USERS_OWN)
        # Deferred: importing Numba takes longer than the rest of the package.
        from pyro_lowrank.smc.compiled.pair import CompiledPair

        return CompiledPair(pair, with_inputs=with_inputs)
    except NoCompiledForm as reason:
        leave_to_tensors(reason, backend)
        return None


def leave_to_tensors(reason: NoCompiledForm, backend: str) -> None:
    """Say once that a filter is not compiled, and why; raise where it was to be."""
    if backend == "compiled":
        raise NoCompiledForm(f"`backend` must be 'auto' or 'plain' here, got 'compiled': {reason}.") from reason
    say_once(f"The filter runs on plain tensor operations, not compiled: {reason}.")


@dataclass(frozen=True)
class Paths:
    """Paths of latents given the whole recording, and the means they were at if those are known.

    Attributes:
        z: `paths x trials x time x rank`.
        means: of the next latents, likewise.
    """

    z: Tensor
    means: Tensor | None = None


@dataclass
class BuiltInRun:
    """A run of a built-in pair.

    Args:
        pair: the model and guide, bound.
        data: the recording and its inputs.
        num_particles: number of particles.
        scheme: when and how to resample.
        backend: one of `BACKENDS`.
        store: keep the particles of every time bin.
        reference: the path that one particle is pinned to, or None.

    Raises:
        NoCompiledForm: if the backend is `"compiled"` and there is none.
        ValueError: if the path does not fit the data, or the scheme has no conditional form.
    """

    pair: Pair
    data: Sequences
    num_particles: int
    scheme: Scheme
    backend: str
    store: bool = False
    reference: Reference | None = None
    compiled: CompiledPair | None = field(init=False)
    _compiled_mean: CompiledMean | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.reference is not None:
            check_forgets(self.pair.emission)
            self.reference.check(self.data, self.pair.transition.initial_mean)
            check_scheme(self.scheme.resampler)
        # A guide that learns looks at the recording with gradients; the filter looks at the same.
        known = self.pair.learns and not self.scheme.gradient.along_particles and torch.is_grad_enabled()
        # Innovations have gradients of the model's parameters, which are none of the guide's business.
        seen, v = self.data.seen.detached(), self.data.v
        self._encoding = self.pair.proposal.encode(seen, v, first=True) if known else None
        self.compiled = compiled_pair(self.pair, self.backend, with_inputs=self.data.v is not None)
        self._loops = self.compiled
        self._compiled_mean = _mean_of(self.pair, self.compiled, self.backend)
        try:
            self._check_loops()
        except NoCompiledForm as reason:
            leave_to_tensors(reason, self.backend)
            self._loops = None

    def _check_loops(self) -> None:
        if self.compiled is None:
            return
        if self.data.seen.y.device.type != "cpu":
            raise NoCompiledForm(f"the data lie on {self.data.seen.y.device}")
        if self.reference is not None:
            from pyro_lowrank.smc.compiled.run import check_reference

            check_reference(self.compiled, self.scheme.resampler)
        gradient = self.scheme.gradient
        if gradient.along_particles and torch.is_grad_enabled():
            raise NoCompiledForm(f"{type(gradient).__name__} differentiates the run itself; FisherGradient does not")
        own = type(self.scheme.resampler).resample is not Resampler.resample
        if own and isinstance(self.pair.emission, DrivenEmission):
            raise NoCompiledForm("resampling that moves particles moves what they remember, too")

    @property
    def is_compiled(self) -> bool:
        """Whether the filter runs in the compiled loops."""
        return self._loops is not None

    def filter(self, *, with_paths: bool = False) -> FilterHistory:
        """Run the filter."""
        if not self.scheme.allow_dead:
            return self._filter(with_paths=with_paths)
        if not (self.scheme.gradient.along_particles and torch.is_grad_enabled()):
            history = self._filter(with_paths=with_paths)
            self._hide_dead(history)
            return history
        device = self.data.seen.y.device
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            dead = self._hide_dead(self._filter(with_paths=False))
        history = self._filter(with_paths=with_paths)
        return replace(history, increments=history.increments.masked_fill(dead, -torch.inf))

    def _hide_dead(self, history: FilterHistory) -> Tensor:
        """Take the data of trials whose particles died as missing: gradients there may be infinite; return which."""
        dead = history.increments.isneginf().any(0)
        if dead.any():
            self.data = replace(self.data, seen=self.data.seen.hidden(dead.reshape(-1, 1, 1)))
        return dead

    def _filter(self, *, with_paths: bool) -> FilterHistory:
        kernel = plain_kernel(self.pair, self.num_particles, mean=self._mean())
        if self._loops is None:
            slices, store = kernel.slices(self.data, self._encoding), self.store or with_paths
            if self.reference is None:
                return run_loop(kernel, slices, self.scheme, store=store)
            pinned = ConditionalKernel(kernel, self.reference, self.data)
            return run_loop(pinned, slices, self.scheme, store=store, succession=pinned.succession)
        from pyro_lowrank.smc.compiled.run import run_compiled

        white = kernel.draw_white(self.data.shape[1], self.data.shape[0])
        return run_compiled(
            self._loops,
            self.data,
            white,
            self.scheme,
            store=self.store,
            with_paths=with_paths,
            encoding=self._encoding,
            reference=self.reference,
        )

    def _mean(self) -> Mean | None:
        mean = self._compiled_mean
        return mean.differentiable if mean is not None and torch.is_grad_enabled() else mean

    def paths(self, history: FilterHistory, num_paths: int) -> Paths:
        """Draw paths by backward simulation, up to the last recorded bin of each trial."""
        trials, steps = self.data.shape
        like, last = history.increments, self.data.last
        uniforms = uniform_of_paths(steps, num_paths, trials, like)
        if history.compiled is not None and self._loops is not None:
            from pyro_lowrank.smc.compiled.run import Remembered
            from pyro_lowrank.smc.compiled.run import backward_paths as compiled_paths

            out, likelihood = history.compiled.out, self._loops.remembers
            latents, means, log_weights = map(torch.from_numpy, (out.z, out.means, out.log_weights))
            own = None if likelihood is None else Remembered(history.compiled.features, likelihood.rates)
            _, *found = compiled_paths(self.pair.transition, latents, means, log_weights, last, uniforms, own)
            return Paths(*found)
        assert history.states is not None
        assert history.log_weights is not None
        transitions = BuiltInTransitions.of(self.pair, self.data, self.backend)
        states = [{"z": z} for z in history.states["z"].unbind(0)]
        to_come = transitions.to_come()
        if to_come is not None:
            remembered = history.states[REMEMBERED].unbind(0)
            states = [state | {REMEMBERED: value} for state, value in zip(states, remembered, strict=True)]
        index = backward_paths(transitions, states, history.log_weights, uniforms, last, to_come)
        return Paths(along(history.states["z"], index))

    def log_density(self, paths: Paths) -> Tensor:
        """Return log p(z, y), and log q(z | y) where the guide learns, averaged over paths, `trials`."""
        likelihood = (
            None if self._loops is None or self._loops.likelihood is None else self._loops.likelihood.along_paths
        )
        if self.data.past is not None:
            # It takes the data for constants, and innovations are none.
            likelihood = None
        mean = partial(self._mean_along, known=paths.means)
        found = log_joint(self.pair, self.data, paths.z, mean, likelihood)
        if self._encoding is None:
            return found
        with torch.no_grad():
            before = None if self.data.v is None else self.data.v[:, :-1]
            means = self._mean_along(paths.z[:, :, :-1], before, known=paths.means)
        return found + log_proposal(self.pair, self.data, paths.z, means, self._encoding)

    def _mean_along(self, z: Tensor, v: Tensor | None, *, known: Tensor | None) -> Tensor:
        if self._compiled_mean is None:
            return self.pair.transition.mean(z, v)
        return self._compiled_mean.differentiable(z, v, None if known is None else known[:, :, :-1])


@dataclass
class UsersRun:
    """A run of a pair that the user has written; arguments as of `BuiltInRun`, `data` the arguments of a call."""

    kernel: EffectsKernel
    data: tuple[tuple[Any, ...], dict[str, Any]]
    scheme: Scheme
    backend: str
    store: bool = False

    def __post_init__(self) -> None:
        compiled_pair(None, self.backend, with_inputs=False)
        calls = self.kernel.slices(self.data)
        programs = self.kernel.model, self.kernel.guide
        self._tapes = Untaped() if self.backend == "plain" else Tapes(*programs, len(calls))
        self._transitions = ReplayedTransitions(self.kernel, calls, self._tapes)

    def transitions(self) -> ReplayedTransitions:
        """Return what runs the model along paths later, from no tape."""
        args, kwargs = self.data
        return ReplayedTransitions(self.kernel, self.kernel.calls(*args, **kwargs), Untaped(self._tapes.kept))

    def filter(self, *, with_paths: bool = False) -> FilterHistory:
        """Run the filter."""
        kernel = TapedKernel(self.kernel, self._tapes)
        history = run_loop(kernel, self._transitions.calls, self.scheme, store=self.store or with_paths)
        kernel.finish()
        return history

    def paths(self, history: FilterHistory, num_paths: int) -> list[State]:
        """Draw paths by backward simulation: the states on them, one per time bin.

        Raises:
            CannotBeReplayed: if the transition density cannot be had.
        """
        assert history.states is not None
        assert history.log_weights is not None
        assert history.ancestors is not None
        log_weights, ancestors = (
            each if each.dim() == 3 else each.unsqueeze(-1) for each in (history.log_weights, history.ancestors)
        )
        num_steps, num_particles, trials = log_weights.shape
        self._shape = history.increments.shape[1:]
        states = [{name: stack[t] for name, stack in history.states.items()} for t in range(num_steps)]
        if num_particles <= _MOST_COMPARED:
            uniforms = uniform_of_paths(num_steps, num_paths, trials, log_weights)
            index = backward_paths(self._transitions, states, log_weights, uniforms)
        else:
            index = mcmc_paths(self._transitions, states, log_weights, ancestors, num_paths, _MOVES)
        self._tapes.finish()
        batch_dims = self._transitions.batch_dims
        return [take_states(state, index[..., t], batch_dims) for t, state in enumerate(states)]

    def log_density(self, paths: list[State]) -> Tensor:
        """Return log p(z, y) averaged over paths, `(trials)`, with what the guide's own parameters learn by."""
        found = self._transitions.log_joint(paths).reshape(self._shape)
        self._tapes.finish()
        return found


# With more particles, ancestors are drawn by a Markov chain: its cost does not grow with them.
_MOST_COMPARED = 128
_MOVES = 30


def online_kernel(pair: Pair, num_particles: int, backend: str) -> PlainKernel:
    """Return the kernel of a filter that runs time bin by time bin, without gradients: compiled where it can be.

    Raises:
        NoCompiledForm: if the backend is `"compiled"` and there is no compiled form.
    """
    compiled = None
    if not isinstance(pair.emission, DrivenEmission):
        compiled = compiled_pair(pair, backend, with_inputs=pair.transition.num_inputs > 0)
    elif backend != "plain":
        leave_to_tensors(NoCompiledForm("online, tensor operations move what particles remember"), backend)
    if compiled is not None and isinstance(pair.proposal, LooksBack):
        leave_to_tensors(NoCompiledForm("online, tensor operations propose what an encoder reads"), backend)
        compiled = None
    if compiled is None:
        return plain_kernel(pair, num_particles, mean=_mean_of(pair, compiled, backend))
    if compiled.proposal.weighs_data:
        # Of one time bin its few products on tensors take no longer than handing it over.
        return PlainKernel(pair, num_particles, mean=compiled.mean)
    from pyro_lowrank.smc.compiled.run import propose_one_bin

    def propose(mean: Tensor, white: Tensor, bin_t: Bin, *, first: bool) -> tuple[Tensor, Tensor]:
        return propose_one_bin(compiled, bin_t.seen, bin_t.v, mean, white, first=first)

    return PlainKernel(pair, num_particles, mean=compiled.mean, propose=propose)


def _mean_of(pair: Pair, compiled: CompiledPair | None, backend: str) -> CompiledMean | None:
    """Return the compiled means of a pair, which may have them where the pair itself has no compiled form."""
    if compiled is not None:
        return compiled.mean
    try:
        return None if backend == "plain" else compiled_mean(pair.transition.drift)
    except NoCompiledForm:
        return None
