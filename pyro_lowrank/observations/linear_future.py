"""What is still to come, and all that was recorded, about the linear system of each feature, given paths of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.linear_memory import Law, LinearMemory, apply
from pyro_lowrank.observations.observed import Observed


class Future(NamedTuple):
    r"""The likelihood of all later bins as a function of the state s now, :math:`\exp(-s^T \Omega s / 2 + \lambda^T s)`.

    Attributes:
        precision: Omega, `... x features x order x order`; the same for all paths.
        linear: lambda, `paths x trials x features x order`.
    """

    precision: Tensor
    linear: Tensor


class Smoothed(NamedTuple):
    """The linear system of each feature given the whole recording and paths of the latents.

    Attributes:
        mean: of the state, `paths x trials x time x features x order`.
        covariance: of the state, `... x time x features x order x order`; it does not depend on the path.
        noise_mean: of the noise in units of the drive, `paths x trials x time x features`.
        noise_variance: of that noise, `... x time x features`.
    """

    mean: Tensor
    covariance: Tensor
    noise_mean: Tensor
    noise_variance: Tensor


@dataclass(frozen=True)
class Step:
    r"""One bin as an affine map of the state before it, once the bin is seen.

    .. math:: s_t = \tilde A s_{t-1} + c_t + \tilde w_t, \qquad y_t \sim N(h^T s_{t-1} + \ldots, r)

    Attributes:
        transition: A~, `... x features x order x order`.
        gain: k, `... x features x order`, zero where missing.
        noise: covariance of w~, `... x features x order x order`.
        weight: h, `features x order`.
        variance: r, `features`.
    """

    transition: Tensor
    gain: Tensor
    noise: Tensor
    weight: Tensor
    variance: Tensor

    @classmethod
    def of(cls, memory: LinearMemory, missing: Tensor | None) -> Step:
        """Return that of a bin with missing entries `... x features`."""
        column = apply(memory.noise, memory.readout)
        variance = (column * memory.readout).sum(-1) + memory.variance
        gain = column / variance.unsqueeze(-1)
        if missing is not None:
            gain = gain.masked_fill(missing.unsqueeze(-1), 0.0)
        weight = apply(memory.transition.mT, memory.readout)
        return cls(
            memory.transition - gain.unsqueeze(-1) * weight.unsqueeze(-2),
            gain,
            memory.noise - gain.unsqueeze(-1) * column.unsqueeze(-2),
            weight,
            variance,
        )


def nothing_to_come(memory: LinearMemory, batch_shape: torch.Size) -> Future:
    """Return the future after the last bin."""
    return Future(torch.zeros_like(memory.transition), memory.before_mean.new_zeros(*batch_shape, *memory.drive.shape))


def extended(memory: LinearMemory, future: Future, seen: Observed, driven: Tensor) -> Future:
    """Return the future as of one bin earlier.

    Args:
        memory: the linear system.
        future: after the bin.
        seen: the bin, `trials x features`.
        driven: what drives features in it, `paths x trials x features`.
    """
    step = Step.of(memory, seen.missing)
    eye = torch.eye(memory.transition.shape[-1], dtype=driven.dtype, device=driven.device)
    shrink = torch.linalg.inv(eye + future.precision @ step.noise)
    later = shrink @ future.precision
    surprise = seen.y - memory.baseline - memory.slope * driven
    entering = memory.drive * driven.unsqueeze(-1) + step.gain * surprise.unsqueeze(-1)
    precision = step.transition.mT @ later @ step.transition
    linear = apply(step.transition.mT, apply(shrink, future.linear) - apply(later, entering))
    seeing = step.weight / step.variance.unsqueeze(-1)
    if seen.missing is not None:
        seeing = seeing.masked_fill(seen.missing.unsqueeze(-1), 0.0)
    precision = precision + seeing.unsqueeze(-1) * step.weight.unsqueeze(-2)
    return Future(0.5 * (precision + precision.mT), linear + seeing * surprise.unsqueeze(-1))


def log_likelihoods(future: Future, covariance: Tensor, means: Tensor) -> Tensor:
    r"""Return the log likelihood of the future from each mean, up to a constant of each path.

    .. math:: \log \int N(s; m_i, P) \exp(-s^T \Omega s / 2 + \lambda_d^T s)\, ds

    Args:
        future: of paths.
        covariance: P, of what is known of the state, `... x features x order x order`.
        means: of particles, `particles x trials x features x order`.

    Returns:
        `paths x trials x particles`.
    """
    eye = torch.eye(covariance.shape[-1], dtype=means.dtype, device=means.device)
    shrink = torch.linalg.inv(eye + future.precision @ covariance)
    curvature = shrink @ future.precision
    # Seen from the middle of the cloud, so that no digits are lost far from the origin.
    middle = means.mean(0)
    slope = apply(shrink, future.linear) - apply(curvature, middle)
    moved = means - middle
    own = 0.5 * (moved * apply(curvature, moved)).sum((-2, -1))
    # One product per trial of all features: nothing of paths x particles x features is made.
    rows, columns = slope.flatten(-2).transpose(0, 1), moved.flatten(-2).permute(1, 2, 0)
    return (rows @ columns).transpose(0, 1) - own.mT


def smooth(memory: LinearMemory, seen: Observed, driven: Tensor, noise_scale: Tensor) -> Smoothed:
    r"""Return the state of each feature given the whole recording, along paths; and the noise of what drives it.

    Args:
        memory: the linear system.
        seen: the recording, `trials x time x features`.
        driven: what drives features, `paths x trials x time x features`.
        noise_scale: standard deviation of noise that enters with the drive, `features`.

    References:
        Durbin and Koopman (2012), "Time series analysis by state space methods", 2nd ed., sections 4.4 and 4.5.
    """
    laws = memory.laws(seen)
    surprises, aheads = memory.surprises(seen, driven, laws)
    score = torch.zeros_like(aheads[..., 0, :, :])
    information = torch.zeros_like(memory.transition)
    means, covariances, noises, variances = [], [], [], []
    noise_variance = noise_scale.square()
    for t in reversed(range(len(laws))):
        law, there = laws[t], seen.present[..., t, :]
        seeing = memory.readout * (there / law.variance).unsqueeze(-1)
        # What is left of an error in the state once the bin is seen.
        kept = torch.eye(memory.drive.shape[-1], dtype=driven.dtype, device=driven.device)
        kept = kept - law.gain.unsqueeze(-1) * memory.readout.unsqueeze(-2)
        onward = memory.transition @ kept
        if t == len(laws) - 1:
            onward = torch.zeros_like(onward)
        score = apply(onward.mT, score) + seeing * surprises[..., t, :].unsqueeze(-1)
        information = onward.mT @ information @ onward + seeing.unsqueeze(-1) * memory.readout.unsqueeze(-2)
        means.append(aheads[..., t, :, :] + apply(law.ahead, score))
        covariances.append(law.ahead - law.ahead @ information @ law.ahead)
        noises.append(noise_variance * (memory.drive * score).sum(-1))
        told = (memory.drive * apply(information, memory.drive)).sum(-1)
        variances.append(noise_variance - noise_variance.square() * told)
    return Smoothed(
        torch.stack(means[::-1], -3),
        torch.stack(covariances[::-1], -4),
        torch.stack(noises[::-1], -2),
        torch.stack(variances[::-1], -2).clamp(min=0.0),
    )
