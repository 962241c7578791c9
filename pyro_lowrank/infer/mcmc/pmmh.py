"""Pseudo-marginal Metropolis-Hastings: a random walk over parameters, by estimates of the evidence."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

from pyro_lowrank.errors import check_positive
from pyro_lowrank.infer.mcmc.filtering import FilteringKernel, without_latents
from pyro_lowrank.infer.mcmc.sampled import STARTS, Values, no_start, own_store
from pyro_lowrank.infer.mcmc.walk import AdaptiveWalk
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.resampling import Resampler
from pyro_lowrank.smc.runs import BACKENDS


class PMMH(FilteringKernel):
    r"""Kernel of `pyro.infer.MCMC` that moves the parameters with priors by a random walk and never sees the latents.

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
        step_size: standard deviation of the first proposals.
        target_accept_prob: which the scale of the proposals is adapted to.
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
        step_size: float = 0.1,
        target_accept_prob: float = 0.234,
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
        self.target_accept_prob = check_positive("target_accept_prob", target_accept_prob)
        if self.target_accept_prob >= 1:
            raise ValueError(f"`target_accept_prob` must be below 1, got {target_accept_prob}.")

    def setup(self, warmup_steps: int, y: Tensor, u: Tensor | None = None) -> None:
        """Find where the chain starts: parameters by `init_strategy` at which the filter lives."""
        self.model.check_data(y, u)
        self._warmup_steps = warmup_steps
        with own_store():
            self._begin(y, u)
            theta, self._log_joint, z = self._start()
        self._walk = AdaptiveWalk(theta, self.step_size, self.target_accept_prob)
        self._draws, self._accepted, self._mean_accept_prob = 0, 0, 0.0
        self._initial_params = {**theta, "z": z}

    def _start(self) -> tuple[Values, float, Tensor]:
        for theta in self._starts():
            log_joint, z = self._evaluate(theta)
            if z is not None:
                return theta, log_joint, z
        raise no_start(self.model, self._initial_params, STARTS, None)

    def _evaluate(self, theta: Values) -> tuple[float, Tensor | None]:
        """Return the estimate of log p(theta, y), -inf where the filter dies, and latents drawn from the filter."""
        self._sampled.assign(theta)
        log_prior = self._sampled.log_prior(theta).item()
        if not math.isfinite(log_prior):
            return -math.inf, None
        try:
            posterior = self._smc.run(*self._data)
        except (SMCFailed, torch.linalg.LinAlgError):
            return -math.inf, None
        log_joint = log_prior + posterior.log_evidence.double().sum().item()
        if not math.isfinite(log_joint):
            return -math.inf, None
        return log_joint, posterior.smooth(1, method="genealogy")[0]

    @torch.no_grad()
    def sample(self, params: Values) -> Values:
        """Propose parameters, run the filter at them, and accept them or not."""
        theta, z = without_latents(params), params["z"]
        proposed = self._walk.propose(theta)
        with own_store():
            log_joint, path = self._evaluate(proposed)
        accept_prob = math.exp(min(0.0, log_joint - self._log_joint))
        # A number from torch's generator, whatever comes of it: seeds fix the chain.
        accepted = torch.rand(()).item() < accept_prob
        if accepted and path is not None:
            theta, z, self._log_joint = proposed, path, log_joint
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
        self.__dict__.pop("_walk", None)
