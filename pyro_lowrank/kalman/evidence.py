"""The Gaussian filter's log evidence, and its gradient by one pass back through time."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.kalman.filter import Problem, check_finite
from pyro_lowrank.kalman.gaussians import Cotangents, Gaussians, Tables
from pyro_lowrank.kalman.linearise import Linearised
from pyro_lowrank.kalman.roots import apply, squared


def log_evidence_increments(problem: Problem, found: Gaussians) -> Tensor:
    r"""Return the log evidence of each time bin given those before, `time x trials`: Laplace's approximation.

    .. math::

        \log \hat p(y_t \mid y_{<t}) = \log p(y_t \mid \mu_t) - \tfrac{1}{2} \eta_t^T \eta_t
        - \tfrac{1}{2} \log \det (I + L_t^T G_t L_t), \qquad \mu_t = m_t + L_t \eta_t

    Args:
        problem: the model and data.
        found: what the filter found.

    Raises:
        FilterFailed: if it is not finite, naming trial and time.
    """
    increments = (problem.likelihood.log_likelihood(found.mean) - found.cost).mT
    check_finite(increments)
    return increments


def differentiable_evidence(problem: Problem, found: Gaussians, increments: Tensor) -> Tensor:
    r"""Return the log evidence, `trials`, with its exact gradient in the parameters.

    The filter's recursion ran without gradients. Its cotangents come back through time in closed form, and what is
    differentiated is, at all time bins at once,

    .. math::

        \sum_t \log p(y_t \mid \mu_t) + \langle \bar s_t, s_t(\mu_t) \rangle + \langle \bar G_t, G_t(\mu_t) \rangle
        + \langle \bar m_t, f(\mu_{t-1}) \rangle + \langle \bar F_t, F(\mu_{t-1}) \rangle + \langle \bar P_t, Q \rangle

    with the means and the cotangents, those with bars, held fixed; s and G are the gradient and minus the Hessian of
    the log likelihood. The modes move with the parameters by the implicit function theorem. First
    derivatives only: those of the cotangents are left out.

    Args:
        problem: the model and data.
        found: what the filter found.
        increments: their log evidence, `time x trials`.
    """
    cotangents = _back_through_time(problem, found)
    likelihood, transition, data = problem.likelihood, problem.model.transition, problem.data
    pulls = likelihood.pulls(found.mean)
    score = pulls.score - apply(pulls.information, found.mean - pulls.reference)
    terms = likelihood.log_likelihood(found.mean)
    terms = terms + (cotangents.score * score).sum(-1) + _product(cotangents.information, pulls.information)
    first = (cotangents.mean[:, 0] * transition.first_mean(data.v_at(0))).sum(-1)
    carried = terms.sum(1) + first + _product(cotangents.covariance[:, 0], transition.initial_noise.covariance)
    if data.shape[1] > 1:
        mean, jacobian = problem.dynamics.step(found.mean[:, :-1], None if data.v is None else data.v[:, :-1])
        moving = (cotangents.mean[:, 1:] * mean).sum(-1) + _product(cotangents.jacobian, jacobian)
        moving = moving.sum(1) + _product(cotangents.covariance[:, 1:].sum(1), transition.noise.covariance)
        carried = carried + moving
    return increments.sum(0) + (carried - carried.detach())


def _product(cotangent: Tensor, value: Tensor) -> Tensor:
    return (cotangent * value).sum((-2, -1))


@torch.no_grad()
def _back_through_time(problem: Problem, found: Gaussians) -> Cotangents:
    r"""Return the cotangents of each step.

    With Sigma the covariance given the data, K = Sigma P^-1, a the score at the mean and
    :math:`A = P^{-1} - P^{-1} \Sigma P^{-1}`, the step from the prediction (m, P) is differentiated as

    .. math::

        d\mu = K (dm + dP\, a) + \Sigma\, ds, \qquad d\Sigma = K\, dP\, K^T - \Sigma\, dG\, \Sigma, \qquad
        d \log \hat p = a^T dm + \tfrac{1}{2} \langle a a^T - A, dP \rangle - \tfrac{1}{2} \langle \Sigma, dG \rangle

    where G moves with mu too. All but the recursion itself is computed at all time bins at once.
    """
    likelihood, data = problem.likelihood, problem.data
    steps, rank = found.mean.shape[1:]
    eye = torch.eye(rank, dtype=found.mean.dtype, device=found.mean.device)
    sigma = squared(found.root)
    inverse = torch.linalg.solve_triangular(found.predicted_root, eye.expand_as(found.root), upper=False)
    # In units of the prediction: K and A without the difference of large numbers.
    white = inverse @ found.root
    gain = found.root @ white.mT @ inverse
    pulls = likelihood.pulls(found.mean)
    score = pulls.score - apply(pulls.information, found.mean - pulls.reference)
    outer = score.unsqueeze(-1) * score.unsqueeze(-2)
    direct = 0.5 * (outer - inverse.mT @ (eye - white @ white.mT) @ inverse)
    third = likelihood.third(found.mean)
    v = None if data.v is None else data.v[:, :-1]
    bend = problem.dynamics.bend(found.mean[:, :-1], v) if steps > 1 else None
    spread = found.jacobian @ sigma[:, :-1]
    tables = Tables(sigma, gain, score, direct, third, found.jacobian, spread, bend)
    return _plain(tables, problem.dynamics) if problem.loops is None else problem.loops.back(tables)


def _plain(tables: Tables, dynamics: Linearised) -> Cotangents:
    """Go back through time by tensor operations."""
    third, bend = tables.third, tables.bend
    of_mean, of_covariance = torch.zeros_like(tables.score[:, 0]), torch.zeros_like(tables.sigma[:, 0])
    rows: list[tuple[Tensor, ...]] = []
    jacobians = []
    for t in reversed(range(tables.score.shape[1])):
        s, k, a = tables.sigma[:, t], tables.gain[:, t], tables.score[:, t]
        information = -0.5 * s - s @ of_covariance @ s
        if third is not None:
            of_mean = of_mean + (information.flatten(-2).unsqueeze(-2) @ third[:, t]).squeeze(-2)
        back = (of_mean.unsqueeze(-2) @ k).squeeze(-2)
        mean = back + a
        cross = 0.5 * back.unsqueeze(-1) * a.unsqueeze(-2)
        covariance = k.mT @ of_covariance @ k + cross + cross.mT + tables.direct[:, t]
        rows.append((mean, covariance, (of_mean.unsqueeze(-2) @ s).squeeze(-2), information))
        if t:
            jacobian = tables.jacobian[:, t - 1]
            of_jacobian = 2 * covariance @ tables.spread[:, t - 1]
            jacobians.append(of_jacobian)
            of_mean = (mean.unsqueeze(-2) @ jacobian).squeeze(-2)
            of_covariance = jacobian.mT @ covariance @ jacobian
            if bend is not None:
                of_mean = of_mean + dynamics.pull_back(bend[:, t - 1], of_jacobian)
    mean, covariance, of_score, information = (torch.stack(part[::-1], 1) for part in zip(*rows, strict=True))
    jacobian = torch.stack(jacobians[::-1], 1) if jacobians else torch.zeros_like(tables.jacobian)
    return Cotangents(mean, covariance, jacobian, of_score, information)
