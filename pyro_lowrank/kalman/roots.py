"""Square roots of covariances: kept as such, covariances stay symmetric and positive definite in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise, StudentTNoise


class _TriangularRoot(torch.autograd.Function):
    """The lower-triangular root by a QR decomposition, with the gradient of a Cholesky factor.

    Nothing is squared on the way forward. The gradient of a QR decomposition is not asked for: the root depends on A
    through A A^T alone.
    """

    @staticmethod
    def forward(wide: Tensor) -> Tensor:
        """Return L with L L^T = A A^T, for A `... x dim x columns`."""
        upper = torch.linalg.qr(wide.mT, mode="r").R
        diagonal = upper.diagonal(dim1=-2, dim2=-1)
        return (upper * torch.where(diagonal < 0, -1.0, 1.0).to(upper.dtype).unsqueeze(-1)).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep A and L."""
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Return the gradient of A: 2 S A, with S the symmetric gradient of A A^T."""
        wide, root = ctx.saved_tensors
        inner = root.mT @ grad_outputs[0]
        index = torch.arange(inner.shape[-1], device=inner.device)
        # The lower triangle, half of the diagonal; not `tril`, which wakes torch's other threads.
        share = 0.5 * ((index[:, None] > index).to(inner.dtype) + (index[:, None] >= index).to(inner.dtype))
        inner = inner * share
        inner = 0.5 * (inner + inner.mT)
        half = torch.linalg.solve_triangular(root.mT, inner, upper=True)
        return 2 * torch.linalg.solve_triangular(root.mT, half.mT, upper=True) @ wide


def triangular_root(*parts: Tensor) -> Tensor:
    r"""Return the lower-triangular L with a positive diagonal for which :math:`L L^T = \sum_i A_i A_i^T`.

    Args:
        parts: the A, `... x dim x columns` each, with the same batch dims or none; `dim` columns together at least.

    Example::

        >>> triangular_root(torch.tensor([[3.0]]), torch.tensor([[-4.0]]))
        tensor([[5.]])
    """
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    found: Any = _TriangularRoot.apply(torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -1))
    return found


def root_of_noise(noise: GaussianNoise) -> Tensor:
    """Return a root of the covariance of noise, `rank x rank`; heavy-tailed noise has one above 2 degrees of freedom.

    Raises:
        ValueError: if the noise has no covariance.
    """
    if not isinstance(noise, StudentTNoise):
        return noise.scale_tril
    if not bool((noise.freedom > 2).all()):
        raise ValueError(
            "A Gaussian filter takes heavy-tailed transition noise by its covariance, which is infinite up to 2 "
            f"degrees of freedom, got noise_freedom={noise.freedom.min().item():.3g}; use SMCFilter or SMC_ELBO."
        )
    return (noise.freedom / (noise.freedom - 2)).sqrt() * noise.scale_tril


def cholesky(matrix: Tensor) -> Tensor:
    """Return lower Cholesky factors, NaN where there is none: the filter tells of these with trial and time."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of `... x rows x columns` with `... x columns`."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def solve(factor: Tensor, vector: Tensor) -> Tensor:
    """Return P^-1 b, `... x dim`, for b of that shape and the lower Cholesky factor of P, `... x dim x dim`."""
    return torch.cholesky_solve(vector.unsqueeze(-1), factor).squeeze(-1)
