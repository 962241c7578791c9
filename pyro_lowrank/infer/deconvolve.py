"""What drove each feature, given the whole recording, of observations that remember the latents."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.linear_future import smooth
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
    drive = emission.along(z, data.v)
    found = smooth(emission.memory, data.seen, drive, emission.private_noise)
    variance = found.noise_variance.expand(drive.shape)
    own = found.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).expand(found.mean.shape)
    signal = emission.memory.expected(found.mean, drive)
    return Deconvolution(drive, drive + found.noise_mean, variance, found.mean, own, signal)
