"""Pseudo-marginal Metropolis-Hastings: steps of parameters, blind or uphill, by estimates of the evidence."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.infer.mcmc.filtering import FilteringKernel, without_latents
from pyro_lowrank.infer.mcmc.potential import Potential
from pyro_lowrank.infer.mcmc.sampled import STARTS, Values, no_start, own_store
from pyro_lowrank.infer.mcmc.walk import AdaptiveLangevin, AdaptiveWalk
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.resampling import Resampler
from pyro_lowrank.smc.runs import BACKENDS


class LangevinSteps:
    r"""Lets `PMMH` propose uphill: along the gradient of the log posterior, which Fisher's identity estimates.

    .. math:: \nabla_\theta \log p(y \mid \theta) = E[\nabla_\theta \log p(z_{1:T}, y \mid \theta) \mid y]

    by paths of the same filter that estimates the evidence. The estimate may be poor: the chain stays exact, and moves
    less.

    Args:
        num_paths: number of paths.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> sampled = plr.with_priors(model, only=["dynamics.decay", "dynamics.noise_scale"])
        >>> kernel = PMMH(sampled, plr.OptimalGuide(sampled), 100, steps=LangevinSteps(num_paths=8))

    References:
        Dahlin, Lindsten and Schön (2015), Stat. Comput. 25:81.
    """

    def __init__(self, num_paths: int = 8) -> None:
        self.num_paths = check_positive_int("num_paths", num_paths)


class _Estimate(NamedTuple):
    """What the filter says at some parameters: log p(theta, y), a path, and the gradient where it is asked for."""

    log_joint: float
    path: Tensor | None
    slope: Values


_DEAD = _Estimate(-math.inf, None, {})


class PMMH(FilteringKernel):
    r"""Kernel of `pyro.infer.MCMC` that moves the parameters with priors and never conditions on latents.

    Unconstrained parameters are proposed, and accepted with probability

    .. math::

        \min\Big(1, \frac{\hat Z(\theta')\, p(\theta')}{\hat Z(\theta)\, p(\theta)}\Big), \qquad
        E[\hat Z(\theta)] = p(y_{1:T} \mid \theta)

    by the estimates of a particle filter. Those being unbiased, the posterior is exact, whatever the number of
    particles; the fewer there are, the rarer is an acceptance: take as many as keep the standard deviation of the log
    evidence near 1. For a few parameters, and as a check of `ParticleGibbs`. Where all particles of a trial die the
    estimate is zero, and the proposal is rejected.

    The proposal's covariance and scale are adapted in the warm-up, and fixed afterwards. The draws,
    `mcmc.get_samples()`, are the parameters by their Pyro site names, and latents `"z"`, `trials x time x rank`, of the
    filter that was accepted last. Chains start from draws of the prior.

    Args:
        model: the model, some of whose parameters have priors; those without one stay as they are.
        guide: a guide made from it; the bootstrap one if None.
        num_particles: number of particles.
        resampler: how ancestors are drawn; systematic if None.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles.
        steps: how parameters are proposed: a random walk if None, or `LangevinSteps`.
        step_size: standard deviation of the first proposals.
        target_accept_prob: which the scale of the proposals is adapted to; of a random walk 0.234 if None, uphill 0.45.
        init_strategy: how chains start, one of those of `pyro.infer.autoguide.initialization`.
        backend: as of `SMCFilter`.

    Raises:
        TypeError: if the model or guide is not built in.
        ValueError: if no parameter has a prior, the data do not fit the model, or no start can be found.

    Example::

        >>> import pyro, pyro.distributions as dist, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> y = model.simulate(num_trials=2, num_steps=10).y
        >>> model.dynamics.decay = pyro.nn.PyroSample(dist.Beta(9.0, 1.0))
        >>> kernel = PMMH(model, plr.OptimalGuide(model), num_particles=50)
        >>> mcmc = pyro.infer.MCMC(kernel, num_samples=4, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run(y)
        >>> {name: tuple(value.shape) for name, value in sorted(mcmc.get_samples().items())}
        {'dynamics.decay': (4,), 'z': (4, 2, 10, 1)}

    References:
        Andrieu, Doucet and Holenstein (2010), J. R. Stat. Soc. B 72:269; Andrieu and Roberts (2009), Ann. Stat. 37:697;
        Andrieu and Thoms (2008), Stat. Comput. 18:343.
    """

    backends = BACKENDS

    def __init__(
        self,
        model: StateSpaceModel,
        guide: Any = None,
        num_particles: int = 500,
        *,
        resampler: Resampler | None = None,
        ess_threshold: float = 0.5,
        steps: LangevinSteps | None = None,
        step_size: float = 0.1,
        target_accept_prob: float | None = None,
        init_strategy: Callable[[Any], Any] = init_to_sample,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            model,
            guide,
            num_particles,
            resampler=resampler,
            ess_threshold=ess_threshold,
            init_strategy=init_strategy,
            backend=backend,
        )
        self.step_size = check_positive("step_size", step_size)
        if steps is not None and not isinstance(steps, LangevinSteps):
            raise TypeError(f"`steps` must be LangevinSteps(...) or None, for a random walk, got {steps!r}.")
        self.steps = steps
        target_accept_prob = (0.234 if steps is None else 0.45) if target_accept_prob is None else target_accept_prob
        self.target_accept_prob = check_positive("target_accept_prob", target_accept_prob)
        if self.target_accept_prob >= 1:
            raise ValueError(f"`target_accept_prob` must be below 1, got {target_accept_prob}.")

    def setup(self, warmup_steps: int, y: Tensor, u: Tensor | None = None) -> None:
        """Find where the chain starts: parameters by `init_strategy` at which the filter lives."""
        self.model.check_data(y, u)
        self._warmup_steps = warmup_steps
        with own_store():
            self._begin(y, u)
            self._potential = None if self.steps is None else Potential(self._sampled, y, u)
            theta, self._last = self._start()
        kind = AdaptiveWalk if self.steps is None else AdaptiveLangevin
        self._walk = kind(theta, self.step_size, self.target_accept_prob)
        self._draws, self._accepted, self._mean_accept_prob = 0, 0, 0.0
        assert self._last.path is not None
        self._initial_params = {**theta, "z": self._last.path}

    def _start(self) -> tuple[Values, _Estimate]:
        for theta in self._starts():
            found = self._evaluate(theta)
            if found.path is not None:
                return theta, found
        raise no_start(self.model, self._initial_params, STARTS, None)

    def _evaluate(self, theta: Values) -> _Estimate:
        """Return the estimate of log p(theta, y), -inf where the filter dies, and latents drawn from the filter."""
        log_prior = self._sampled.log_prior(theta).item()
        if not math.isfinite(log_prior):
            return _DEAD
        try:
            posterior = self._smc.run(*self._data)
            log_joint = log_prior + posterior.log_evidence.double().sum().item()
            if not math.isfinite(log_joint):
                return _DEAD
            slope = self._slope(theta, posterior)
        except (SMCFailed, torch.linalg.LinAlgError):
            return _DEAD
        return _Estimate(log_joint, posterior.smooth(1, method="genealogy")[0], slope)

    def _slope(self, theta: Values, posterior: Any) -> Values:
        """Return the estimate of the gradient of the log posterior; nothing where steps are blind."""
        if self._potential is None or self.steps is None:
            return {}
        paths = posterior.smooth(self.steps.num_paths)
        total = {name: torch.zeros_like(value) for name, value in theta.items()}
        for path in paths:
            self._potential.z = path
            for name, value in self._potential.gradient(theta).items():
                total[name] -= value / len(paths)
        # Where it is no number the step is blind.
        return {name: value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for name, value in total.items()}

    @torch.no_grad()
    def sample(self, params: Values) -> Values:
        """Propose parameters, run the filter at them, and accept them or not."""
        theta, z = without_latents(params), params["z"]
        proposed = self._walk.propose(theta, self._last.slope)
        with own_store():
            found = self._evaluate(proposed)
        log_ratio = found.log_joint - self._last.log_joint
        if found.path is not None:
            log_ratio += self._walk.log_ratio(theta, self._last.slope, proposed, found.slope)
        accept_prob = math.exp(min(0.0, log_ratio))
        # A number from torch's generator, whatever comes of it: seeds fix the chain.
        accepted = torch.rand(()).item() < accept_prob
        if accepted and found.path is not None:
            theta, z, self._last = proposed, found.path, found
        self._draws += 1
        warm = self._draws > self._warmup_steps
        if warm:
            self._accepted += accepted
        else:
            self._walk.adapt(theta, accept_prob)
        since = self._draws - self._warmup_steps if warm else self._draws
        self._mean_accept_prob += (accept_prob - self._mean_accept_prob) / since
        return {**theta, "z": z}

    def logging(self) -> OrderedDict[str, str]:
        """Return what is shown while it runs: the scale of the proposals, and acceptance."""
        return OrderedDict([("scale", f"{self._walk.scale:.2e}"), ("acc. prob", f"{self._mean_accept_prob:.3f}")])

    def diagnostics(self) -> dict[str, Any]:
        """Return the acceptance rate after the warm-up."""
        return {"acceptance rate": self._accepted / max(1, self._draws - self._warmup_steps)}

    def cleanup(self) -> None:
        """Forget the chain."""
        super().cleanup()
        for name in ("_walk", "_potential", "_last"):
            self.__dict__.pop(name, None)
