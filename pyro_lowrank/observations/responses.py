"""Responses as small linear systems."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_STATES = 6
_SECONDS = 40.0


def double_gamma(bin_size: float) -> Tensor:
    r"""Return the canonical response to a drive of one for one bin, at the ends of the bins after, in double precision.

    .. math:: h(s) \propto g(s; 6) - g(s; 16) / 6

    with gamma densities g of unit scale, in seconds; it sums to one.

    Args:
        bin_size: in seconds.

    Example::

        >>> response = double_gamma(0.5)
        >>> 0.5 * (response.argmax().item() + 1)
        5.5

    References:
        Friston et al. (1998), NeuroImage 7:30; the numbers are the defaults of `spm_hrf` in SPM12.
    """
    ends = torch.arange(0.0, _SECONDS + bin_size, bin_size, dtype=torch.float64)
    shapes = torch.tensor([[6.0], [16.0]], dtype=torch.float64)
    early, late = torch.special.gammainc(shapes, ends.expand(2, -1)).diff()
    response: Tensor = early - late / 6
    return response / response.sum()


def realised(response: Tensor, most: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the smallest linear system (A, B, H) with :math:`H A^k B` the k-th number of a response.

    Args:
        response: to a drive of one for one bin.
        most: number of states.
        tolerance: of its largest number.

    Raises:
        ValueError: if so many states do not suffice, or the system is not stable.

    Example::

        >>> a, b, h = realised(0.5 ** torch.arange(60.0, dtype=torch.float64), 2, 1e-9)
        >>> round(a.item(), 6), round((h @ b).item(), 6)
        (0.5, 1.0)

    References:
        Ho and Kalman (1966), Regelungstechnik 14:545; Kung (1978), Asilomar Conf. on Circuits, Systems and Computers.
    """
    half = (len(response) + 1) // 2
    rows = torch.nn.functional.pad(response, (0, half)).unfold(0, half, 1)[: len(response)]
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    times = torch.arange(len(response))
    for order in range(1, min(most, len(sizes) - 1) + 1):
        root = sizes[:order].sqrt()
        observed, driven = left[:, :order] * root, right[:order, 0] * root
        transition = torch.linalg.lstsq(observed[:-1], observed[1:]).solution
        powers = torch.stack([torch.linalg.matrix_power(transition, int(k)) for k in times])
        found = (observed[0] @ powers) @ driven
        stable = torch.linalg.eigvals(transition).abs().max() < 1
        if bool(stable) and (found - response).abs().max() <= tolerance * response.abs().max():
            # Of the gain that the response has.
            settled = observed[0] @ torch.linalg.solve(torch.eye(order, dtype=response.dtype) - transition, driven)
            return transition, driven * response.sum() / settled, observed[0]
    raise ValueError(f"A linear system of at most {most} states does not have this response: take shorter time bins.")
