"""Gaussian observations: EEG, LFP, calcium, any real-valued recording."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.arrays import varies
from pyro_lowrank.errors import check_choice, check_positive, check_positive_int, warn_user
from pyro_lowrank.modules import effectful
from pyro_lowrank.observations.autoregressive import Autoregression, AutoregressiveMemory
from pyro_lowrank.observations.base import AffineGaussian, Emission, ReadoutObservation
from pyro_lowrank.observations.family import ScalarEmission, ScalarFamily
from pyro_lowrank.observations.readout import AffineMap, Readout
from pyro_lowrank.observations.shared_noise import SharedNoiseEmission
from pyro_lowrank.parameters import parameter, remember_drawn


def _log_density(y: Any, location: Any, scale: Any) -> Any:
    precision = 1 / (scale * scale)
    error = y - location
    return -0.5 * precision * error * error - math.log(scale) - 0.5 * math.log(2 * math.pi)


def _information(y: Any, location: Any, scale: Any) -> Any:
    return 1 / (scale * scale)


def _draw(location: Tensor, scale: Tensor) -> Tensor:
    return location + scale * torch.randn_like(location)


@cache
def _family() -> ScalarFamily:
    return ScalarFamily.of(
        _log_density,
        ("scale",),
        information=_information,
        expected=lambda location, scale: location,
        variance=lambda location, scale: scale * scale,
        sample=_draw,
        reparametrised=True,
        origin=(_family, ()),
    )


class GaussianObservation(ReadoutObservation):
    r"""Gaussian noise around a readout of the latents.

    .. math:: y_t \sim N(C z_t + b,\ \mathrm{diag}(\sigma^2) + F F^T)

    or around another readout: of latents and inputs, or of the units' currents or rates. The noise factors F are what
    features share without dynamics: volume conduction, a reference electrode, movement of the tissue. Without them the
    latents have to account for it.

    Features that remember their own past, as EEG and field potentials do far beyond what latents of low rank explain,
    have `noise="autoregressive"`: y and b then are innovations and their mean,

    .. math:: y_t = d + \sum_{k=1}^{p} \rho_k (y_{t-k} - d) + C z_t + e_t, \qquad e_t \sim N(0, S)

    per feature, and stationary by construction. What the past says is taken from the data before the filter runs, so
    that guides, smoothing and the compiled loops are those of noise without memory. The mean that data settle at is d,
    the bias of the readout, where latents are at zero; `settled` tells it elsewhere.

    The first bins, of which there is no past, follow the stationary law of each feature by itself: bin t is predicted
    from the t - 1 bins that there are, and its innovation, latents' part included, scaled by how much less these tell.
    Likewise where a lag is missing: a Kalman filter of each feature by itself carries its mean and variance. That is a
    density of whatever was recorded (it integrates to one), and equals the marginal of the full recording's where
    innovations are white, C z_t = 0 and F = 0; it leaves out what the latents at a missing bin tell of that bin.

    Args:
        rank: number of latents, for the affine readout.
        features: number of features.
        inputs: number of input channels that the affine readout sees.
        noise: `"diagonal"`, one standard deviation per feature, or `"scalar"`, one for all; or `"autoregressive"`, as
            diagonal, of features that remember their own past.
        order: number of bins p that they remember, 1 to 8; 1 if None.
        noise_scale: that standard deviation before training, in the units of the recording.
        noise_factors: number of columns of F, fewer than features; 0 for noise that is independent.
        readout: used in place of the affine one.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if there are as many noise factors as features, or an order out of range or without memory.

    Example::

        >>> observation = GaussianObservation(rank=3, features=64)
        >>> observation.mean(torch.zeros(10, 3)).shape, observation.noise_variance.shape
        (torch.Size([10, 64]), torch.Size([64]))
        >>> shared = GaussianObservation(rank=3, features=64, noise_factors=8)
        >>> shared.noise_factors.shape, shared.noise_covariance.shape
        (torch.Size([64, 8]), torch.Size([64, 64]))
        >>> eeg = GaussianObservation(rank=3, features=64, noise="autoregressive", order=4, noise_factors=8)
        >>> eeg.autoregression.coefficients.shape
        torch.Size([64, 4])

    References:
        Pals et al. (2024), NeurIPS; Woodbury (1950), on the inverse; Rubin and Thayer (1982), Psychometrika 47:69, on
        factor analysis, which is what is left without dynamics.
    """

    noise_scale: Tensor
    noise_factors: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        features: int | None = None,
        inputs: int = 0,
        noise: str = "diagonal",
        order: int | None = None,
        noise_scale: float = 0.1,
        noise_factors: int = 0,
        readout: Readout | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(rank=rank, features=features, inputs=inputs, readout=readout, dtype=dtype, device=device)
        self.noise_kind = check_choice("noise", noise, ("scalar", "diagonal", "autoregressive"))
        shape = () if noise == "scalar" else (self.features,)
        start = torch.full(shape, check_positive("noise_scale", noise_scale), dtype=dtype, device=device)
        self.noise_scale = parameter(start, constraints.positive)
        self._add_factors(check_positive_int("noise_factors", noise_factors, minimum=0), noise_scale, start)

        self.autoregression: Autoregression | None = None
        if noise == "autoregressive":
            self.autoregression = Autoregression(
                features=self.features, order=1 if order is None else order, dtype=dtype, device=device
            )
        elif order is not None:
            raise ValueError(f'`order` is that of noise="autoregressive", got noise={noise!r} and order={order}.')

    def _add_factors(self, number: int, noise_scale: float, like: Tensor) -> None:
        if number >= self.features:
            raise ValueError(
                f"`noise_factors` must be fewer than the {self.features} features, or the noise would have more "
                f"parameters than its covariance, got noise_factors={number}."
            )
        self.num_noise_factors = number
        if not number:
            # Not in files: those of models without shared noise stay as they were.
            self.register_buffer("noise_factors", like.new_zeros(self.features, 0), persistent=False)
            return
        # Not zero, where the gradient would be.
        drawn = like.new_empty(self.features, number).normal_() * noise_scale / number**0.5
        self.noise_factors = parameter(drawn)
        remember_drawn(self, "noise_factors")

    def _scale(self) -> Tensor:
        scale = self.noise_scale
        return scale.unsqueeze(-1).expand(*scale.shape, self.features) if self.noise_kind == "scalar" else scale

    def scale_of_variance(self, variance: Tensor) -> Tensor:
        """Return the `noise_scale` at which the noise has a variance, `features`."""
        return variance.sqrt()

    @property
    def noise_variance(self) -> Tensor:
        """The variance of the observation noise, that of its own and what it shares together, `features`.

        Where features remember, that of the innovations.
        """
        return self._scale().square() + self.noise_factors.square().sum(-1)

    @property
    def noise_covariance(self) -> Tensor:
        """The covariance of the observation noise, `features x features`; own and shared."""
        return torch.diag_embed(self._scale().square()) + self.noise_factors @ self.noise_factors.mT

    def _factors(self) -> Tensor | None:
        return self.noise_factors if self.num_noise_factors else None

    @effectful
    def mean(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the mean of the observation, as that of any `Observation`, without reading the noise.

        Where features remember, that after a past that was at its own mean.
        """
        return self.readout.bind(self._units())(z, u)

    def bind_memory(self) -> AutoregressiveMemory | None:
        """Return what features remember of their own past, at the present parameter values; None for nothing."""
        return None if self.autoregression is None else self.autoregression.bind(self.readout.bias)

    @effectful
    def settled(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        r"""Return what the data settle at while latents, `... x rank`, and effective inputs stay, `... x features`.

        .. math:: y^* = d + (C z + D u) / (1 - \sum_k \rho_k)
        """
        mean = self.mean(z, u)
        if self.autoregression is None:
            return mean
        rest = self.readout.bias
        return rest + (mean - rest) / (1 - self.autoregression.coefficients.sum(-1))

    def bind(self, units: Any) -> Emission:
        """Return the observation model at the present parameter values."""
        readout, factors = self.readout.bind(units), self._factors()
        if factors is None:
            return ScalarEmission(readout, _family(), (self._scale(),))
        return SharedNoiseEmission(readout, self._scale(), factors)

    def affine_gaussian(self, units: Any) -> AffineGaussian | None:
        """Return the observation model as an affine-Gaussian one, or None if it reads rates."""
        readout = self.readout.bind(units)
        if not isinstance(readout, AffineMap):
            return None
        return AffineGaussian(readout, self._scale().square(), self._factors())

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` can be Gaussian data; warn of features that never change."""
        super().check_data(y)
        seen = ~y.isnan()
        low = y.masked_fill(~seen, torch.inf).amin((0, 1))
        high = y.masked_fill(~seen, -torch.inf).amax((0, 1))
        # One time bin cannot tell a constant feature from any other.
        constant = (~varies(low, high) & (seen.sum(1) > 1).any(0)).nonzero().flatten().tolist()
        if constant:
            warn_user(
                f"Features {constant[:10]}{'...' if len(constant) > 10 else ''} of `y` never change: their noise "
                "will shrink towards zero and their likelihood grow without bound; leave them out."
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        settings: dict[str, Any] = {"readout": self.readout, "noise": self.noise_kind}
        if self.autoregression is not None:
            settings["order"] = self.autoregression.order
        return settings | ({"noise_factors": self.num_noise_factors} if self.num_noise_factors else {})
