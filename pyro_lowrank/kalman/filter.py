"""The Gaussian filter's loop over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.kalman.laplace import LaplaceUpdate
from pyro_lowrank.kalman.linearise import linearise
from pyro_lowrank.kalman.roots import root_of_noise, triangular_root
from pyro_lowrank.kalman.updates import AffineUpdate, Conditioned, Update
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.curvature import Curved
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import RatesMap
from pyro_lowrank.smc.loop import ParticlesDied
from pyro_lowrank.smc.pair import Sequences


class FilterFailed(ParticlesDied):
    """The Gaussian filter's evidence is not finite; arguments as of `ParticlesDied`."""

    def __init__(self, time: int, trial: int | None, cause: str) -> None:
        super().__init__(time, trial, cause)
        where = "" if trial is None else f"of trial {trial} "
        self.args = (f"The Gaussian filter {where}fails at time {time}: {cause}.",)


@dataclass(frozen=True)
class Gaussians:
    """What the filter leaves of each time bin; covariances as roots, L L^T.

    Attributes:
        increments: log p(y_t | y_{<t}), `time x trials`.
        mean: given the data up to the bin, `trials x time x rank`.
        root: of its covariance, `trials x time x rank x rank`.
        predicted_mean: given the data before the bin, `trials x time x rank`.
        predicted_root: of its covariance, `trials x time x rank x rank`.
        jacobian: of the step from each bin to the next, `trials x (time - 1) x rank x rank`.
        noise_root: of the transition's covariance, `rank x rank`.
    """

    increments: Tensor
    mean: Tensor
    root: Tensor
    predicted_mean: Tensor
    predicted_root: Tensor
    jacobian: Tensor
    noise_root: Tensor


def check_observations(model: BoundModel) -> None:
    """Raise unless the observation model is affine-Gaussian or has a curvature."""
    emission = model.emission
    reads_rates = isinstance(getattr(emission, "readout", None), RatesMap)
    if model.affine_gaussian is None and (reads_rates or not isinstance(emission, Curved)):
        raise ValueError(
            "A Gaussian filter needs observations that are affine-Gaussian or have a method `curvature(z, v, y)`, read "
            f"from latents, inputs or currents, got {type(emission).__name__}; define one (see "
            "pyro_lowrank.observations.curvature.Curvature), or use SMCFilter and SMC_ELBO with a BootstrapGuide."
        )


def update_of(model: BoundModel, data: Sequences) -> Update:
    """Return how the model's observations are taken in."""
    check_observations(model)
    if model.affine_gaussian is not None:
        return AffineUpdate(model.affine_gaussian, data.seen, data.v)
    emission: Any = model.emission
    return LaplaceUpdate(emission, data.seen, data.v)


def sequences_of(model: BoundModel, y: Tensor, u: Tensor | None = None) -> Sequences:
    """Return whole sequences, `trials x time x ...`, as the filter reads them."""
    return Sequences(Observed.of(y), None if u is None else model.transition.effective_inputs(u), u)


def run_filter(model: BoundModel, data: Sequences, *, beyond: bool = True) -> Gaussians:
    r"""Run the extended Kalman filter over whole sequences, differentiably.

    .. math:: m_t = f(\mu_{t-1}, v_{t-1}), \qquad P_t = F_t \Sigma_{t-1} F_t^T + Q

    with F the Jacobian of the dynamics f at the mean :math:`\mu_{t-1}` given the data so far.

    Args:
        model: with its parameters read.
        data: the recording and its inputs.
        beyond: whether predictions go on after the last data of a trial; if not, they stand still there, so that
            padding cannot overflow, nor its gradient.

    Raises:
        FilterFailed: if the evidence is not finite, naming trial and time; an SMCFailed.
        ValueError: if the observations or the noise are not of a kind that it takes.
    """
    transition: Any = model.transition
    if transition.batch_shape:
        raise ValueError(
            f"The parameters have batch dims, {tuple(transition.batch_shape)} (draws under a vectorised inference), "
            "which a Gaussian filter does not take; run it draw by draw."
        )
    update = update_of(model, data)
    step, noise_root = linearise(transition), root_of_noise(transition.noise)
    trials, steps = data.shape
    mean = transition.first_mean(data.v_at(0)).expand(trials, -1)
    root = root_of_noise(transition.initial_noise).expand(trials, -1, -1)
    last = steps if beyond else int(data.last.min())
    inputs = (None,) * steps if data.v is None else data.v.unbind(1)
    bins: list[Conditioned] = []
    predicted, jacobians = [], []
    for t, bin_t in enumerate(update.bins()):
        if t:
            mean, jacobian = step(bins[-1].mean, inputs[t - 1])
            root = triangular_root(jacobian @ bins[-1].root, noise_root)
            if t > last:
                going = (data.last >= t).unsqueeze(-1)
                mean = torch.where(going, mean, bins[-1].mean)
                root = torch.where(going.unsqueeze(-1), root, bins[-1].root)
            jacobians.append(jacobian)
        predicted.append((mean, root))
        bins.append(update.condition(mean, root, bin_t))
    means = torch.stack([each.mean for each in bins], 1)
    shift = torch.stack([0.5 * each.eta.square().sum(-1) + each.log_root for each in bins])
    increments = update.log_likelihood(means).mT - shift
    check_finite(increments)
    return Gaussians(
        increments=increments,
        mean=means,
        root=torch.stack([each.root for each in bins], 1),
        predicted_mean=torch.stack([m for m, _ in predicted], 1),
        predicted_root=torch.stack([r for _, r in predicted], 1),
        jacobian=torch.stack(jacobians, 1) if jacobians else root.new_zeros(trials, 0, *root.shape[-2:]),
        noise_root=noise_root,
    )


def check_finite(increments: Tensor) -> None:
    """Raise where an increment of the log evidence, `time x trials`, is not finite."""
    bad = ~increments.isfinite()
    if bool(bad.any()):
        time, trial = (int(i) for i in bad.nonzero()[0])
        raise FilterFailed(
            time,
            trial,
            "the evidence is not finite: look for latents that run away between data, for noise near zero, or for data "
            "that the model rules out",
        )
