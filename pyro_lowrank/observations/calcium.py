"""Fluorescence of calcium indicators: a rate that the latents drive, seen through a slow response."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_choice, check_positive
from pyro_lowrank.observations.driven import DrivenObservation, LinearDrive, RateDrive
from pyro_lowrank.observations.indicators import indicator_of
from pyro_lowrank.observations.linear_memory import LinearMemory, settled_state, stationary_covariance
from pyro_lowrank.observations.readout import AffineMap, RatesMap, Readout
from pyro_lowrank.parameters import parameter

KINDS = ("dff", "fluorescence", "ratio", "zscore")
# Of the decay's time constant the rise's is at most this share: equal ones are a limit that is not taken.
_LARGEST_SHARE = 0.95


class CalciumObservation(DrivenObservation):
    r"""Fluorescence of a calcium indicator, driven by a rate that is not negative.

    .. math::

        r_t = \mathrm{softplus}(C z_t + d) + \varepsilon_t, \qquad
        y_t = b + \alpha\, (h * r)_t + e_t, \qquad
        h(s) = \frac{\tau_d}{\tau_d - \tau_r} \left(e^{-s / \tau_d} - e^{-s / \tau_r}\right)

    per feature, with rates r in events per second, constant within a bin, and :math:`h(s) = e^{-s / \tau_d}` without a
    rise. An event adds :math:`\alpha` to the fluorescence, times h. The rate noise :math:`\varepsilon`, white and
    Gaussian, is the part of a cell's activity that it shares with no other; given the latents the calcium of each cell
    is then a linear Gaussian system, which a Kalman filter integrates out. A slowly drifting baseline is one more state
    of it, a stationary process with the correlation time `drift`.

    Before the first bin the rate is taken for white around a mean, both of which are learnt (`past_rate`,
    `past_rate_spread`); calcium begins at the stationary law that follows.

    Scale and rates are told apart by the softplus alone: multiply rates by two and halve the scale, and where all rates
    are high nothing changes. Read rates as relative ones unless the scale is known (freeze it then).

    Args:
        rank: number of latents, for the affine readout.
        features: number of cells.
        bin_size: duration of a time bin, in seconds.
        inputs: number of input channels that the affine readout sees.
        indicator: `"GCaMP6f"`, `"GCaMP6m"` or `"GCaMP6s"`: where time constants start, see
            `pyro_lowrank.observations.indicators`.
        decay: time constant of the decay before training, in seconds; the indicator's if None.
        rise: that of the rise, True for the indicator's, False for none.
        rate_noise: whether cells have activity of their own.
        drift: correlation time of the baseline, in seconds; None for one that stays.
        data: `"dff"` for dF/F as a fraction, `"fluorescence"`, `"ratio"` or `"zscore"`: what is checked of a recording.
        noise_scale: standard deviation of the noise before training, in the units of the recording.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if a time constant is not positive, the rise no faster than the decay, or a bin longer than the
        decay.

    Example::

        >>> import pyro_lowrank as plr
        >>> observation = CalciumObservation(rank=3, features=20, bin_size=1 / 30, indicator="GCaMP6s")
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=50), observation)
        >>> model.simulate(num_trials=2, num_steps=60).y.shape, observation.decay_time[0].item()
        (torch.Size([2, 60, 20]), 1.375)

    References:
        Vogelstein et al. (2010), J. Neurophysiol. 104:3691; Friedrich, Zhou and Paninski (2017), PLoS Comput. Biol.
        13:e1005423.
    """

    in_units_of_data = ("baseline",)
    trace_names = ("rates", "calcium")

    decay_time: Tensor
    rise_share: Tensor
    scale: Tensor
    baseline: Tensor
    noise_scale: Tensor
    rate_noise: Tensor
    past_rate: Tensor
    past_rate_spread: Tensor
    drift_scale: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        bin_size: float,
        inputs: int = 0,
        indicator: str = "GCaMP6f",
        decay: float | None = None,
        rise: float | bool = False,
        rate_noise: bool = True,
        drift: float | None = None,
        data: str = "dff",
        noise_scale: float = 0.1,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.bin_size = check_positive("bin_size", bin_size)
        self.indicator, constants = indicator, indicator_of(indicator)
        self.data = check_choice("data", data, KINDS)
        decay = check_positive("decay", constants.decay if decay is None else decay)
        self.rises = rise is not False
        rise = check_positive("rise", constants.rise if isinstance(rise, bool) else rise)
        self._check_times(decay, rise)
        self._start: dict[str, float | bool] = {"decay": decay, "rise": rise if self.rises else False}
        self.has_rate_noise = bool(rate_noise)
        self.drift = None if drift is None else check_positive("drift", drift)
        like = torch.ones(self.features, dtype=dtype, device=device)
        self.decay_time = parameter(decay * like, constraints.positive)
        if self.rises:
            self.rise_share = parameter(rise / decay * like, constraints.unit_interval)
        self.scale = parameter(1.0 * like, constraints.positive)
        self.baseline = parameter(0.0 * like)
        self.noise_scale = parameter(check_positive("noise_scale", noise_scale) * like, constraints.positive)
        if self.has_rate_noise:
            self.rate_noise = parameter(1.0 * like, constraints.positive)
        self.past_rate = parameter(1.0 * like, constraints.positive)
        self.past_rate_spread = parameter(1.0 * like, constraints.positive)
        if self.drift is not None:
            self.drift_scale = parameter(0.1 * like, constraints.positive)

    def _check_times(self, decay: float, rise: float) -> None:
        if self.bin_size > decay:
            raise ValueError(
                f"A time bin of bin_size={self.bin_size:g} s is longer than the decay of the indicator, {decay:g} s: "
                "hardly anything is remembered from one to the next. Give the bin size in seconds (1 / frame rate); "
                "if it is, use GaussianObservation."
            )
        if self.rises and rise > 0.9 * decay:
            raise ValueError(
                f"The rise must be faster than the decay, at most 0.9 times its time constant, got rise={rise:g} s and "
                f"decay={decay:g} s."
            )

    @property
    def rise_time(self) -> Tensor:
        """The time constant of the rise, in seconds, `features`; zero without one."""
        if not self.rises:
            return torch.zeros_like(self.decay_time)
        return self.rise_share.clamp(max=_LARGEST_SHARE) * self.decay_time

    def _drive(self, readout: AffineMap | RatesMap) -> LinearDrive | RateDrive:
        return RateDrive(readout)

    def bind_linear_memory(self) -> LinearMemory:
        """Return the linear system at the present parameter values."""
        times, weights = [self.decay_time], [self.scale]
        if self.rises:
            share = self.rise_share.clamp(max=_LARGEST_SHARE)
            times, weights = [*times, share * self.decay_time], [self.scale / (1 - share), -self.scale / (1 - share)]
        # A rate is the same all through a bin, which the decay acts on meanwhile.
        factors = [(-self.bin_size / time).exp() for time in times]
        drives = [time * (1 - factor) for time, factor in zip(times, factors, strict=True)]
        transition, drive = torch.stack(factors, -1), torch.stack(drives, -1)
        readout, own = torch.stack(weights, -1), torch.zeros_like(drive)
        if self.drift is not None:
            keeps = math.exp(-self.bin_size / self.drift)
            transition, drive, readout, own = (
                torch.cat([part, torch.full_like(part[..., :1], value)], -1)
                for part, value in ((transition, keeps), (drive, 0.0), (readout, 1.0), (own, 0.0))
            )
            added = self.drift_scale.square() * (1 - keeps * keeps)
            own = torch.cat([own[..., :-1], added.unsqueeze(-1)], -1)
        outer = drive.unsqueeze(-1) * drive.unsqueeze(-2)
        private = self.rate_noise.square()[..., None, None] * outer if self.has_rate_noise else torch.zeros_like(outer)
        noise, matrix = private + torch.diag_embed(own), torch.diag_embed(transition)
        before = noise + self.past_rate_spread.square()[..., None, None] * outer
        return LinearMemory(
            transition=matrix,
            drive=drive,
            noise=noise,
            readout=readout,
            through=torch.zeros_like(self.baseline),
            variance=self.noise_scale.square(),
            baseline=self.baseline,
            before_mean=settled_state(matrix, drive) * self.past_rate.unsqueeze(-1),
            before_covariance=stationary_covariance(matrix, before),
        )

    def response_of(self, memory: LinearMemory) -> Tensor:
        """Return what calcium, and not a drifting baseline, is read with from the states, `features x order`."""
        return memory.readout if self.drift is None else memory.readout * (memory.drive != 0)

    def priors(self) -> dict[str, Any]:
        """Return priors around the time constants that the model was built with, by names of parameters."""
        decay, share = (torch.full_like(self.baseline, float(self._start[name])) for name in ("decay", "rise"))
        found: dict[str, Any] = {"decay_time": dist.LogNormal(decay.log(), 0.3 * torch.ones_like(decay))}
        if self.rises:
            share = share / decay
            found["rise_share"] = dist.Beta(10 * share, 10 * (1 - share))
        return found

    def noise_of_drive(self) -> Tensor:
        """Return the standard deviation of what a cell's rate has of its own, `features`."""
        return self.rate_noise if self.has_rate_noise else torch.zeros_like(self.baseline)

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` can be fluorescence of the kind that was declared."""
        super().check_data(y)
        seen = y[~y.isnan()]
        if self.data != "fluorescence" and len(seen) > 1 and bool((seen == seen.round()).all()):
            raise ValueError(
                f"`y` holds whole numbers alone, up to {seen.abs().max():g}, as counts do, and the model is of "
                f'fluorescence (data="{self.data}"): use PoissonObservation or NegativeBinomialObservation for counts '
                'of spikes, or data="fluorescence" for raw intensities.'
            )
        if self.data == "dff" and len(seen) and bool(seen.min() < -1):
            raise ValueError(
                f'`y` falls to {seen.min():.3g}, and dF/F (data="dff") cannot lie below -1, where there is no light: '
                'in per cent divide by 100; else pass data="zscore", "ratio" or "fluorescence".'
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {
            "readout": self.readout,
            "bin_size": self.bin_size,
            "indicator": self.indicator,
            **self._start,
            "rate_noise": self.has_rate_noise,
            "drift": self.drift,
            "data": self.data,
        }
