"""Square roots of covariances: kept as such, covariances stay symmetric and positive definite in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise, StudentTNoise


def triangular_root(*parts: Tensor) -> Tensor:
    r"""Return the lower-triangular L with a positive diagonal for which :math:`L L^T = \sum_i A_i A_i^T`.

    By a QR decomposition: nothing is squared on the way.

    Args:
        parts: the A, `... x dim x columns` each, with the same batch dims or none; `dim` columns together at least.

    Example::

        >>> triangular_root(torch.tensor([[3.0]]), torch.tensor([[-4.0]]))
        tensor([[5.]])
    """
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    wide = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -1)
    upper = torch.linalg.qr(wide.mT, mode="r").R
    diagonal = upper.diagonal(dim1=-2, dim2=-1)
    return (upper * torch.where(diagonal < 0, -1.0, 1.0).to(upper.dtype).unsqueeze(-1)).mT


def check_has_covariance(noise: GaussianNoise) -> None:
    """Raise if the noise has no covariance: heavy-tailed noise has one above 2 degrees of freedom."""
    if isinstance(noise, StudentTNoise) and not bool((noise.freedom > 2).all()):
        raise ValueError(
            "A Gaussian filter takes heavy-tailed transition noise by its covariance, which is infinite up to 2 "
            f"degrees of freedom, got noise_freedom={noise.freedom.min().item():.3g}; use SMCFilter or SMC_ELBO."
        )


def root_of_noise(noise: GaussianNoise) -> Tensor:
    """Return the lower-triangular root of the covariance of noise that has one, `rank x rank`."""
    if not isinstance(noise, StudentTNoise):
        return noise.scale_tril
    return (noise.freedom / (noise.freedom - 2)).sqrt() * noise.scale_tril


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of `... x rows x columns` with `... x columns`."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def squared(root: Tensor) -> Tensor:
    """Return L L^T, symmetric to the last digit."""
    found = root @ root.mT
    # Products of matrices round their two triangles apart.
    return 0.5 * (found + found.mT)
