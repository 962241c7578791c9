"""The Rauch-Tung-Striebel smoother behind the Gaussian filter, and draws from its joint distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.kalman.gaussians import Gaussians
from pyro_lowrank.kalman.roots import apply, triangular_root


@dataclass(frozen=True)
class Backward:
    r"""The Gaussian of each time bin given the next one and the data up to the bin, for all but the last bin.

    .. math:: z_t \mid z_{t+1}, y_{\le t} \sim N(\mu_t + G_t (z_{t+1} - m_{t+1}),\ R_t R_t^T)

    Attributes:
        gain: G, `trials x (time - 1) x rank x rank`.
        root: R, likewise.
    """

    gain: Tensor
    root: Tensor


def backward_steps(filtered: Gaussians) -> Backward:
    """Return the gains and roots of all steps back."""
    before, after = filtered.root[:, :-1], filtered.predicted_root[:, 1:]
    spread = filtered.jacobian @ before
    # G = Sigma F^T P^-1, with P = L L^T.
    gain = (torch.cholesky_solve(spread @ before.mT, after)).mT
    # Joseph's form, as a root: Sigma - G P G^T = (I - G F) Sigma (I - G F)^T + G Q G^T.
    root = triangular_root(before - gain @ spread, gain @ filtered.noise_root)
    return Backward(gain, root)


@dataclass(frozen=True)
class Smoothed:
    """Moments given the whole recording.

    Attributes:
        mean: `trials x time x rank`.
        covariance: `trials x time x rank x rank`.
        lagged: of each bin (rows) with the next one (columns), `trials x (time - 1) x rank x rank`.
    """

    mean: Tensor
    covariance: Tensor
    lagged: Tensor


def smooth(filtered: Gaussians, steps: Backward) -> Smoothed:
    """Return the moments given the whole recording.

    References:
        Rauch, Tung and Striebel (1965), AIAA J. 3:1445.
    """
    means, roots = [filtered.mean[:, -1]], [filtered.root[:, -1]]
    for t in reversed(range(steps.gain.shape[1])):
        gain = steps.gain[:, t]
        surprise = means[-1] - filtered.predicted_mean[:, t + 1]
        means.append(filtered.mean[:, t] + apply(gain, surprise))
        roots.append(triangular_root(steps.root[:, t], gain @ roots[-1]))
    mean, root = torch.stack(means[::-1], 1), torch.stack(roots[::-1], 1)
    covariance = root @ root.mT
    return Smoothed(mean, covariance, steps.gain @ covariance[:, 1:])


def draw_paths(filtered: Gaussians, steps: Backward, num_draws: int) -> Tensor:
    """Draw paths given the whole recording, `draws x trials x time x rank`."""
    like = filtered.mean
    white = torch.randn(num_draws, *like.shape, dtype=like.dtype, device=like.device)
    z = [filtered.mean[:, -1] + apply(filtered.root[:, -1], white[:, :, -1])]
    for t in reversed(range(steps.gain.shape[1])):
        centre = filtered.mean[:, t] + apply(steps.gain[:, t], z[-1] - filtered.predicted_mean[:, t + 1])
        z.append(centre + apply(steps.root[:, t], white[:, :, t]))
    return torch.stack(z[::-1], -2)
