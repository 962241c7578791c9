"""The particle filter: online, with the calls of `pyro.infer.SMCFilter`, or over whole sequences."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.generators import RNG, drawn_from
from pyro_lowrank.handlers import check_one_draw
from pyro_lowrank.infer.posterior import SMCPosterior
from pyro_lowrank.infer.remembered import FilteredBin, bin_arguments, copies
from pyro_lowrank.models.state_space import StateSpaceModel, recalled
from pyro_lowrank.modules import check_priors_are_handled, own_values, read_priors
from pyro_lowrank.observations.driven import COVARIANCE
from pyro_lowrank.observations.memory import Memory, Past
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.conditional import Reference
from pyro_lowrank.smc.effects import Call, EffectsKernel
from pyro_lowrank.smc.gradients import FisherGradient
from pyro_lowrank.smc.kernels import bind
from pyro_lowrank.smc.loop import FilterHistory, Particles, Scheme, State, advance, check_alive, start
from pyro_lowrank.smc.pair import Pair, Sequences
from pyro_lowrank.smc.plain import PlainKernel
from pyro_lowrank.smc.replayed import ReplayedTransitions
from pyro_lowrank.smc.resampling import Resampler, SystematicResampling
from pyro_lowrank.smc.runs import BACKENDS, BuiltInRun, UsersRun, compiled_pair, online_kernel
from pyro_lowrank.smc.transitions import BuiltInTransitions


class SMCFilter:
    r"""Particle filter with weights, resampling and evidence per trial.

    Online, `init` and `step` take one time bin each, as in `pyro.infer.SMCFilter`; `run` takes whole sequences. The
    model and guide are built-in ones, or any pair with `init(state, ...)` and `step(state, ...)`. A model whose sites
    lie in a plate named "trials" at dim -1 is weighed trial by trial, any other one as a whole.

    Particles are resampled before a step, not after one: the particles seen after `step` still carry their weights.

    Args:
        model: the model.
        guide: the guide; None to propose all latents from the model, as in `pyro.infer.Importance`.
        num_particles: number of particles.
        max_plate_nesting: number of nested plates, that over trials included, of a user-written model.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles.
        resampler: how ancestors are drawn; systematic if None.
        lag: time bins before the present one that are remembered online, for `posterior` (fixed-lag smoothing).
        backend: `"compiled"` loops, `"plain"` tensor operations, or `"auto"`: compiled where there is a compiled form
            (the reason is logged where there is none).

    Raises:
        SMCFailed: if all particles of a trial are dead, naming trial and time.
        NoCompiledForm: if the backend is `"compiled"` and there is none; a ValueError.
        ValueError: if the data do not fit the model.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> smc = SMCFilter(model, plr.OptimalGuide(model), num_particles=100, max_plate_nesting=1)
        >>> posterior = smc.run(torch.randn(5, 20, 8))
        >>> posterior.log_evidence.shape, posterior.ess.shape, posterior.mean().shape
        (torch.Size([5]), torch.Size([20, 5]), torch.Size([5, 20, 2]))

    References:
        Doucet and Johansen (2009), "A tutorial on particle filtering and smoothing".
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        num_particles: int,
        max_plate_nesting: int = 1,
        *,
        ess_threshold: float = 0.5,
        resampler: Resampler | None = None,
        lag: int = 0,
        backend: str = "auto",
    ) -> None:
        self.model = model
        self.guide = guide
        self.num_particles = check_positive_int("num_particles", num_particles)
        self.max_plate_nesting = check_positive_int("max_plate_nesting", max_plate_nesting, minimum=0)
        self.scheme = Scheme(
            resampler=SystematicResampling() if resampler is None else resampler,
            ess_threshold=ess_threshold,
            gradient=FisherGradient(),
        )
        self.lag = check_positive_int("lag", lag, minimum=0)
        self.backend = check_choice("backend", backend, BACKENDS)
        self._clear()

    def _clear(self) -> None:
        self._kernel: PlainKernel | EffectsKernel | None = None
        self._particles: Particles | None = None
        self._memory: State = {}
        self._log_evidence: Tensor | None = None
        self._time = 0
        self._bins: deque[FilteredBin] = deque(maxlen=self.lag + 1)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: of the built-in kernel, the parameters that `init` read."""
        state = dict(self.__dict__)
        if isinstance(self._kernel, PlainKernel):
            state["_kernel"] = self._kernel.pair
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on as before."""
        self.__dict__.update(state)
        if isinstance(state["_kernel"], Pair):
            self._kernel = online_kernel(state["_kernel"], self.num_particles, self.backend)

    @torch.no_grad()
    def init(self, *args: Any, **kwargs: Any) -> None:
        """Start anew with the first time bin: `init(y_t, u_t)`, `trials x features` and `trials x inputs`.

        The model's parameters are read now, and used until the next `init`.
        """
        self._check_bin(args, kwargs)
        args, kwargs = copies(args, kwargs)
        self._clear()
        with own_values(self.model, self.guide):
            self._kernel = self._make_online_kernel()
            known = self._memory
            slice_t = self._slice(args, kwargs)
            self._particles = start(self._kernel, slice_t)
        check_alive(self._particles.increment[None])
        self._bins.append(FilteredBin(self._particles, args, kwargs, slice_t, known))
        self._log_evidence = self._particles.increment

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> None:
        """Take in one more time bin: `step(y_t, u_t)`, `trials x features` and `trials x inputs`."""
        if self._particles is None or self._log_evidence is None:
            raise RuntimeError("Call `init` with the first time bin before `step`.")
        self._check_bin(args, kwargs)
        args, kwargs = copies(args, kwargs)
        like = self._particles.increment
        random = self.scheme.resampler.draw(1, self.num_particles, like.shape, dtype=like.dtype, device=like.device)
        with own_values(self.model, self.guide):
            if self._kernel is None:
                self._kernel = self._make_online_kernel()
            elif isinstance(self._kernel, EffectsKernel):
                read_priors(self.model, self.guide)
            known = self._memory
            slice_t = self._slice(args, kwargs)
            particles = advance(self._kernel, slice_t, self._particles, self.scheme, random[0])
        self._time += 1
        check_alive(particles.increment[None], first_time=self._time)
        self._particles = particles
        self._log_evidence = self._log_evidence + particles.increment
        self._bins.append(FilteredBin(particles, args, kwargs, slice_t, known))

    @torch.no_grad()
    def posterior(self) -> SMCPosterior:
        r"""Return the present time bin and the `lag` ones before it, given all data so far; memory is bounded.

        .. math:: p(z_{t-L:t} \mid y_{1:t})

        `posterior().smooth(100)` is fixed-lag smoothing: its first time bin is as it will be known when the recording
        has gone on by the lag. `posterior().forecast(5)` looks ahead. Its evidence is that of its own time bins.

        Raises:
            RuntimeError: if nothing was filtered since `init` or `load_state_dict`.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> smc = SMCFilter(model, plr.OptimalGuide(model), 100, lag=5)
            >>> y = torch.randn(4, 50, 3)
            >>> smc.init(y[:, 0])
            >>> for t in range(1, 50):
            ...     smc.step(y[:, t])
            >>> smc.posterior().smooth(20).shape
            torch.Size([20, 4, 6, 2])

        References:
            Kitagawa (1996), J. Comput. Graph. Stat. 5:1.
        """
        if not self._bins:
            raise RuntimeError("No time bin was filtered since `init` or `load_state_dict`: call `init` or `step`.")
        bins, kernel = list(self._bins), self._kernel
        assert kernel is not None
        history = FilterHistory.of([each.particles for each in bins], store=True)
        start, transitions = self._time + 1 - len(bins), self._transitions(bins)
        return SMCPosterior.from_history(history, kernel.batch_dims, transitions, start=start, guide=self._guide_name)

    def _transitions(self, bins: list[FilteredBin]) -> BuiltInTransitions | ReplayedTransitions:
        kernel = self._kernel
        if isinstance(kernel, EffectsKernel):
            return ReplayedTransitions(kernel, [Call(each.args, each.kwargs) for each in bins])
        assert isinstance(kernel, PlainKernel)
        y, u = zip(*(bin_arguments(*each.args, **each.kwargs) for each in bins), strict=True)
        v = [each.slice.bin.v for each in bins]
        data = Sequences(
            Observed.joined([each.slice.bin.seen for each in bins]),
            v=None if v[0] is None else torch.stack(v, -2),
            u=None if u[0] is None else torch.stack(u, -2),
            past=self._past(kernel.pair.memory, Observed.of(torch.stack(y, -2)), bins[0].memory),
        )
        before = bins[0].memory.get(COVARIANCE)
        return replace(BuiltInTransitions.of(kernel.pair, data, self.backend).kept(), before=before)

    @staticmethod
    def _past(memory: Memory | None, recording: Observed, known: State) -> Past | None:
        if memory is None:
            return None
        return Past.after(memory, recording, recalled(memory, known)) if known else Past.of(memory, recording)

    @torch.no_grad()
    def run(
        self,
        *args: Any,
        reference: Tensor | None = None,
        ancestor_sampling: bool = True,
        generator: RNG = None,
        **kwargs: Any,
    ) -> SMCPosterior:
        r"""Filter whole sequences, every tensor cut at its time dim -2: `run(y, u)`; the online state is left alone.

        With a reference the filter is a conditional one: a particle is pinned to that path, and a path drawn from the
        result, `smooth(1, method="genealogy")[0]` or, by backward sampling, `smooth(1)[0]`, is the next state of a
        Markov chain that keeps the smoothing distribution, :math:`p(z_{1:T} \mid y_{1:T})`, however few the particles
        are (at least 2). The evidence of such a run is no unbiased estimate.

        Args:
            args: the data, as of the model; `kwargs` likewise.
            reference: latents that one particle is pinned to, `trials x time x rank`; None for an ordinary filter.
            ancestor_sampling: whether the past of the reference is drawn anew among all particles at each time bin;
                without it, paths of the genealogy nearly always keep their early part.
            generator: of the random numbers; torch's global one if None.

        Raises:
            SMCFailed: if all particles of a trial are dead, naming trial and time.
            ValueError: if the data or the reference do not fit; if there is a reference, and the resampling has no
                conditional form or the model is a user's own; if the backend is `"compiled"` and there is none.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> smc, y = SMCFilter(model, plr.OptimalGuide(model), 20), torch.randn(4, 10, 3)
            >>> z = smc.run(y).smooth(1)[0]
            >>> smc.run(y, reference=z).smooth(1, method="genealogy")[0].shape
            torch.Size([4, 10, 2])

        References:
            Lindsten, Jordan and Schön (2014), J. Mach. Learn. Res. 15:2145.
        """
        if isinstance(self.model, StateSpaceModel):
            self.model.check_data(*args, **kwargs)
        pinned = None if reference is None else Reference(reference, ancestor_sampling)
        transitions: BuiltInTransitions | ReplayedTransitions
        with own_values(self.model, self.guide), drawn_from(generator):
            bound = self._bind()
            if isinstance(bound, Pair):
                data, batch_dims = bound.read(*args, **kwargs), PlainKernel.batch_dims
                asked: dict[str, Any] = {"store": True, "reference": pinned}
                history = BuiltInRun(bound, data, self.num_particles, self.scheme, self.backend, **asked).filter()
                transitions = BuiltInTransitions.of(bound, data, self.backend).kept()
            elif pinned is not None:
                raise ValueError(f"A `reference` needs a StateSpaceModel and a built-in guide, got {self.model!r}.")
            else:
                run = UsersRun(bound, (args, kwargs), self.scheme, self.backend, store=True)
                history, transitions, batch_dims = run.filter(), run.transitions(), bound.batch_dims
        again = partial(self.run, *args, reference=reference, ancestor_sampling=ancestor_sampling, **kwargs)
        return SMCPosterior.from_history(history, batch_dims, transitions, again, guide=self._guide_name)

    @property
    def _guide_name(self) -> str:
        return "" if self.guide is None else type(self.guide).__name__

    def _bind(self) -> Pair | EffectsKernel:
        check_one_draw()
        check_priors_are_handled(self.model, self.guide)
        return bind(self.model, self.guide, self.num_particles, self.max_plate_nesting)

    def _make_online_kernel(self) -> PlainKernel | EffectsKernel:
        bound = self._bind()
        if isinstance(bound, Pair):
            # A copy: training in place would change some of the values, those that are the parameters themselves.
            return online_kernel(copy.deepcopy(bound), self.num_particles, self.backend)
        compiled_pair(None, self.backend, with_inputs=False)
        return bound

    def _slice(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self._kernel, EffectsKernel):
            return Call(args, kwargs)
        assert self._kernel is not None
        y_t, u_t = bin_arguments(*args, **kwargs)
        slice_t, self._memory = self._kernel.next_slice(y_t, u_t, self._memory, first=self._particles is None)
        return slice_t

    def _check_bin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(self.model, StateSpaceModel):
            return
        y_t, u_t = bin_arguments(*args, **kwargs)
        for name, value in (("y_t", y_t), ("u_t", u_t)):
            if value is not None and value.dim() != 2:
                raise ValueError(
                    f"One time bin `{name}` has shape trials x {'features' if name == 'y_t' else 'inputs'}, got "
                    f"{tuple(value.shape)}; whole sequences go to `run`."
                )
        self.model.check_data(y_t.unsqueeze(-2), None if u_t is None else u_t.unsqueeze(-2))

    def _current(self) -> Particles:
        if self._particles is None:
            raise RuntimeError("Nothing was filtered yet: call `init` with the first time bin.")
        return self._particles

    @property
    def state(self) -> State:
        """The particles now: tensors `particles x trials x ...` by name."""
        return self._current().state

    @property
    def log_weights(self) -> Tensor:
        """Their normalised log weights, `particles x trials`."""
        return self._current().log_weights

    @property
    def ess(self) -> Tensor:
        """Their effective sample size, `trials`."""
        return self._current().ess

    @property
    def ancestors(self) -> Tensor:
        """The index of each particle's ancestor at the time bin before, `particles x trials`."""
        return self._current().ancestors

    @property
    def log_evidence(self) -> Tensor:
        """The estimate of the log evidence of all time bins since `init`, in nats, `trials`."""
        self._current()
        assert self._log_evidence is not None
        return self._log_evidence

    def get_empirical(self) -> dict[Any, dist.Empirical]:
        """Return the filtering distribution of every state tensor; with trials in the batch shape."""
        log_weights = self.log_weights
        if log_weights.dim() == 1:
            return {name: dist.Empirical(value, log_weights) for name, value in self.state.items()}
        # `Empirical` takes its samples along the last dim of the weights.
        trial_dim = self.max_plate_nesting
        return {
            name: dist.Empirical(value.movedim(trial_dim, 0).contiguous(), log_weights.mT.contiguous())
            for name, value in self.state.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the online state as tensors; the random number generator is not part of it."""
        particles = self._current()
        record = {f"state.{name}": value for name, value in particles.state.items()}
        record |= {f"memory.{name}": value for name, value in self._memory.items()}
        for name in ("log_weights", "increment", "ess", "ancestors", "resampled", "ancestor_log_prob"):
            record[name] = getattr(particles, name)
        return record | {"log_evidence": self.log_evidence, "time": torch.tensor(self._time)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a state that `state_dict` returned.

        Raises:
            ValueError: if the state lacks an entry, or has another number of particles.
        """
        rest = dict(state_dict)

        def section(prefix: str) -> State:
            names = [name for name in rest if name.startswith(prefix)]
            return {name.removeprefix(prefix): rest.pop(name) for name in names}

        state, memory = section("state."), section("memory.")
        expected = {"log_weights", "increment", "ess", "ancestors", "resampled", "ancestor_log_prob"}
        expected |= {"log_evidence", "time"}
        if set(rest) != expected:
            raise ValueError(
                f"Not the state of a SMCFilter: entries {sorted(expected - set(rest))} are missing, "
                f"{sorted(set(rest) - expected)} are unknown."
            )
        if rest["log_weights"].shape[0] != self.num_particles:
            raise ValueError(
                f"The state has {rest['log_weights'].shape[0]} particles, the filter "
                f"num_particles={self.num_particles}."
            )
        self._clear()
        self._memory = memory
        self._log_evidence, self._time = rest.pop("log_evidence"), int(rest.pop("time"))
        self._particles = Particles(state=state, **rest)
