r"""The log density of paths of latents and of a recording, vectorised over time.

.. math:: \log p(z_{1:T}, y_{1:T}) = \log p(z_1) + \sum_t \log p(z_t \mid z_{t-1}) + \sum_t \log p(y_t \mid z_t)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_lowrank.dynamics.means import Mean
from pyro_lowrank.guides.base import Bin, Encoding
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.base import AffineGaussian
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.pair import Pair, Sequences

Likelihood = Callable[[Observed, Tensor | None, Tensor], Tensor]


def log_joint(
    pair: Pair | BoundModel, data: Sequences, z: Tensor, mean: Mean, likelihood: Likelihood | None = None
) -> Tensor:
    """Return log p(z, y) in nats, averaged over paths, `trials`, up to each trial's last recorded bin.

    Args:
        pair: the model.
        data: the recording and its inputs.
        z: paths, `paths x trials x time x rank`.
        mean: of the next latents, `paths x trials x time x rank`, from latents and inputs `trials x time x inputs`.
        likelihood: what has the gradient of that of paths, `paths x trials x time`, from the recording, the inputs and
            the paths; with it, the value is not the density.
    """
    transition = pair.transition
    before = None if data.v is None else data.v[:, :-1]
    started = z[:, :, 0] - transition.first_mean(data.v_at(0))
    shifts = z[:, :, 1:] - mean(z[:, :, :-1], before)
    if data.seen.missing is None:
        first, moved = transition.initial_noise.log_prob(started), transition.noise.log_prob(shifts)
    else:
        # What comes after the data says nothing, but its scores would add noise. There are no paths there, so that
        # densities may overflow: infinity times zero is no zero.
        within = torch.arange(z.shape[2], device=z.device) <= data.last.unsqueeze(-1)
        started = torch.where(within[:, 0, None], started, 0.0)
        shifts = torch.where(within[:, 1:, None], shifts, 0.0)
        first = transition.initial_noise.log_prob(started) * within[:, 0]
        moved = transition.noise.log_prob(shifts) * within[:, 1:]
    return (first + moved.sum(-1)).mean(0) + log_likelihood(pair, data, z, likelihood)


def log_likelihood(pair: Pair | BoundModel, data: Sequences, z: Tensor, likelihood: Likelihood | None = None) -> Tensor:
    """Return log p(y | z) in nats, averaged over paths, `trials`; arguments as of `log_joint`."""
    affine = pair.affine_gaussian
    if affine is not None and affine.readout.weight.dim() == 2 and affine.readout.bias.dim() == 1:
        return _affine_gaussian(affine, data.seen, affine.readout.offset(data.v), z)
    # Where features remember, the data that are left to be explained depend on parameters.
    if likelihood is not None and data.seen.log_volume is None:
        return likelihood(data.seen, data.v, z).sum(-1).mean(0)
    return path_likelihood(pair, data, z).sum(-1).mean(0)


def path_likelihood(pair: Pair | BoundModel, data: Sequences, z: Tensor) -> Tensor:
    """Return log p(y_t | z_t) in nats along paths `paths x trials x time x rank`, `paths x trials x time`.

    Where observations remember the latents, given those before and the observations before too.
    """
    if isinstance(pair.emission, DrivenEmission):
        return pair.emission.entries(data.seen, data.v, z).sum(-1)
    # Time in front: the batch dims of sampled parameters line up with paths and trials.
    v = None if data.v is None else data.v.movedim(1, 0).unsqueeze(1)
    return Bin(data.seen.time_in_front(), v, {}).log_likelihood(pair.emission, z.movedim(2, 0)).movedim(0, -1)


def _affine_gaussian(affine: AffineGaussian, seen: Observed, offset: Tensor, z: Tensor) -> Tensor:
    r"""Return the likelihood by the first two moments of the paths: nothing the size of paths x features is made.

    .. math:: E |y - C z - d|_S^2 = |y - C E[z] - d|_S^2 + \mathrm{tr}(C^T S^{-1} C\, \mathrm{Cov}[z])
    """
    mean = z.mean(0)
    deviation = z - mean
    covariance = (deviation.unsqueeze(-1) * deviation.unsqueeze(-2)).mean(0).flatten(-2)
    weight, precision = affine.readout.weight, affine.precision(seen.missing)
    residual = seen.y - offset - mean @ weight.mT
    if seen.missing is not None:
        residual = residual.masked_fill(seen.missing, 0.0)
    spread = (precision.gram(weight).flatten(-2) * covariance).sum(-1)
    found = -0.5 * (precision.weigh(residual)[1] + spread + precision.log_normaliser)
    return (found if seen.log_volume is None else found + seen.log_volume).sum(-1)


def log_proposal(pair: Pair, data: Sequences, z: Tensor, mean: Tensor, encoding: Encoding) -> Tensor:
    """Return the log density of the proposals along paths, averaged over these, `trials`.

    Args:
        pair: the guide, of which alone gradients are sought.
        data: the recording and its inputs.
        z: paths, `paths x trials x time x rank`.
        mean: of the transition along them, `paths x trials x (time - 1) x rank`.
        encoding: of the recording by the proposal.
    """
    transition = pair.transition
    total = z.new_zeros(z.shape[:2])
    first_mean = transition.first_mean(data.v_at(0)).detach().expand(*z.shape[:2], -1).unsqueeze(2)
    until = torch.arange(z.shape[2], device=z.device) <= data.last.unsqueeze(-1)
    sections = ((transition.initial_noise, first_mean, slice(0, 1)), (transition.noise, mean, slice(1, None)))
    for noise, centre, times in sections:
        # Trials and time side by side: a proposal knows nothing of either.
        codes = {name: value[:, times].flatten(0, 1) for name, value in encoding.items()}
        # Where there is no path both are zero, as in `log_joint`.
        middle, path = (torch.where(until[:, times, None], each, 0.0) for each in (centre.detach(), z[:, :, times]))
        density = pair.proposal.distribution(noise, middle.flatten(1, 2), codes)
        found = density.log_prob(path.flatten(1, 2)).unflatten(-1, until[:, times].shape)
        total = total + (found * until[:, times]).sum(-1)
    return total.mean(0)
