"""Particle Gibbs: latents by conditional sequential Monte Carlo, parameters given them by Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc import NUTS
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.infer.filter import SMCFilter
from pyro_lowrank.infer.mcmc.filtering import FilteringKernel, without_latents
from pyro_lowrank.infer.mcmc.marginal import RightVectors, without
from pyro_lowrank.infer.mcmc.potential import Potential
from pyro_lowrank.infer.mcmc.sampled import STARTS, Values, no_start, own_store
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.conditional import check_scheme
from pyro_lowrank.smc.resampling import Resampler

SWEEPS = ("ancestor", "backward")

# Each takes as long as a gradient, once per chain.
_MOST_CURVATURES = 500


class ParticleGibbs(FilteringKernel):
    r"""Kernel of `pyro.infer.MCMC` for the latents and the parameters with priors of a state-space model.

    .. math::

        z_{1:T} &\sim p(z_{1:T} \mid \theta, y_{1:T}) \quad \text{by conditional sequential Monte Carlo} \\
        \theta &\sim p(\theta \mid z_{1:T}, y_{1:T}) \quad \text{by the no-U-turn sampler}

    in turn, each by a step that leaves it invariant, so that the posterior of both is kept exactly, however few the
    particles are. What has a prior (`PyroSample`) is sampled; parameters without one stay as they are when the run
    starts. The mass matrix and step size of the second step are adapted in the warm-up.

    The draws, `mcmc.get_samples()`, are the parameters by their Pyro site names, and the latents `"z"`, `trials x time
    x rank`. Chains start from draws of the prior.

    Args:
        model: the model, some of whose parameters have priors.
        guide: a guide made from it; the bootstrap one if None.
        num_particles: number of particles, that pinned to the latents before included.
        sweep: how the past of a path is drawn: `"ancestor"` sampling, or `"backward"` simulation.
        num_sweeps: how often the latents are drawn before the parameters are.
        resampler: how ancestors are drawn; systematic if None.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles.
        target_accept_prob: of the steps for parameters.
        full_mass: whether the mass matrix is dense.
        max_tree_depth: of the no-U-turn sampler: at most 2 to that power gradients for one draw.
        init_strategy: how chains start, one of those of `pyro.infer.autoguide.initialization`.
        backend: `"plain"` tensor operations, or `"auto"`: the network's means compiled where they can be.

    Raises:
        TypeError: if the model or guide is not built in.
        ValueError: if no parameter has a prior, the data do not fit the model, the resampling has no conditional form,
            or no start can be found.

    Example::

        >>> import pyro, pyro.distributions as dist, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> y = model.simulate(num_trials=2, num_steps=10).y
        >>> model.dynamics.decay = pyro.nn.PyroSample(dist.Beta(9.0, 1.0))
        >>> kernel = ParticleGibbs(model, plr.OptimalGuide(model), num_particles=10)
        >>> mcmc = pyro.infer.MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run(y)
        >>> {name: tuple(value.shape) for name, value in sorted(mcmc.get_samples().items())}
        {'dynamics.decay': (3,), 'z': (3, 2, 10, 1)}

    References:
        Andrieu, Doucet and Holenstein (2010), J. R. Stat. Soc. B 72:269; Lindsten, Jordan and Schön (2014), J. Mach.
        Learn. Res. 15:2145; Hoffman and Gelman (2014), ibid. 1593.
    """

    least_particles = 2
    backends = ("auto", "plain")

    def __init__(
        self,
        model: StateSpaceModel,
        guide: Any = None,
        num_particles: int = 50,
        *,
        sweep: str = "ancestor",
        num_sweeps: int = 1,
        resampler: Resampler | None = None,
        ess_threshold: float = 0.5,
        target_accept_prob: float = 0.8,
        full_mass: bool = False,
        max_tree_depth: int = 10,
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
        self.sweep = check_choice("sweep", sweep, SWEEPS)
        self.num_sweeps = check_positive_int("num_sweeps", num_sweeps)
        check_scheme(self._scheme.resampler)
        self._nuts_options: dict[str, Any] = {
            "target_accept_prob": target_accept_prob,
            "full_mass": full_mass,
            "max_tree_depth": check_positive_int("max_tree_depth", max_tree_depth),
        }

    def setup(self, warmup_steps: int, y: Tensor, u: Tensor | None = None) -> None:
        """Find where the chain starts: parameters by `init_strategy`, latents by a filter there."""
        self.model.check_data(y, u)
        with own_store():
            self._begin(y, u)
            self._potential = Potential(self._sampled, y, u, RightVectors.of(self._sampled))
            theta, z = self._start()
            self._slow = SMCFilter(
                self._sampled.model,
                self._sampled.guide,
                self.num_particles,
                **self._filter_options | {"backend": "plain"},
            )
            self._potential.z = z
            self._nuts = NUTS(potential_fn=self._potential, **self._nuts_options)
            self._nuts.initial_params = without(theta, self._potential.block)
            self._nuts.setup(warmup_steps)
            if warmup_steps:
                self._scale_steps(without(theta, self._potential.block))
        self._initial_params = {**theta, "z": z}
        self._moved, self._draws, self._stuck, self._warmup_steps = 0.0, 0, 0, warmup_steps

    def _start(self) -> tuple[Values, Tensor]:
        """Return unconstrained parameters at which the filter lives, and latents there."""
        given = self._initial_params
        why: Exception | None = None
        for theta in self._starts():
            self._sampled.assign(theta)
            try:
                z = self._smc.run(*self._data).smooth(1)[0] if given is None or "z" not in given else given["z"]
            except (SMCFailed, torch.linalg.LinAlgError) as failure:
                why = failure
                continue
            if self._is_finite(theta, z):
                return theta, z
        raise no_start(self.model, given, STARTS, why)

    def _is_finite(self, theta: Values, z: Tensor) -> bool:
        """Whether parameters and latents have a density."""
        self._potential.z = z
        try:
            with torch.no_grad():
                return bool(z.isfinite().all() and self._potential(theta).isfinite())
        except torch.linalg.LinAlgError:
            return False

    def _scale_steps(self, theta: Values) -> None:
        """Start the warm-up with steps of the size that the density has in each direction, not of one size for all.

        Readout and noise are known a hundred times better than biases: until the first adaptation every draw would
        take the longest trajectory that is allowed.
        """
        if sum(value.numel() for value in theta.values()) > _MOST_CURVATURES:
            return
        curvature = self._potential.curvature(theta).abs().clamp(min=1.0).nan_to_num(nan=1.0)
        adapter = self._nuts.mass_matrix_adapter
        variance = curvature.reciprocal()
        adapter.inverse_mass_matrix = {
            sites: variance if each.dim() == 1 else variance.diag_embed()
            for sites, each in adapter.inverse_mass_matrix.items()
        }
        self._nuts._adapter.reset_step_size_adaptation(self._nuts.initial_params)

    def sample(self, params: Values) -> Values:
        """Draw the latents given the parameters, then these given the latents."""
        theta = without_latents(params)
        with own_store():
            self._sampled.assign(theta)
            z = params["z"]
            for _ in range(self.num_sweeps):
                z = self._draw_latents(z, theta)
            self._draws += 1
            first = (z[:, 0] != params["z"][:, 0]).any(-1).double().mean().item()
            self._moved += (first - self._moved) / self._draws
            self._potential.z = z
            # The density is another one now.
            self._nuts.clear_cache()
            theta = self._potential.complete(self._nuts.sample(without(theta, self._potential.block)))
        return {**theta, "z": z}

    def _draw_latents(self, z: Tensor, theta: Values) -> Tensor:
        """Draw a path given the last one; that one, where no path can be drawn."""
        # Where a particle goes to infinity compiled loops stop, and backward simulation cannot tell how far others are
        # from it; tensor operations with ancestor sampling leave it behind.
        for draw in (self._by_backward if self.sweep == "backward" else self._by_ancestors, self._slowly):
            try:
                path = draw(z)
            except (SMCFailed, torch.linalg.LinAlgError):
                continue
            if self._is_finite(theta, path):
                return path
        self._stuck += 1
        return z

    def _by_ancestors(self, z: Tensor) -> Tensor:
        return self._smc.run(*self._data, reference=z).smooth(1, method="genealogy")[0]

    def _by_backward(self, z: Tensor) -> Tensor:
        return self._smc.run(*self._data, reference=z, ancestor_sampling=False).smooth(1)[0]

    def _slowly(self, z: Tensor) -> Tensor:
        return self._slow.run(*self._data, reference=z).smooth(1, method="genealogy")[0]

    def logging(self) -> OrderedDict[str, str]:
        """Return what is shown while it runs: step size, acceptance, how often the first latents move."""
        return OrderedDict([*self._nuts.logging().items(), ("z_1 moved", f"{self._moved:.2f}")])

    def diagnostics(self) -> dict[str, Any]:
        """Return divergences and acceptance of the steps for parameters, and how often the first latents moved.

        In failed sweeps no path could be drawn, and the latents stayed as they were.
        """
        return {**self._nuts.diagnostics(), "z_1 moved": self._moved, "failed sweeps": self._stuck}

    def cleanup(self) -> None:
        """Forget the chain."""
        super().cleanup()
        for name in ("_potential", "_nuts", "_slow"):
            self.__dict__.pop(name, None)
