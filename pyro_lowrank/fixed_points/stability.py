"""Stability of fixed points and cycles from the eigenvalues of the Jacobian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.fixed_points.found import Complex
from pyro_lowrank.fixed_points.network import PIECEWISE, Array, LatentMap

MARGIN = 1e-8
"""Distance from the unit circle below which an eigenvalue is called marginal: rounding moves a double one that far."""

KNOT_MARGIN = 1e-9
"""Relative distance of a current from a knot below which the point is taken to lie on it."""

LABELS = ("attractor", "saddle", "repeller", "marginal", "boundary")


class Stability(NamedTuple):
    """What the eigenvalues of `points` Jacobians say."""

    labels: NDArray[np.str_]
    """One of `LABELS` each, `points`."""
    num_unstable: NDArray[np.int64]
    """How many eigenvalues lie outside of the unit circle, `points`."""
    is_spiral: NDArray[np.bool_]
    """Whether some eigenvalue is not real, so that trajectories turn around the point, `points`."""


def classify(eigenvalues: Complex, on_knot: NDArray[np.bool_]) -> Stability:
    r"""Label each point by how many eigenvalues :math:`\lambda` of the Jacobian have :math:`|\lambda| > 1`.

    None: an attractor. All: a repeller. Some: a saddle. Any within `MARGIN` of the unit circle: marginal, for the
    linear part does not decide. On a knot: boundary, for there the Jacobian has more than one value and the eigenvalues
    of none of them decide (even where every side contracts, their alternation may expand).

    Args:
        eigenvalues: `points x rank`.
        on_knot: whether each point lies on a knot of some unit, `points`.

    Example::

        >>> values = np.array([[0.5, 0.2], [1.5, 0.2], [0.5 + 0.5j, 0.5 - 0.5j]])
        >>> classify(values, np.array([False, False, True])).labels.tolist()
        ['attractor', 'saddle', 'boundary']
    """
    sizes = np.abs(eigenvalues)
    num_unstable = (sizes > 1 + MARGIN).sum(-1)
    is_marginal = (np.abs(sizes - 1) <= MARGIN).any(-1)
    rank = eigenvalues.shape[-1]
    labels = np.select(
        [on_knot, is_marginal, num_unstable == 0, num_unstable == rank],
        ["boundary", "marginal", "attractor", "repeller"],
        "saddle",
    )
    turning = np.abs(eigenvalues.imag) > MARGIN * np.maximum(sizes, MARGIN)
    return Stability(labels.astype(str), num_unstable, np.asarray(turning.any(-1)))


def classify_set(eigenvalues: Complex, dimensions: int, is_on_knot: bool) -> str:
    """Label a piece of a line or plane of fixed points by the eigenvalues across it.

    Args:
        eigenvalues: of the Jacobian on it, `rank`; as many as its dimensions are 1.
        dimensions: in how many it extends.
        is_on_knot: whether all of it lies on a knot.

    Example::

        >>> classify_set(np.array([1.0 + 0j, 0.5]), 1, False)
        'attractor'
    """
    along = np.argsort(np.abs(eigenvalues - 1), kind="stable")[:dimensions]
    across = np.delete(eigenvalues, along)
    if not len(across) and not is_on_knot:
        return "marginal"
    return str(classify(across[None], np.array([is_on_knot])).labels[0])


def knots_at(network: LatentMap, points: Array) -> NDArray[np.bool_]:
    """Return which units are at one of their knots, `points x units`, where that changes the Jacobian."""
    at = np.zeros((len(points), network.units), dtype=bool)
    if network.kind != PIECEWISE or not network.knots.shape[1]:
        return at
    x = points @ network.weights.T
    size = np.abs(points) @ np.abs(network.weights).T
    matters = network.weights.any(1) & network.outputs.any(1)
    unit = np.arange(network.units)
    for k in range(network.knots.shape[1]):
        # Knots of a unit may coincide, and then the pieces between them are none.
        level = network.knots[:, k : k + 1]
        first, last = (network.knots < level).sum(1), (network.knots <= level).sum(1)
        bends = matters & (network.slopes[unit, first] != network.slopes[unit, last])
        near = np.abs(x - network.knots[:, k]) <= KNOT_MARGIN * (size + np.abs(network.knots[:, k]))
        at |= near & bends
    return at


def spectra(jacobians: Any) -> Complex:
    """Return the eigenvalues of each matrix, `... x rank`, the largest in modulus first."""
    values = np.linalg.eigvals(np.asarray(jacobians)).astype(np.complex128)
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1)
