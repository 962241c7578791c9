"""The Gaussian filter: its loop over time, and the search for the modes where the likelihood is not Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.kalman.gaussians import Gaussians, Start
from pyro_lowrank.kalman.likelihoods import AffineLikelihood, CurvedLikelihood, Likelihood, Pulls
from pyro_lowrank.kalman.linearise import Linearised, linearise
from pyro_lowrank.kalman.modes import pulls_at_mode
from pyro_lowrank.kalman.roots import check_has_covariance, root_of_noise, triangular_root
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.curvature import Curved
from pyro_lowrank.observations.readout import RatesMap
from pyro_lowrank.smc.loop import ParticlesDied
from pyro_lowrank.smc.pair import Sequences
from pyro_lowrank.smc.runs import leave_to_tensors

if TYPE_CHECKING:
    from pyro_lowrank.kalman.compiled import CompiledLoops

# Where modes move less than this share of the posterior's width, Newton's own steps are tried.
_NEAR = 0.3
_MOST_PASSES = 25


class FilterFailed(ParticlesDied):
    """The Gaussian filter's evidence is not finite, or a mode is not found; arguments as of `ParticlesDied`."""

    @classmethod
    def at(cls, time: int, trial: int | None, cause: str) -> FilterFailed:
        """Return the error of a trial and time bin."""
        where = "" if trial is None else f"of trial {trial} "
        return cls(f"The Gaussian filter {where}fails at time {time}: {cause}.", time=time, trial=trial, cause=cause)


@dataclass(frozen=True)
class Problem:
    """A model with its parameters read, and data, as the filter looks at them.

    Attributes:
        model: the model.
        data: the recording and its inputs.
        dynamics: the model's, with their Jacobian.
        likelihood: of the recording.
        beyond: whether predictions go on after the last data of a trial; if not, they stand still there, so that
            padding cannot overflow.
        loops: compiled ones over time, or None, where they run on tensor operations.
    """

    model: BoundModel
    data: Sequences
    dynamics: Linearised
    likelihood: Likelihood
    beyond: bool
    loops: CompiledLoops | None = None

    @classmethod
    def of(
        cls, model: BoundModel, y: Tensor, u: Tensor | None = None, *, beyond: bool, backend: str = "plain"
    ) -> Problem:
        """Return the problem that whole sequences `trials x time x ...` set.

        Raises:
            NoCompiledForm: if the backend is `"compiled"` and the loops have none.
            ValueError: if the observations, the noise or the parameters are not of a kind that the filter takes.
        """
        check_observations(model)
        transition: Any = model.transition
        check_has_covariance(transition.noise)
        if transition.batch_shape:
            raise ValueError(
                f"The parameters have batch dims, {tuple(transition.batch_shape)} (draws under a vectorised "
                "inference), which a Gaussian filter does not take; run it draw by draw."
            )
        data = Sequences.of(model, y, u)
        emission: Any = model.emission
        likelihood: Likelihood
        if model.affine_gaussian is None:
            likelihood = CurvedLikelihood(emission, data.seen, data.v)
        else:
            likelihood = AffineLikelihood(model.affine_gaussian, data.seen, data.v)
        loops = _compiled_loops(transition, backend, with_inputs=data.v is not None)
        return cls(model, data, linearise(transition), likelihood, beyond, loops)


def _compiled_loops(transition: Any, backend: str, *, with_inputs: bool) -> CompiledLoops | None:
    if backend == "plain":
        return None
    try:
        # Deferred: importing Numba takes longer than the rest of the package.
        from pyro_lowrank.kalman.compiled import CompiledLoops

        return CompiledLoops(transition.drift, with_inputs=with_inputs)
    except NoCompiledForm as reason:
        leave_to_tensors(reason, backend)
        return None


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


@torch.no_grad()
def run_filter(problem: Problem) -> Gaussians:
    r"""Return the Gaussians of all time bins.

    .. math::

        m_t = f(\mu_{t-1}, v_{t-1}), \quad P_t = F_t \Sigma_{t-1} F_t^T + Q = L L^T, \quad
        \mu_t = \arg\max_z \log p(y_t \mid z) + \log N(z; m_t, P_t), \quad \Sigma_t = (P_t^{-1} + G_t)^{-1}

    with F the Jacobian of the dynamics f at :math:`\mu_{t-1}` and G minus the Hessian of the log likelihood at
    :math:`\mu_t`. Where that is not constant, the modes of all time bins are sought together: each pass expands the
    likelihoods around the present means, all at once, and filters with these quadratics. What it stands still at are
    the modes, and near them a pass is a step of Newton's.

    Raises:
        FilterFailed: if the modes are not found, naming trial and time.

    References:
        Fahrmeir (1992), J. Am. Stat. Assoc. 87:501; Durbin and Koopman (1997), Biometrika 84:669.
    """
    likelihood, trials, steps = problem.likelihood, *problem.data.shape
    z = problem.model.transition.initial_mean.expand(trials, steps, -1)
    found = _forward(problem, likelihood.careful_pulls(z))
    if likelihood.is_quadratic:
        return found
    # A pass of Newton's makes the error smaller by a factor of about a hundred once more.
    tolerance = torch.finfo(z.dtype).eps ** 0.5
    moved = torch.full_like(z[:, 0, 0], torch.inf)
    enough, settled = torch.full_like(moved, _NEAR), torch.zeros_like(moved, dtype=torch.bool)
    near, was_near = settled, settled
    for _ in range(_MOST_PASSES):
        z, before = found.mean, moved
        careful = likelihood.careful_pulls(z)
        found = _forward(problem, _chosen(near, likelihood.pulls(z), careful) if bool(near.any()) else careful)
        width = found.root.square().sum(-1).sqrt()
        moved = ((found.mean - z).abs() / width).amax((1, 2))
        settled = settled | (near & (moved < tolerance))
        # Where anything is NaN the evidence, and so the error message, tells where.
        if bool(settled.all()) or bool(moved.isnan().any()):
            return found
        # Newton's steps and careful ones end in other covariances, and so in other means: each are compared with their
        # like. Trials in which a step of Newton's led away go on with careful ones for longer.
        away = near & was_near & ~settled & (moved > before)
        enough = torch.where(away, (0.3 * enough).clamp(min=10 * tolerance), enough)
        near, was_near = torch.where(near, ~away, moved < enough), near
    # Passes that each move all later predictions may go round in circles: bin by bin the search cannot.
    return _forward(problem, None)


def _chosen(near: Tensor, own: Pulls, careful: Pulls) -> Pulls:
    """Return the first of the expansions for trials that are near, else the second."""
    assert own.fallback is not None
    wide = near[:, None, None, None]
    return Pulls(
        own.reference,
        torch.where(near[:, None, None], own.score, careful.score),
        torch.where(wide, own.information, careful.information),
        torch.where(wide, own.fallback, careful.information),
    )


def _forward(problem: Problem, pulls: Pulls | None) -> Gaussians:
    """Filter with a quadratic in place of each time bin's log likelihood; if None, that at each bin's mode."""
    transition, data = problem.model.transition, problem.data
    trials, steps = data.shape
    noise_root, root = root_of_noise(transition.noise), root_of_noise(transition.initial_noise)
    mean = transition.first_mean(data.v_at(0)).expand(trials, -1)
    if problem.loops is not None and pulls is not None:
        start = Start(mean, root, noise_root, data.v, None if problem.beyond else data.last)
        return problem.loops.forward(start, pulls)
    root = root.expand(trials, -1, -1)
    last = steps if problem.beyond else int(data.last.min())
    inputs = (None,) * steps if data.v is None else data.v.unbind(1)
    quadratics = _cut(pulls, steps)
    each = problem.likelihood.bins() if pulls is None else []
    bins: list[tuple[Tensor, ...]] = []
    jacobians = []
    for t, quadratic in enumerate(quadratics):
        if t:
            before, root_before = bins[-1][:2]
            mean, jacobian = problem.dynamics.step(before, inputs[t - 1])
            root = triangular_root(jacobian @ root_before, noise_root)
            jacobians.append(jacobian)
            if t > last:
                going = (data.last >= t).unsqueeze(-1)
                mean = torch.where(going, mean, before)
                # A root of the covariance before that is triangular, as this one has to be.
                root = torch.where(going.unsqueeze(-1), root, triangular_root(root_before))
        if quadratic is None:
            at_mode, is_found = pulls_at_mode(each[t], mean, root)
            if not bool(is_found.all()):
                raise FilterFailed.at(t, int(is_found.logical_not().nonzero()[0]), "no mode of the latents was found")
            (quadratic,) = _cut(at_mode, 1)
        bins.append((*_condition(mean, root, *quadratic), mean, root))
    means, roots, costs, predicted, predicted_roots = (torch.stack(part, 1) for part in zip(*bins, strict=True))
    jacobian = torch.stack(jacobians, 1) if jacobians else root.new_zeros(trials, 0, *root.shape[1:])
    return Gaussians(means, roots, predicted, predicted_roots, jacobian, noise_root, costs)


def _cut(pulls: Pulls | None, steps: int) -> list[Any]:
    """Return reference, score, information and fallback of each time bin; None for each if there are none yet."""
    if pulls is None:
        return [None] * steps
    fallbacks: Any = (None,) * steps if pulls.fallback is None else pulls.fallback.unbind(1)
    parts = (pulls.reference.unbind(1), pulls.score.unbind(1), pulls.information.unbind(1), fallbacks)
    return list(zip(*parts, strict=True))


def _condition(
    mean: Tensor, root: Tensor, reference: Tensor, score: Tensor, information: Tensor, fallback: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return mean, root of the covariance and cost of a bin, from the prediction N(m, L L^T).

    In units of the prediction, z = m + L eta, the precision is :math:`P = I + L^T G L`, and the cost
    :math:`\tfrac{1}{2} (\eta^T \eta + \log \det P)`: neither loses digits where the data are precise.
    """
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    weighed = information @ root
    factor, info = torch.linalg.cholesky_ex(eye + root.mT @ weighed)
    if bool(info.any()):
        failed = (info != 0)[..., None, None]
        if fallback is not None:
            weighed = torch.where(failed, fallback @ root, weighed)
            factor, info = torch.linalg.cholesky_ex(eye + root.mT @ weighed)
            failed = (info != 0)[..., None, None]
        factor = torch.where(failed, torch.nan, factor)
    uphill = root.mT @ score.unsqueeze(-1) - weighed.mT @ (mean - reference).unsqueeze(-1)
    eta = torch.cholesky_solve(uphill, factor)
    conditioned = torch.linalg.solve_triangular(factor, root.mT, upper=False).mT
    log_root = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mean + (root @ eta).squeeze(-1), conditioned, 0.5 * eta.square().sum((-2, -1)) + log_root


def check_finite(increments: Tensor) -> None:
    """Raise where an increment of the log evidence, `time x trials`, is not finite."""
    bad = ~increments.isfinite()
    if bool(bad.any()):
        time, trial = (int(i) for i in bad.nonzero()[0])
        raise FilterFailed.at(
            time,
            trial,
            "the evidence is not finite: look for latents that run away between data, for noise near zero, or for data "
            "that the model rules out",
        )
