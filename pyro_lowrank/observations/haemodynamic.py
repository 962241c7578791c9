"""BOLD signals: what latents drive, seen through the slow response of blood flow."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_choice, check_positive
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.linear_memory import LinearMemory, stationary_covariance
from pyro_lowrank.observations.readout import AffineReadout, Readout
from pyro_lowrank.observations.responses import MOST_STATES, double_gamma, realised
from pyro_lowrank.parameters import parameter

RESPONSES = ("second_order", "double_gamma")

# Friston, Harrison and Penny (2003), NeuroImage 19:1273, table 1: rates of signal decay (1/s), and of the feedback by
# flow (1/s^2).
SIGNAL_DECAY, FLOW_FEEDBACK = 0.65, 0.41
# Response of the longest bin to which a rise and fall of some 20 s is no blur.
_LONGEST_BIN = 10.0


class HaemodynamicObservation(DrivenObservation):
    r"""BOLD: the linear response of each region's blood flow to what latents drive it with.

    .. math::

        \ddot f + \kappa \dot f + \gamma f = \gamma\,(C z_t + \varepsilon_t), \qquad y_t = b + f_t + e_t

    per region, driven by the same all through a bin; or, with `response="double_gamma"`, the canonical response of
    SPM, :math:`h(s) \propto g(s; 6) - g(s; 16) / 6` with gamma densities g of unit scale in seconds, as a linear system
    of at most six states whose response to a bin differs from it by less than one per cent of its peak. Both have a
    gain of one: a drive that stays moves the signal by itself. Drive noise, white, is what a region has of its own.

    Of the second order, rates of decay :math:`\kappa` and feedback :math:`\gamma` of each region are learnt, from
    published values on; it has no blood volume and is linear, unlike the balloon model.

    Before the first bin the drive is taken for white around zero with a spread that is learnt, `past_spread`; the
    signal begins at the stationary law that follows.

    Args:
        rank: number of latents, for the affine readout.
        features: number of regions.
        bin_size: time from volume to volume (the TR), in seconds.
        inputs: number of input channels that the affine readout sees.
        response: `"second_order"` or `"double_gamma"`.
        drive_noise: whether regions have activity of their own.
        noise_scale: standard deviation of the noise before training, in the units of the recording.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if a bin is longer than 10 s, or the response is unknown.

    Example::

        >>> import pyro_lowrank as plr
        >>> observation = HaemodynamicObservation(rank=3, features=10, bin_size=2.0)
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=50), observation)
        >>> guide = plr.OptimalGuide(model)
        >>> model.simulate(num_trials=2, num_steps=60).y.shape
        torch.Size([2, 60, 10])

    References:
        Friston et al. (2000), NeuroImage 12:466; Friston, Harrison and Penny (2003), NeuroImage 19:1273; Friston et al.
        (1998), NeuroImage 7:30, on the response of two gamma densities.
    """

    in_units_of_data = ("baseline", "readout.weight")
    trace_names = ("neural_activity", "haemodynamic_response")

    signal_decay: Tensor
    flow_feedback: Tensor
    baseline: Tensor
    noise_scale: Tensor
    drive_noise: Tensor
    past_spread: Tensor
    canonical_transition: Tensor
    canonical_drive: Tensor
    canonical_readout: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        bin_size: float,
        inputs: int = 0,
        response: str = "second_order",
        drive_noise: bool = True,
        noise_scale: float = 0.1,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if readout is None and rank is not None and features is not None:
            # The baseline is a parameter of its own.
            options: dict[str, Any] = {"inputs": inputs, "train_bias": False, "dtype": dtype, "device": device}
            readout = AffineReadout(rank=rank, features=features, **options)
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.bin_size = check_positive("bin_size", bin_size)
        if self.bin_size > _LONGEST_BIN:
            raise ValueError(
                f"A time bin of bin_size={self.bin_size:g} s is longer than the rise and fall of blood flow, at most "
                f"{_LONGEST_BIN:g} s: give the time between volumes (TR) in seconds; of longer ones nothing is "
                "remembered, use GaussianObservation."
            )
        self.response = check_choice("response", response, RESPONSES)
        self.has_drive_noise = bool(drive_noise)
        like = torch.ones(self.features, dtype=dtype, device=device)
        if self.response == "second_order":
            self.signal_decay = parameter(SIGNAL_DECAY * like, constraints.positive)
            self.flow_feedback = parameter(FLOW_FEEDBACK * like, constraints.positive)
        else:
            parts = realised(double_gamma(self.bin_size), MOST_STATES, 0.01)
            for name, part in zip(("transition", "drive", "readout"), parts, strict=True):
                # Not in files: it follows from the bin size.
                self.register_buffer(f"canonical_{name}", part.to(like), persistent=False)
        self.baseline = parameter(0.0 * like)
        self.noise_scale = parameter(check_positive("noise_scale", noise_scale) * like, constraints.positive)
        if self.has_drive_noise:
            self.drive_noise = parameter(0.1 * like, constraints.positive)
        self.past_spread = parameter(1.0 * like, constraints.positive)

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return A, B and H of all regions."""
        if self.response == "double_gamma":
            shape = self.baseline.shape
            a, b, h = self.canonical_transition, self.canonical_drive, self.canonical_readout
            return a.expand(*shape, *a.shape), b.expand(*shape, *b.shape), h.expand(*shape, *h.shape)
        decay, feedback = self.signal_decay, self.flow_feedback
        zero, one = torch.zeros_like(decay), torch.ones_like(decay)
        # States are the flow's rate of change, the flow, and what drives it, which stays within a bin.
        rows = ((-decay, -feedback, feedback), (one, zero, zero), (zero, zero, zero))
        system = torch.stack([torch.stack(row, -1) for row in rows], -2)
        whole = torch.linalg.matrix_exp(self.bin_size * system)
        return whole[..., :2, :2], whole[..., :2, 2], torch.stack([zero, one], -1)

    def bind_linear_memory(self) -> LinearMemory:
        """Return the linear system at the present parameter values."""
        transition, drive, readout = self._system()
        outer = drive.unsqueeze(-1) * drive.unsqueeze(-2)
        noise = self.noise_of_drive().square()[..., None, None] * outer
        before = noise + self.past_spread.square()[..., None, None] * outer
        return LinearMemory(
            transition=transition,
            drive=drive,
            noise=noise,
            readout=readout,
            through=torch.zeros_like(self.baseline),
            variance=self.noise_scale.square(),
            baseline=self.baseline,
            before_mean=torch.zeros_like(drive),
            before_covariance=stationary_covariance(transition, before),
        )

    def priors(self) -> dict[str, Any]:
        """Return priors around the published rates, by names of parameters."""
        if self.response != "second_order":
            return {}
        spread = torch.full_like(self.baseline, 0.2)
        published = {"signal_decay": SIGNAL_DECAY, "flow_feedback": FLOW_FEEDBACK}
        return {name: dist.LogNormal(math.log(value) + 0 * spread, spread) for name, value in published.items()}

    def noise_of_drive(self) -> Tensor:
        """Return the standard deviation of what a region's drive has of its own, `features`."""
        return self.drive_noise if self.has_drive_noise else torch.zeros_like(self.baseline)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {
            "readout": self.readout,
            "bin_size": self.bin_size,
            "response": self.response,
            "drive_noise": self.has_drive_noise,
        }
