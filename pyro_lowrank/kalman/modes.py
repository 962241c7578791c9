"""The mode of the latents in one time bin, given their prediction: the search that cannot go astray."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.kalman.likelihoods import Likelihood, Pulls
from pyro_lowrank.kalman.roots import apply

# Steps by the curvature on the way to what the data ask for, which never overshoot, before Newton's own.
_CAREFUL_STEPS = 3
_MOST_STEPS = 100
_MOST_HALVINGS = 30


def pulls_at_mode(likelihood: Likelihood, mean: Tensor, root: Tensor) -> tuple[Pulls, Tensor]:
    r"""Return the expansion of one time bin's log likelihood at the mode, and which trials found it.

    In units of the prediction, z = m + L eta, climbs :math:`\log p(y \mid z) - \tfrac{1}{2} \eta^T \eta` by careful
    steps, then by Newton's, each cut in half until it leads up.

    Args:
        likelihood: of one time bin, `trials x 1 x ...`.
        mean: of the prediction, m, `trials x rank`.
        root: of its covariance, L, `trials x rank x rank`.
    """
    mean, root = mean.unsqueeze(1), root.unsqueeze(1)
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    tolerance = torch.finfo(mean.dtype).eps ** 0.6

    def height(eta: Tensor) -> Tensor:
        return likelihood.log_likelihood(mean + apply(root, eta)) - 0.5 * eta.square().sum(-1)

    def climb(eta: Tensor, pulls: Pulls) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(eye + root.mT @ pulls.information @ root)
        if pulls.fallback is not None and bool(info.any()):
            safe = torch.linalg.cholesky_ex(eye + root.mT @ pulls.fallback @ root).L
            factor = torch.where((info == 0)[..., None, None], factor, safe)
        uphill = apply(root.mT, pulls.score) - eta
        return torch.cholesky_solve(uphill.unsqueeze(-1), factor).squeeze(-1)

    eta = torch.zeros_like(mean)
    for _ in range(_CAREFUL_STEPS):
        eta = eta + climb(eta, likelihood.careful_pulls(mean + apply(root, eta)))
    for _ in range(_MOST_STEPS):
        pulls = likelihood.pulls(mean + apply(root, eta))
        step = climb(eta, pulls)
        found = (step.abs() < tolerance * (1 + eta.abs())).all(-1)
        if bool((found | step.isnan().any(-1)).all()):
            break
        before = height(eta)
        for _ in range(_MOST_HALVINGS):
            # So short a step goes up by less than the rounding of the height.
            down = (height(eta + step) < before) & (step.abs().amax(-1) > 1e-2)
            if not bool(down.any()):
                break
            step = torch.where(down.unsqueeze(-1), 0.5 * step, step)
        eta = eta + step
    # The last steps are as small as rounding lets them be, or the search has failed.
    return pulls, ((step.abs() < tolerance**0.5 * (1 + eta.abs())).all(-1) | step.isnan().any(-1)).squeeze(1)
