"""What a particle filter run over whole sequences leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.generators import RNG, drawn_from
from pyro_lowrank.infer.calibration import draw_pit
from pyro_lowrank.infer.deconvolve import Deconvolution, deconvolve, draw_traces
from pyro_lowrank.infer.forecast import (
    Forecast,
    Replicates,
    draw_forecast,
    draw_replicates,
    end_of_data,
    entry_log_likelihood,
    expected_observations,
)
from pyro_lowrank.infer.latents import LEVEL, NUM_DRAWS, Latents
from pyro_lowrank.infer.paths import along, bins_of, draw_paths, time_dim
from pyro_lowrank.infer.replay import Replayed, replay
from pyro_lowrank.infer.values import values_of
from pyro_lowrank.observations.driven import REMEMBERED
from pyro_lowrank.smc.loop import FilterHistory, State
from pyro_lowrank.smc.replayed import ReplayedTransitions
from pyro_lowrank.smc.smoothing import check_forgets, smoothed_log_weights
from pyro_lowrank.smc.transitions import BuiltInTransitions


@dataclass(frozen=True)
class SMCPosterior:
    r"""The filtering distributions of a run: weighted particles of every time bin, and the evidence.

    Attributes:
        particles: state tensors by name, `particles x trials x time x ...`; "z" are the latents of built-in models.
        log_weights: normalised, `time x particles x trials`.
        ancestors: index of each particle's ancestor at the time bin before, `time x particles x trials`.
        log_evidence_increments: log p(y_t | y_{<t}) estimates in nats, `time x trials`.
        ess: effective sample sizes before resampling, `time x trials`.
        resampled: whether ancestors were drawn anew before the time bin, `time x trials`.
        transitions: the model of the run, which smoothing and forecasts need.
        again: runs the same filter on the same recording once more.
        start: time bin of the recording at which it begins: above 0 for the last ones of an online filter.
        guide: the class of what proposed the particles; empty where the model itself did.
    """

    particles: State
    log_weights: Tensor
    ancestors: Tensor
    log_evidence_increments: Tensor
    ess: Tensor
    resampled: Tensor
    transitions: BuiltInTransitions | ReplayedTransitions | None = field(default=None, repr=False, compare=False)
    again: Callable[[], SMCPosterior] | None = field(default=None, repr=False, compare=False)
    start: int = 0
    guide: str = field(default="", compare=False)

    @classmethod
    def from_history(
        cls,
        history: FilterHistory,
        batch_dims: int,
        transitions: BuiltInTransitions | ReplayedTransitions | None = None,
        again: Callable[[], SMCPosterior] | None = None,
        start: int = 0,
        guide: str = "",
    ) -> SMCPosterior:
        """Collect what the loop over time stored."""
        assert history.states is not None
        assert history.log_weights is not None
        assert history.ancestors is not None
        return cls(
            particles={n: value.movedim(0, min(batch_dims, value.dim() - 1)) for n, value in history.states.items()},
            log_weights=history.log_weights,
            ancestors=history.ancestors,
            log_evidence_increments=history.increments,
            ess=history.ess,
            resampled=history.resampled,
            transitions=transitions,
            again=again,
            start=start,
            guide=guide,
        )

    @property
    def log_evidence(self) -> Tensor:
        """The estimate of log p(y) in nats, `trials`; its exponential is without bias."""
        return self.log_evidence_increments.sum(0)

    @property
    def num_particles(self) -> int:
        """The number of particles."""
        return self.log_weights.shape[1]

    @torch.no_grad()
    def latents(self, level: float = LEVEL, *, num_draws: int = NUM_DRAWS, method: str = "backward") -> Latents:
        r"""Return the latents given the whole recording: means, and bands that hold `level` of the posterior.

        .. math:: E[z_t \mid y_{1:T}], \qquad P(l_t \le z_t \le u_t \mid y_{1:T}) = p

        Estimated from paths that `smooth` draws. `mean` and `variance` are those of the filter, given the past alone.

        Args:
            level: share of the posterior within the bands, p.
            num_draws: number of paths.
            method: as of `smooth`.

        Returns:
            `Latents`: `mean`, `lower` and `upper`, `trials x time x rank` each.

        Raises:
            ValueError: if the transition density of a user-written model cannot be replayed.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=1, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=9), observation)
            >>> print(plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(torch.randn(4, 10, 3)).latents())
            Latents: 4 trials x 10 time bins x 1 latent, smoothed, with 95 % bands
              latent 1 ...
        """
        return Latents.of_draws(self.smooth(num_draws, method=method), level, self._lengths)

    def mean(self, name: str = "z") -> Tensor:
        """Return the filtering means, `trials x time x ...`."""
        return (self._weights(name) * self.particles[name]).sum(0)

    def variance(self, name: str = "z") -> Tensor:
        """Return the filtering variances, `trials x time x ...`."""
        deviation = self.particles[name] - self.mean(name)
        return (self._weights(name) * deviation.square()).sum(0)

    @torch.no_grad()
    def smooth(
        self, num_draws: int, *, method: str = "backward", num_moves: int = 30, name: str = "z", generator: RNG = None
    ) -> Tensor:
        r"""Draw paths of the latents given the whole recording, `draws x trials x time x rank`.

        .. math:: z_{1:T} \sim p(z_{1:T} \mid y_{1:T})

        Args:
            num_draws: number of paths.
            method: `"backward"` draws each ancestor afresh among all particles; `"mcmc"` by a Markov chain whose cost
                does not grow with the number of particles; `"genealogy"` takes the filter's own, which share their
                ancestors a few time bins back.
            num_moves: proposals per path and time bin of `"mcmc"`.
            name: of the state tensor to return.
            generator: of the random numbers; torch's global one if None.

        Raises:
            ValueError: if the transition density of a user-written model cannot be replayed.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(torch.randn(4, 10, 3))
            >>> posterior.smooth(20).shape
            torch.Size([20, 4, 10, 2])

        References:
            Godsill, Doucet and West (2004), J. Am. Stat. Assoc. 99:156; Bunch and Godsill (2013), IEEE TSP 61:956.
        """
        self._check_name(name)
        with drawn_from(generator):
            return self._along(name, self._paths(num_draws, method, num_moves))

    @torch.no_grad()
    def smooth_states(self, num_draws: int, *, method: str = "backward", num_moves: int = 30) -> State:
        """Draw paths of all state tensors, the same ones, by name; arguments and shapes are those of `smooth`."""
        paths = self._paths(num_draws, method, num_moves)
        return {name: self._along(name, paths) for name in self.particles}

    @torch.no_grad()
    def replay(self, states: State) -> Replayed:
        """Return what a user-written model observes, draws anew and computes along paths that `smooth_states` drew.

        Raises:
            ValueError: if the model is built in, which `replicate` is for, or cannot be replayed.
        """
        transitions = self._model()
        if isinstance(transitions, BuiltInTransitions):
            raise ValueError("`replay` runs a program of one's own; for a StateSpaceModel use `replicate(z)`.")
        return replay(transitions, states)

    def _paths(self, num_draws: int, method: str, num_moves: int) -> Tensor:
        log_weights, ancestors = self._per_trial(self.log_weights), self._per_trial(self.ancestors)
        # The filter's own paths ask for no density.
        model = self.transitions if method == "genealogy" else self._model()
        return draw_paths(model, self.particles, log_weights, ancestors, num_draws, method, num_moves)

    @torch.no_grad()
    def smoothed(self) -> SMCPosterior:
        """Return the same particles weighed given the whole recording, for `mean` and `variance` without drawing paths.

        It costs the square of the number of particles, per time bin and trial.

        Raises:
            ValueError: if observations remember the latents.

        References:
            Doucet, Godsill and Andrieu (2000), Stat. Comput. 10:197.
        """
        transitions = self._model()
        check_forgets(transitions.to_come() if isinstance(transitions, BuiltInTransitions) else None, "`smoothed`")
        states = bins_of(self.particles, transitions.batch_dims)
        found = smoothed_log_weights(transitions, states, self._per_trial(self.log_weights))
        return replace(self, log_weights=found.reshape(self.log_weights.shape))

    @torch.no_grad()
    def forecast(self, horizon: int, u: Tensor | None = None, *, num_draws: int = 100) -> Forecast:
        """Draw latents and observations of the time bins after each trial's last one with data, with both noises.

        A trial that was padded, or whose recording ends early, goes on from its own last recorded bin: `start`.

        Args:
            horizon: number of time bins.
            u: inputs of those time bins, `trials x horizon x inputs`.
            num_draws: number of draws.

        Returns:
            A named tuple `(z, y, mean, start)`, `draws x trials x horizon x ...`.

        Raises:
            ValueError: if the inputs do not fit the model, or the model is written by the user.
        """
        check_positive_int("horizon", horizon)
        check_positive_int("num_draws", num_draws)
        model = self._built_in()
        return draw_forecast(model, self.particles, self.log_weights, horizon, u, num_draws, start=self.start)

    @torch.no_grad()
    def predict(self, z: Tensor | None = None) -> Tensor:
        """Return the expected observations, `trials x time x features`: rates of held-out features, missing entries.

        Args:
            z: latents given the whole recording, from `smooth`; if None those given the past, weighted.
        """
        if z is not None:
            return expected_observations(self._built_in(), z, None)
        remembered = self.particles.get(REMEMBERED)
        return expected_observations(self._built_in(), self.particles["z"], self.log_weights, remembered)

    @torch.no_grad()
    def prequential_pit(self) -> Tensor:
        r"""Draw where each entry of the recording lies in what the filter predicted of it, `trials x time x features`.

        .. math:: P(Y_t < y_t \mid y_{<t}) + U\, P(Y_t = y_t \mid y_{<t}), \qquad U \sim \mathrm{Uniform}(0, 1)

        by one draw of the next observation per particle. Where the model is right these are uniform, and independent
        over time; NaN where nothing was recorded. `plots.posterior.plot_calibration` draws them.

        References:
            Dawid (1984), J. R. Stat. Soc. A 147:278; Czado, Gneiting and Held (2009), Biometrics 65:1254.
        """
        model, z, remembered = self._built_in(), self.particles["z"], self.particles.get(REMEMBERED)
        return draw_pit(model, z, self.log_weights, first=self.start == 0, remembered=remembered)

    @torch.no_grad()
    def replicate(self, z: Tensor) -> Replicates:
        """Draw new observations of the same trials and time bins, for posterior predictive checks.

        Args:
            z: latents, `draws x trials x time x rank`, as `smooth` returns them.

        Returns:
            A named tuple `(mean, y)`, `draws x trials x time x features`.
        """
        return draw_replicates(self._built_in(), z)

    @torch.no_grad()
    def entry_log_likelihood(self, z: Tensor) -> Tensor:
        """Return log p(y_ti | z_t) in nats along paths, `draws x trials x time x features`, NaN where missing.

        Args:
            z: latents, `draws x trials x time x rank`, as `smooth` returns them.

        Raises:
            ValueError: if features are not independent given the latents.
        """
        return entry_log_likelihood(self._built_in(), z)

    @torch.no_grad()
    def deconvolve(self, z: Tensor) -> Deconvolution:
        r"""Return what drives each feature, given the whole recording, of observations that remember the latents.

        Along each path a Kalman smoother tells the states, and what drives them beside the latents.

        Args:
            z: latents, `draws x trials x time x rank`, as `smooth` returns them.

        Returns:
            A named tuple `(drive, mean, variance, state, state_variance)`, over draws and given each.

        Raises:
            ValueError: if observations do not remember the latents.
        """
        return deconvolve(self._built_in(), z)

    @torch.no_grad()
    def traces(self, z: Tensor) -> dict[str, Tensor]:
        """Return draws of what `deconvolve` tells, one along each path, by name: such as `"rates"`, `"calcium"`."""
        return draw_traces(self._built_in(), z)

    def rerun(self) -> SMCPosterior:
        """Return another run of the same filter on the same recording, independent of this one.

        Raises:
            ValueError: if the parameters of the model have changed since, or the posterior knows no filter.
        """
        if self.again is None:
            raise ValueError("This posterior does not know its filter: take one that `SMCFilter.run` returned.")
        other = self.again()
        if isinstance(self.transitions, BuiltInTransitions) and isinstance(other.transitions, BuiltInTransitions):
            before, after = (values_of(t) for t in (self.transitions, other.transitions))
            if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                raise ValueError(
                    "The parameters of the model have changed since this run: run the filter anew for all chains, or "
                    "export this run alone (chains=1)."
                )
        return other

    @property
    def recording(self) -> tuple[Tensor | None, Tensor | None]:
        """The recording and the inputs that the filter saw, `trials x time x ...`; None for a user's own model."""
        model = self.transitions
        return (model.data.recording.with_gaps, model.data.u) if isinstance(model, BuiltInTransitions) else (None, None)

    @property
    def mean_name(self) -> str | None:
        """What the expected observations are called: `"rates"` of spikes, else `"mean"`; None for a user's model."""
        model = self.transitions
        return getattr(model.emission, "mean_name", "mean") if isinstance(model, BuiltInTransitions) else None

    def _model(self) -> BuiltInTransitions | ReplayedTransitions:
        if self.transitions is None:
            raise ValueError("This posterior does not know its model: take one that `SMCFilter.run` returned.")
        return self.transitions

    def _built_in(self) -> BuiltInTransitions:
        transitions = self._model()
        if not isinstance(transitions, BuiltInTransitions):
            raise ValueError(
                "Forecasts and predictions need a StateSpaceModel under a built-in guide, got a user-written pair: "
                "draw paths with `smooth_states`, and see `replay`, or run the model's `step` on from their ends."
            )
        return transitions

    @property
    def _lengths(self) -> Tensor:
        """Time bins of each trial up to its last one with data, `trials`; all of them for a user's own model."""
        if isinstance(self.transitions, BuiltInTransitions):
            return end_of_data(self.transitions) + 1
        steps, trials = self.ess.shape[0], self.ess.shape[1] if self.ess.dim() > 1 else 1
        return torch.full((trials,), steps, device=self.ess.device)

    def _per_trial(self, value: Tensor) -> Tensor:
        return value if value.dim() == 3 else value.unsqueeze(-1)

    def _time_dim(self, value: Tensor) -> int:
        return time_dim(value, self.log_weights.dim() - 1 if self.transitions is None else self.transitions.batch_dims)

    def _along(self, name: str, paths: Tensor) -> Tensor:
        value = self.particles[name]
        return along(value, paths, self._time_dim(value), by_trial=self.log_weights.dim() == 3)

    def _check_name(self, name: str) -> None:
        if name not in self.particles:
            raise KeyError(f"No state {name!r}; there are {sorted(map(str, self.particles))}.")

    def _weights(self, name: str) -> Tensor:
        self._check_name(name)
        # time x particles x trials -> particles x trials x time, then the state's own dims.
        weights = self.log_weights.exp().movedim(0, -1)
        return weights.reshape(*weights.shape, *(1,) * (self.particles[name].dim() - weights.dim()))

    def __str__(self) -> str:
        num_steps, num_particles = self.log_weights.shape[:2]
        lengths = self._lengths
        # What pads a trial carries no evidence, and would hide what the others carry.
        within = torch.arange(num_steps, device=lengths.device).unsqueeze(-1) < lengths
        ess, resampled = (value.reshape(num_steps, -1)[within] for value in (self.ess, self.resampled.float()))
        evidence = self.log_evidence.sum().item()
        shortest = int(lengths.min())
        ragged = f"{shortest} to " if shortest < num_steps else ""
        return (
            f"SMCPosterior: {len(lengths)} trials x {ragged}{num_steps} time bins, {num_particles} particles\n"
            f"  log evidence    {evidence:.2f} nats, {evidence / int(lengths.sum()):.4f} per bin and trial\n"
            f"  effective size  {ess.mean().item():.1f} on average, {ess.min().item():.1f} at worst\n"
            f"  resampled       {100 * resampled.mean().item():.0f} % of time bins\n"
            "  latents()       means and bands given the whole recording"
        )
