"""What is still to come, and all that was recorded, about the linear system of each feature, given paths of latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.linear_memory import LinearMemory, apply, same
from pyro_lowrank.observations.observed import Observed


class Backward(NamedTuple):
    r"""What the bins from one on say of the state before it, beside their numbers.

    As a function of the state s before the bin the likelihood of all of them, given what drives features, is
    :math:`\exp(-s^T \Omega s / 2 + \lambda^T s)`, and with lambda of the bin after it and deviations y - b

    .. math:: \lambda = M \lambda' + u (y - b) - c\, g

    Attributes:
        precision: Omega, `... x features x order x order`.
        onto: M, likewise.
        deviation: u, `... x features x order`.
        driven: c, likewise.
    """

    precision: Tensor
    onto: Tensor
    deviation: Tensor
    driven: Tensor

    def linear(self, later: Tensor, driven: Tensor, deviation: Tensor) -> Tensor:
        """Return lambda of paths, `paths x trials x features x order`, from that of the bin after."""
        return apply(self.onto, later) + self.deviation * deviation.unsqueeze(-1) - self.driven * driven.unsqueeze(-1)


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


def backward(memory: LinearMemory, later: Tensor, missing: Tensor | None) -> Backward:
    """Return what a bin and those after it say, from the precision Omega of those after it.

    Args:
        memory: the linear system.
        later: `... x features x order x order`.
        missing: entries of the bin, `... x features`.
    """
    # The bin first: where the state goes once it is seen, and what is then left to chance.
    column = apply(memory.noise, memory.readout)
    variance = (column * memory.readout).sum(-1) + memory.variance
    gain, seeing = column / variance.unsqueeze(-1), memory.weight / variance.unsqueeze(-1)
    if missing is not None:
        gain, seeing = (each.masked_fill(missing.unsqueeze(-1), 0.0) for each in (gain, seeing))
    transition = memory.transition - gain.unsqueeze(-1) * memory.weight.unsqueeze(-2)
    noise = memory.noise - gain.unsqueeze(-1) * column.unsqueeze(-2)
    eye = torch.eye(noise.shape[-1], dtype=noise.dtype, device=noise.device)
    shrink = torch.linalg.inv(eye + later @ noise)
    onto = transition.mT @ shrink
    into = onto @ later
    precision = into @ transition + seeing.unsqueeze(-1) * memory.weight.unsqueeze(-2)
    deviation = seeing - apply(into, gain)
    driven = deviation * memory.slope.unsqueeze(-1) + apply(into, memory.drive.expand(gain.shape))
    return Backward(0.5 * (precision + precision.mT), onto, deviation, driven)


def backwards(memory: LinearMemory, seen: Observed) -> list[Backward]:
    """Return what the bins from each one on say of the state before it, of a recording `trials x time x features`."""
    later = torch.zeros_like(memory.transition)
    if seen.missing is not None:
        later = later.expand(*seen.missing.shape[:-2], *later.shape)
    found: list[Backward] = []
    for missing in (None,) * seen.y.shape[-2] if seen.missing is None else seen.missing.flip(-2).unbind(-2):
        if missing is None and len(found) > 1 and same(found[-2].precision, found[-1].precision):
            found.append(found[-1])
            continue
        found.append(backward(memory, later, missing))
        later = found[-1].precision
    return found[::-1]


class Weighing(NamedTuple):
    r"""What :math:`\log \int N(s; m, P) \exp(-s^T \Omega s / 2 + \lambda^T s)\, ds` needs of Omega and P.

    Attributes:
        curvature: of it in m, `... x features x order x order`.
        shrink: what lambda is multiplied with for its slope, likewise.
    """

    curvature: Tensor
    shrink: Tensor

    @classmethod
    def of(cls, precision: Tensor, covariance: Tensor) -> Weighing:
        """Return it from Omega and P."""
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        shrink = torch.linalg.inv(eye + precision @ covariance)
        return cls(shrink @ precision, shrink)

    def log_likelihoods(self, linear: Tensor, means: Tensor) -> Tensor:
        """Return it up to a constant of each path, `paths x trials x particles`.

        Args:
            linear: lambda, `paths x trials x features x order`.
            means: of particles, `particles x trials x features x order`.
        """
        # Seen from the middle of the cloud, so that no digits are lost far from the origin.
        middle = means.mean(0)
        slope = apply(self.shrink, linear) - apply(self.curvature, middle)
        moved = means - middle
        own = 0.5 * (moved * apply(self.curvature, moved)).sum((-2, -1))
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
    eye = torch.eye(memory.drive.shape[-1], dtype=driven.dtype, device=driven.device)
    for t in reversed(range(len(laws))):
        law, there = laws[t], seen.present[..., t, :]
        seeing = memory.readout * (there / law.variance).unsqueeze(-1)
        # What is left of an error in the state, of the bin after, once the bin is seen.
        onward = memory.transition @ (eye - law.gain.unsqueeze(-1) * memory.readout.unsqueeze(-2))
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
