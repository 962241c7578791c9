"""What kernels of `pyro.infer.MCMC` that run particle filters share: a filter at the sampled values, and its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.infer.filter import SMCFilter
from pyro_lowrank.infer.mcmc.room import check_room
from pyro_lowrank.infer.mcmc.sampled import STARTS, Sampled, Values, check_sampled
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.resampling import Resampler


class FilteringKernel(MCMCKernel):
    """Base of the kernels for the latents and the parameters with priors of a state-space model.

    Args:
        model: the model.
        guide: a guide made from it; the bootstrap one if None.
        num_particles: number of particles.
        resampler: how ancestors are drawn; systematic if None.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles.
        init_strategy: how chains start.
        backend: one of `backends`.
    """

    least_particles: ClassVar[int] = 1
    backends: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: StateSpaceModel,
        guide: Any,
        num_particles: int,
        *,
        resampler: Resampler | None,
        ess_threshold: float,
        init_strategy: Callable[[Any], Any],
        backend: str,
    ) -> None:
        self.guide = check_sampled(model, guide)
        self.model = model
        self.num_particles = check_positive_int("num_particles", num_particles, minimum=self.least_particles)
        self._filter_options: dict[str, Any] = {
            "resampler": resampler,
            "ess_threshold": ess_threshold,
            "backend": check_choice("backend", backend, self.backends),
        }
        # Options that do not fit are refused here, not when a chain begins.
        self._scheme = self._filter(model, self.guide).scheme
        self._init_strategy = init_strategy
        self._initial_params: Values | None = None
        self.transforms: dict[str, Any] | None = None
        super().__init__()

    def _filter(self, model: Any, guide: Any) -> SMCFilter:
        return SMCFilter(model, guide, self.num_particles, **self._filter_options)

    def _begin(self, y: Tensor, u: Tensor | None) -> None:
        """Make the copies of the model that a chain samples from, and their filter."""
        check_room(self.num_particles, self.model.dynamics.rank, y)
        self._data = (y, u)
        self._sampled = Sampled(self.model, self.guide, self._init_strategy)
        self.transforms = dict(self._sampled.transforms)
        self._smc = self._filter(self._sampled.model, self._sampled.guide)

    def _starts(self) -> Iterator[Values]:
        """Yield unconstrained parameters that a chain may start from: those that were given, or draws."""
        given = self._initial_params
        if given is None:
            for _ in range(STARTS):
                yield self._sampled.start()
        else:
            self._sampled.check_start(given)
            yield without_latents(given)

    @property
    def initial_params(self) -> Values | None:
        """Where the chain starts: unconstrained parameters by name, and latents `"z"`."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Values) -> None:
        self._initial_params = params

    def cleanup(self) -> None:
        """Forget the chain."""
        self._initial_params = None
        for name in ("_data", "_sampled", "_smc"):
            self.__dict__.pop(name, None)


def without_latents(params: Values) -> Values:
    """Return the parameters among what a chain samples."""
    return {name: value for name, value in params.items() if name != "z"}
