"""What all dynamics have in common: a drift, noise, an initial state, inputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.dynamics.analysis import network_of, search_fixed_points
from pyro_lowrank.dynamics.drift import Drift, OwnDrift
from pyro_lowrank.dynamics.noise import NOISE_KINDS, GaussianNoise, noise_of, noise_parameter
from pyro_lowrank.dynamics.trajectory import Trajectory
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import check_choice, check_no_infinities, check_positive, check_positive_int, check_sequence
from pyro_lowrank.modules import Module, bound, effectful
from pyro_lowrank.parameters import parameter

if TYPE_CHECKING:
    from pyro_lowrank.fixed_points.options import ProgressCallback
    from pyro_lowrank.fixed_points.result import FixedPoints


class Dynamics(Module):
    r"""Base of all dynamics: latents that move by a drift, with noise; the drift of a subclass is whatever it defines.

    .. math::

        z_t &= f(z_{t-1}, u_{t-1}) + \varepsilon_t, \qquad \varepsilon_t \sim N(0, \Sigma_z) \\
        z_1 &\sim N(\mu_1, \Sigma_1)

    A subclass defines `mean(z, v)`, f, in torch operations: of latents `... x rank` and inputs `... x inputs` with the
    same leading dims (None where the dynamics have no inputs) it returns latents of the same shape. What it reads of
    `self`, parameters and modules, is trained. Guides, filters, smoothing, forecasts and `fit` are those of the
    built-in networks.

    Attributes: `initial_mean` mu_1 `rank`, `noise_covariance` and `initial_covariance` `rank x rank`.

    Args:
        rank: number of latents.
        inputs: number of input channels.
        noise: `"scalar"`, `"diagonal"` or `"full"` covariance of the transition noise.
        noise_scale: standard deviation of the transition noise before training, or its scale if it is heavy-tailed.
        noise_freedom: degrees of freedom of Student-t transition noise before training, for latents that jump at times;
            None for Gaussian noise.
        initial_noise: as `noise`, for the first latent.
        initial_scale: standard deviation of the first latent before training.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if an option is not one of its choices; by what uses it, if `mean` returns another shape.

    Example::

        >>> import pyro_lowrank as plr
        >>> class Pendulum(Dynamics):
        ...     '''Angle and velocity, in steps of 0.1.'''
        ...     def __init__(self):
        ...         super().__init__(rank=2, noise="diagonal")
        ...         self.friction = torch.nn.Parameter(torch.tensor(0.1))
        ...     def mean(self, z, v=None):
        ...         angle, velocity = z.unbind(-1)
        ...         return z + 0.1 * torch.stack([velocity, -angle.sin() - self.friction * velocity], -1)
        >>> model = plr.StateSpaceModel(Pendulum(), plr.GaussianObservation(rank=2, features=8))
        >>> y = model.simulate(num_trials=3, num_steps=20).y
        >>> plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(y).smooth(10).shape
        torch.Size([10, 3, 20, 2])
    """

    noise_scale: Tensor
    noise_freedom: Tensor
    initial_mean: Tensor
    initial_noise_scale: Tensor

    input_filter = False
    """Whether inputs pass a leak before they drive the latents."""

    def __init__(
        self,
        *,
        rank: int,
        inputs: int = 0,
        noise: str = "full",
        noise_scale: float = 0.1,
        noise_freedom: float | None = None,
        initial_noise: str = "full",
        initial_scale: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.rank = check_positive_int("rank", rank)
        self.num_inputs = check_positive_int("inputs", inputs, minimum=0)
        self.noise_kind = check_choice("noise", noise, NOISE_KINDS)
        self.initial_noise_kind = check_choice("initial_noise", initial_noise, NOISE_KINDS)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.noise_scale = noise_parameter(noise, rank, check_positive("noise_scale", noise_scale), **factory)
        self.heavy_tailed = noise_freedom is not None
        if noise_freedom is not None:
            freedom = torch.full((), check_positive("noise_freedom", noise_freedom), **factory)
            self.noise_freedom = parameter(freedom, constraints.positive)
        self.initial_mean = parameter(torch.zeros(rank, **factory))
        self.initial_noise_scale = noise_parameter(
            initial_noise, rank, check_positive("initial_scale", initial_scale), **factory
        )

    @abstractmethod
    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, `... x rank`, from latents and effective inputs `... x inputs`."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build dynamics of the same form (their parameter values are their state)."""
        return {
            "inputs": self.num_inputs,
            "noise": self.noise_kind,
            "noise_freedom": 4.0 if self.heavy_tailed else None,
            "initial_noise": self.initial_noise_kind,
        }

    def _drift(self) -> Drift:
        """Return the drift with the present parameter values."""
        return OwnDrift(bound(self).mean, self.rank, self.num_inputs, self.initial_mean.detach())

    @effectful
    def transition(self) -> Transition:
        """Return the transition density with the present parameter values, each read once."""
        return Transition(
            drift=self._drift(),
            noise=self._noise(),
            initial_mean=self.initial_mean,
            initial_noise=noise_of(self.initial_noise_kind, self.rank, self.initial_noise_scale),
        )

    def _noise(self) -> GaussianNoise:
        freedom = self.noise_freedom if self.heavy_tailed else None
        return noise_of(self.noise_kind, self.rank, self.noise_scale, freedom)

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the next latent, from latents `... x rank` and effective inputs `... x inputs`."""
        return self.mean(z, u)

    @effectful
    def trajectory(self, num_steps: int, u: Tensor | None = None, *, start: Tensor | None = None) -> Trajectory:
        """Return the distribution of whole latent trajectories, for `pyro.sample("z", ...)`.

        Args:
            num_steps: number of time bins.
            u: raw inputs, `... x trials x time x inputs`.
            start: latents `... x rank` that it goes on from, such as the last ones of a posterior's draws; None for the
                beginning of a trial. Inputs are then those from the beginning of the trial on, as the network's leak
                needs them, the last `num_steps` of the bins to come.

        Raises:
            ValueError: if inputs or latents do not fit.

        Example::

            >>> import pyro_lowrank as plr
            >>> dynamics = plr.LowRankRNN(rank=2, units=20)
            >>> dynamics.trajectory(50).event_shape
            torch.Size([50, 2])
            >>> dynamics.trajectory(10, start=torch.zeros(100, 5, 2)).sample().shape
            torch.Size([100, 5, 10, 2])
        """
        num_steps, known = check_positive_int("num_steps", num_steps), u
        if start is not None:
            if not isinstance(start, Tensor) or start.shape[-1:] != (self.rank,):
                came = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
                raise ValueError(f"`start` must hold latents, ... x rank with rank={self.rank}, got {came}.")
            if u is not None and u.shape[-2] <= num_steps:
                raise ValueError(
                    f"With `start` the inputs `u` must be those from the beginning of the trial to the end of the "
                    f"trajectory, more than its {num_steps} time bins, got {u.shape[-2]}."
                )
            known = None if u is None else u[..., -num_steps:, :]
        self.check_inputs(known if known is None or known.dim() < 4 else known.flatten(0, -3), num_steps=num_steps)
        return Trajectory(self.transition(), num_steps, u, start=start)

    def as_network(self, u: Any = None) -> dict[str, Any] | None:
        r"""Return the network of units that the dynamics are under a constant input; None if they are none.

        A subclass whose mean is affine but for units that see one linear form of the latents each may return the
        arguments of `pyro_lowrank.fixed_points.find_fixed_points`, as tensors or arrays: `decay` (a matrix, too),
        `left`, `right`, `bias`, `activation`, and `input_current`, `constant` where there are any. `fixed_points` then
        finds them all, with a certificate, after a comparison to `mean` at many latents.

        Args:
            u: the input, `inputs`; zero if None.

        Example::

            >>> import pyro_lowrank as plr
            >>> class Damped(plr.Dynamics):
            ...     def mean(self, z, v=None):
            ...         return 0.5 * z + torch.relu(z.flip(-1) - 0.25)
            ...     def as_network(self, u=None):
            ...         flip = torch.eye(2).flip(0)
            ...         return {"decay": 0.5, "left": flip, "right": torch.eye(2), "bias": [0.25, 0.25]}
            >>> found = Damped(rank=2).fixed_points()
            >>> found.points.round(6).tolist(), found.certificate.complete
            ([[0.0, 0.0], [0.5, 0.5]], True)
        """
        return None

    @effectful
    def fixed_points(
        self,
        u: Any = None,
        *,
        method: str = "certified",
        max_boxes: int | None = None,
        max_seconds: float | None = None,
        threads: int | None = None,
        num_starts: int = 10_000,
        constrained: bool = True,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> FixedPoints:
        """Return every fixed point of the noiseless dynamics under a constant input, with stability and a certificate.

        Of networks of units: the built-in ones, and dynamics that say by `as_network` which one they are.

        Args:
            u: the input, `inputs`, held for ever; zero if None.
            method: `"certified"`, `"enumerate"` or `"search"`; it and the others as of
                `pyro_lowrank.fixed_points.find_fixed_points`.
            max_boxes: most boxes, regions or starts.
            max_seconds: most time.
            threads: of the certified method.
            num_starts: of a search.
            constrained: whether a search starts only in regions that exist.
            seed: of a search.
            progress: called now and then.

        Raises:
            TypeError: if the dynamics do not say that they are a network of units.
            ValueError: if the input does not fit, the parameters have batch dims, the activation's shape is unknown, or
                `mean` is not that of the network that `as_network` returns.

        Example::

            >>> import pyro_lowrank as plr
            >>> dynamics = plr.LowRankRNN(rank=2, units=20, activation="tanh")
            >>> dynamics.fixed_points(method="search", num_starts=10).points.shape[1]
            2
        """
        from pyro_lowrank.fixed_points.find import find_fixed_points

        return find_fixed_points(
            **network_of(self, u),
            method=method,
            max_boxes=max_boxes,
            max_seconds=max_seconds,
            threads=threads,
            num_starts=num_starts,
            constrained=constrained,
            seed=seed,
            progress=progress,
        )

    @effectful
    def search_fixed_points(
        self, u: Any = None, *, starts: Any = None, num_starts: int = 1000, seed: int = 0
    ) -> FixedPoints:
        r"""Look for fixed points of the noiseless dynamics under a constant input, :math:`f(z, u) = z`.

        By Newton's method, with Jacobians by automatic differentiation, from many starts. What is found is true; that
        there are no others is not proved, and the certificate says so. `fixed_points` proves it of networks of units.

        Args:
            u: the input, `inputs`, held for ever; zero if None.
            starts: latents to start from, `... x rank`, such as the means of a posterior; if None, such as the dynamics
                visit, and others around them.
            num_starts: how many, if `starts` is None.
            seed: of these.

        Raises:
            ValueError: if the input or the starts do not fit.

        Example::

            >>> import pyro_lowrank as plr
            >>> class Pendulum(plr.Dynamics):
            ...     def mean(self, z, v=None):
            ...         angle, velocity = z.unbind(-1)
            ...         return z + 0.1 * torch.stack([velocity, -angle.sin() - 0.2 * velocity], -1)
            >>> found = Pendulum(rank=2).search_fixed_points(starts=torch.tensor([[0.3, 0.0], [3.0, 0.1]]))
            >>> found.points[:, 0].round(4).tolist(), found.stability.tolist(), found.certificate.complete
            ([0.0, 3.1416], ['attractor', 'saddle'], False)
        """
        generator = torch.Generator().manual_seed(check_positive_int("seed", seed, minimum=0))
        return search_fixed_points(self, u, starts, check_positive_int("num_starts", num_starts), generator)

    @property
    def noise_covariance(self) -> Tensor:
        """The covariance of the transition noise, `rank x rank`."""
        return self._noise().covariance

    @property
    def initial_covariance(self) -> Tensor:
        """The covariance of the first latent, `rank x rank`."""
        return noise_of(self.initial_noise_kind, self.rank, self.initial_noise_scale).covariance

    def check_inputs(self, u: Tensor | None, *, num_steps: int | None = None, num_trials: int | None = None) -> None:
        """Raise unless the inputs are what the dynamics were built for and as long as the data."""
        if u is None:
            if self.num_inputs:
                raise ValueError(
                    f"The dynamics were built with inputs={self.num_inputs}, but no inputs came; pass `u`, "
                    "trials x time x inputs."
                )
            return
        if not self.num_inputs:
            raise ValueError("Inputs `u` came, but the dynamics were built with inputs=0; build them with inputs=...")
        check_sequence("u", u, last=self.num_inputs, last_name="inputs")
        check_no_infinities("u", u)
        if u.isnan().any():
            raise ValueError("`u` holds NaN: inputs cannot be missing; fill them in before the fit.")
        if num_steps is not None and u.shape[-2] != num_steps:
            raise ValueError(f"`u` must be as long as the data, {num_steps} time bins, got {u.shape[-2]}.")
        if num_trials is not None and u.shape[0] != num_trials:
            raise ValueError(f"`u` must have as many trials as the data, {num_trials}, got {u.shape[0]}.")
