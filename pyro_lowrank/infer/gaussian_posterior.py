"""What a Gaussian filter run over whole sequences leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.infer.calibration import draw_pit
from pyro_lowrank.infer.forecast import (
    Forecast,
    Replicates,
    draw_replicates,
    end_of_data,
    expected_observations,
    go_on,
)
from pyro_lowrank.infer.latents import LEVEL, Latents
from pyro_lowrank.kalman.gaussians import Gaussians
from pyro_lowrank.kalman.roots import apply, squared
from pyro_lowrank.kalman.smoother import Backward, Smoothed, backward_steps, draw_paths, smooth
from pyro_lowrank.smc.transitions import BuiltInTransitions


@dataclass(frozen=True)
class GaussianPosterior:
    r"""The Gaussians of a run of `ExtendedKalmanFilter`, and its log evidence.

    .. math::

        z_t \mid y_{<t} \sim N(m_t, P_t), \qquad z_t \mid y_{\le t} \sim N(\mu_t, \Sigma_t), \qquad
        z_{1:T} \mid y_{1:T} \sim N(\ldots)

    Exact for linear dynamics and affine-Gaussian observations, else approximations without a bound. Means are
    `trials x time x rank`, covariances `trials x time x rank x rank`. Its methods are those of `SMCPosterior`.

    Attributes:
        log_evidence_increments: the approximation of log p(y_t | y_{<t}) in nats, `time x trials`.
        gaussians: the filter's, covariances as roots.
        transitions: the model of the run.
    """

    log_evidence_increments: Tensor
    gaussians: Gaussians = field(repr=False)
    transitions: BuiltInTransitions = field(repr=False, compare=False)

    @property
    def log_evidence(self) -> Tensor:
        """The approximation of log p(y) in nats, `trials`."""
        return self.log_evidence_increments.sum(0)

    @property
    def predicted_mean(self) -> Tensor:
        """The means of the latents given the data before their time bin."""
        return self.gaussians.predicted_mean

    @property
    def predicted_covariance(self) -> Tensor:
        """The covariances of the latents given the data before their time bin."""
        return squared(self.gaussians.predicted_root)

    @property
    def filtered_mean(self) -> Tensor:
        """The means of the latents given the data up to their time bin."""
        return self.gaussians.mean

    @property
    def filtered_covariance(self) -> Tensor:
        """The covariances of the latents given the data up to their time bin."""
        return squared(self.gaussians.root)

    @property
    def smoothed_mean(self) -> Tensor:
        """The means of the latents given the whole recording."""
        return self._smoothed.mean

    @property
    def smoothed_covariance(self) -> Tensor:
        """The covariances of the latents given the whole recording."""
        return self._smoothed.covariance

    @property
    def lagged_covariance(self) -> Tensor:
        """Cov(z_t, z_{t+1}) given the whole recording, `trials x (time - 1) x rank x rank`: rows at t."""
        return self._smoothed.lagged

    @torch.no_grad()
    def latents(self, level: float = LEVEL) -> Latents:
        """Return the latents given the whole recording: the smoother's means, and bands that hold `level` of each.

        Args:
            level: share of the posterior within the bands.

        Returns:
            `Latents`: `mean`, `lower` and `upper`, `trials x time x rank` each.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> plr.ExtendedKalmanFilter(model).run(torch.randn(4, 10, 3)).latents(0.5).upper.shape
            torch.Size([4, 10, 2])
        """
        variance = self.smoothed_covariance.diagonal(dim1=-2, dim2=-1)
        return Latents.of_normals(self.smoothed_mean, variance, level, self._lengths)

    def mean(self) -> Tensor:
        """Return the filtering means, as of `SMCPosterior`."""
        return self.filtered_mean

    def variance(self) -> Tensor:
        """Return the filtering variances, `trials x time x rank`, as of `SMCPosterior`."""
        return self.gaussians.root.square().sum(-1)

    @torch.no_grad()
    def smooth(self, num_draws: int, *, method: str = "backward") -> Tensor:
        """Draw paths of the latents given the whole recording, `draws x trials x time x rank`.

        They are draws of the smoother's joint Gaussian, with its covariances over time.

        Args:
            num_draws: number of paths.
            method: `"backward"`, from the last time bin to the first.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> plr.ExtendedKalmanFilter(model).run(torch.randn(4, 10, 3)).smooth(20).shape
            torch.Size([20, 4, 10, 2])
        """
        check_choice("method", method, ("backward",))
        return draw_paths(self.gaussians, self._backward, check_positive_int("num_draws", num_draws))

    @torch.no_grad()
    def forecast(self, horizon: int, u: Tensor | None = None, *, num_draws: int = 100) -> Forecast:
        """Draw latents and observations of the time bins after each trial's last one with data, with both noises.

        They start from the filter's Gaussian there and follow the model itself, not its linearisation.

        Args:
            horizon: number of time bins.
            u: inputs of those time bins, `trials x horizon x inputs`.
            num_draws: number of draws.

        Returns:
            A named tuple `(z, y, mean, start)`, `draws x trials x horizon x ...`.

        Raises:
            ValueError: if the inputs do not fit the model.
        """
        check_positive_int("horizon", horizon)
        end = end_of_data(self.transitions)
        trials = torch.arange(len(end), device=end.device)
        now = self._draw_filtered(check_positive_int("num_draws", num_draws))[:, trials, end]
        return go_on(self.transitions, now, horizon, u)

    @torch.no_grad()
    def predict(self, z: Tensor | None = None) -> Tensor:
        """Return the expected observations, `trials x time x features`: rates of held-out features, missing entries.

        Args:
            z: latents given the whole recording, from `smooth`; if None the filtering means alone stand for them,
                which is exact where the readout is affine and there is no link.
        """
        return expected_observations(self.transitions, self.filtered_mean.unsqueeze(0) if z is None else z, None)

    @torch.no_grad()
    def replicate(self, z: Tensor) -> Replicates:
        """Draw new observations of the same trials and time bins, for posterior predictive checks.

        Args:
            z: latents, `draws x trials x time x rank`, as `smooth` returns them.

        Returns:
            A named tuple `(mean, y)`, `draws x trials x time x features`.
        """
        return draw_replicates(self.transitions, z)

    @torch.no_grad()
    def prequential_pit(self, *, num_draws: int = 500) -> Tensor:
        """Draw where each entry of the recording lies in what was predicted of it; see `SMCPosterior.prequential_pit`.

        Args:
            num_draws: latents drawn per time bin.
        """
        z = self._draw_filtered(check_positive_int("num_draws", num_draws))
        shape = (z.shape[2], z.shape[0], z.shape[1])
        return draw_pit(self.transitions, z, z.new_full(shape, 1 / num_draws).log(), first=True)

    def rerun(self) -> GaussianPosterior:
        """Return this posterior: nothing is drawn at random in the filter, so another run is the same."""
        return self

    @property
    def recording(self) -> tuple[Tensor, Tensor | None]:
        """The recording and the inputs that the filter saw, `trials x time x ...`."""
        return self.transitions.data.recording.with_gaps, self.transitions.data.u

    @property
    def mean_name(self) -> str:
        """What the expected observations are called: `"rates"` of spikes, else `"mean"`."""
        return getattr(self.transitions.emission, "mean_name", "mean")

    @property
    def _lengths(self) -> Tensor:
        """Time bins of each trial up to its last one with data, `trials`."""
        return end_of_data(self.transitions) + 1

    @cached_property
    def _backward(self) -> Backward:
        with torch.no_grad():
            return backward_steps(self.gaussians)

    @cached_property
    def _smoothed(self) -> Smoothed:
        with torch.no_grad():
            return smooth(self.gaussians, self._backward)

    def _draw_filtered(self, num_draws: int) -> Tensor:
        like = self.filtered_mean
        white = torch.randn(num_draws, *like.shape, dtype=like.dtype, device=like.device)
        return like + apply(self.gaussians.root, white)

    def __str__(self) -> str:
        trials, num_steps, rank = self.filtered_mean.shape
        lengths = self._lengths
        within = torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)
        spread = self.variance()[within].mean(0).sqrt()
        evidence = self.log_evidence.sum().item()
        return (
            f"GaussianPosterior: {trials} trials x {num_steps} time bins, {rank} latents\n"
            f"  log evidence    {evidence:.2f} nats, "
            f"{evidence / int(lengths.sum()):.4f} per bin and trial (approximate)\n"
            f"  filtered SD     {', '.join(f'{value:.3g}' for value in spread.tolist())}, root mean square per latent\n"
            "  latents()       means and bands given the whole recording"
        )
