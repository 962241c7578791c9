"""What drove each feature, given the whole recording, of observations that remember the latents."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.driven_recording import colour
from pyro_lowrank.observations.linear_future import smooth
from pyro_lowrank.observations.linear_memory import dot
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.transitions import BuiltInTransitions


class Deconvolution(NamedTuple):
    """What drives each feature, along draws of the latents given the whole recording.

    Given a path all is Gaussian; the mean and spread over all that is unknown are the mean of `mean` over draws, and
    its variance over draws plus the mean of `variance`.

    Attributes:
        drive: what the latents drive features with, `draws x trials x time x features`: of calcium rates per second.
        mean: that with what a feature has of its own, likewise.
        variance: of that given the path, likewise.
        state: means of the linear system, `draws x trials x time x features x order`.
        state_variance: of it given the path, likewise.
        signal: the observations without their noise, `draws x trials x time x features`.
    """

    drive: Tensor
    mean: Tensor
    variance: Tensor
    state: Tensor
    state_variance: Tensor
    signal: Tensor


def check_whole(model: BuiltInTransitions) -> None:
    """Raise where a posterior is of the last bins alone, and what was remembered before them is not known of its paths.

    Raises:
        ValueError: if it is.
    """
    if model.before is not None:
        raise ValueError(
            "The last bins of an online filter do not tell what was remembered before them along a path: run the "
            "filter over the whole sequence, SMCFilter(...).run(y, u)."
        )


def deconvolve(model: BuiltInTransitions, z: Tensor) -> Deconvolution:
    """Return what drives each feature along paths `draws x trials x time x rank`.

    Raises:
        ValueError: if observations do not remember the latents, or the paths are not those of the recording.
    """
    emission, drive = _driven(model, z)
    found = smooth(emission.memory, model.data.seen, drive, emission.private_noise)
    variance = found.noise_variance.expand(drive.shape)
    own = found.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).expand(found.mean.shape)
    signal = emission.memory.expected(found.mean, drive)
    return Deconvolution(drive, drive + found.noise_mean, variance, found.mean, own, signal)


def draw_traces(model: BuiltInTransitions, z: Tensor) -> dict[str, Tensor]:
    r"""Draw what drives each feature, and its response, along paths `draws x trials x time x rank`, by name.

    One draw of the linear system for each path, jointly over time: a system that is simulated, :math:`s^*` with the
    observations :math:`y^*`, corrected by what is expected of the difference,

    .. math:: s = s^* + E[s - s^* \mid y - y^*]

    Returns:
        `draws x trials x time x features` each, called as the observation model does; nothing of other models.

    References:
        Durbin and Koopman (2002), Biometrika 89:603.
    """
    if not isinstance(model.emission, DrivenEmission):
        return {}
    emission, drive = _driven(model, z)
    memory, seen = emission.memory, model.data.seen
    private = emission.private_noise * torch.randn_like(drive)
    # What enters with the drive is drawn there, so that it is known; what else there is enters the states.
    outer = memory.drive.unsqueeze(-1) * memory.drive.unsqueeze(-2)
    rest = memory.noise - emission.private_noise.square()[..., None, None] * outer
    state = memory.beginning(drive.shape[:-2])
    state = state + colour(memory.before_covariance, torch.randn_like(state))
    states = []
    for pushed in (drive + private).unbind(-2):
        state = memory.ahead(state, pushed)
        state = state + colour(rest, torch.randn_like(state))
        states.append(state)
    simulated = torch.stack(states, -3)
    y = memory.expected(simulated, drive) + memory.variance.sqrt() * torch.randn_like(drive)
    about_zero = replace(memory, baseline=0 * memory.baseline, before_mean=0 * memory.before_mean)
    apart = seen.y - y
    off = Observed(apart if seen.missing is None else apart.masked_fill(seen.missing, 0.0), seen.missing)
    found = smooth(about_zero, off, torch.zeros_like(drive), emission.private_noise)
    response = dot(emission.response, simulated + found.mean)
    return dict(zip(emission.trace_names, (drive + private + found.noise_mean, response), strict=True))


def _driven(model: BuiltInTransitions, z: Tensor) -> tuple[DrivenEmission, Tensor]:
    """Return the observation model of a run, and what drives features along paths of it."""
    emission, data = model.emission, model.data
    check_whole(model)
    if not isinstance(emission, DrivenEmission):
        raise ValueError(
            "Only observations that remember the latents (CalciumObservation, HaemodynamicObservation, "
            f"ColouredNoiseObservation) have something to deconvolve, got {type(emission).__name__}."
        )
    expected = (*data.shape, model.transition.rank)
    if z.dim() != 4 or z.shape[1:] != expected:
        raise ValueError(
            f"`z` must have shape draws x trials x time x rank, (draws, {', '.join(map(str, expected))}), got "
            f"{tuple(z.shape)}; `smooth` draws it."
        )
    return emission, emission.along(z, data.v)
