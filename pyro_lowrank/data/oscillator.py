"""A teacher: a noisy oscillator made of a low-rank network, by construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import check_positive, check_positive_int

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Oscillator:
    r"""The weights of a rank-2 network of rectified-linear units whose latents go round a circle.

    .. math:: z_t = a z_{t-1} + V \max(M z_{t-1} - h, 0)

    Attributes:
        decay: a, per time bin.
        left: M, `units x 2`, with orthonormal columns.
        right: V, `2 x units`.
        bias: h, `units`.
        radius: of the circle, which the latents approach from within and from without.
        period: of one turn, in time bins.
    """

    decay: float
    left: Array
    right: Array
    bias: Array
    radius: float
    period: float


def noisy_oscillator(
    *, units: int = 20, radius: float = 2.0, period: float = 30.0, decay: float = 0.9, attraction: float = 0.15
) -> Oscillator:
    r"""Construct an oscillator in the manner of the paper's teacher, from the motion that its latents are to make.

    The units stand in a ring: the rows of M point in all directions of the plane, every other unit with a threshold
    that it crosses only far out. V is the least-squares solution for which the network's step, on a disc of twice the
    radius, turns the latents by one `period`-th of a circle and pulls them to the radius r_0:

    .. math:: z \mapsto \Big(1 + c \tanh \frac{2 (r_0 - |z|)}{r_0}\Big) R_{2 \pi / \mathrm{period}}\, z

    Args:
        units: number of units.
        radius: r_0, in the units of the latents.
        period: of one turn, in time bins.
        decay: a, per time bin.
        attraction: c, how fast the latents approach the circle, per time bin.

    Example::

        >>> teacher = noisy_oscillator()
        >>> z = np.array([0.5, 0.0])
        >>> for _ in range(300):
        ...     z = teacher.decay * z + teacher.right @ np.maximum(teacher.left @ z - teacher.bias, 0.0)
        >>> bool(abs(np.hypot(*z) - teacher.radius) < 0.1)
        True

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS, fig. 2.
    """
    units = check_positive_int("units", units, minimum=6)
    radius, period = check_positive("radius", radius), check_positive("period", period)
    angles = 2 * np.pi * np.arange(units) / units
    left = np.sqrt(2 / units) * np.stack([np.cos(angles), np.sin(angles)], -1)
    largest = np.sqrt(2 / units) * radius
    bias = np.where(np.arange(units) % 2 == 0, -1.5 * largest, 0.75 * largest)

    grid = np.linspace(-2 * radius, 2 * radius, 33)
    z = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    distance = np.hypot(z[:, 0], z[:, 1])
    z, distance = z[distance <= 2 * radius], distance[distance <= 2 * radius]
    angle = 2 * np.pi / period
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    gain = 1 + attraction * np.tanh(2 * (radius - distance) / radius)
    drive = gain[:, np.newaxis] * (z @ rotation.T) - decay * z
    rates = np.maximum(z @ left.T - bias, 0.0)
    right = np.linalg.lstsq(rates, drive, rcond=1e-6)[0].T
    return Oscillator(decay=decay, left=left, right=right, bias=bias, radius=radius, period=period)
