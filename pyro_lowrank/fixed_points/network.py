"""A network as the analyzer sees it: an affine map plus units, each a function of one linear form of the latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import check_choice
from pyro_lowrank.piecewise import PiecewiseLinear, named_piecewise

Array = NDArray[np.float64]

LARGEST = 1e75
"""Numbers of larger size, and weights smaller than one over it, are refused: squares of products must be finite."""

PIECEWISE, TANH, SOFTPLUS = 0, 1, 2
_SMOOTH = {"tanh": TANH, "softplus": SOFTPLUS}
_NAMES = ("relu", "clipped_relu", "identity", "tanh", "softplus")


class Network(NamedTuple):
    r"""The map whose zeros are sought.

    .. math::

        G(z) = A z + c + \sum_j v_j f_j(w_j^\top z)

    For a fixed point of F it is :math:`G(z) = F(z) - z`. A piecewise-linear :math:`f_j(x)` equals
    :math:`s_{jk} x + t_{jk}` between its knots k - 1 and k; a smooth one is the activation of :math:`x + t_{j0}`.
    """

    affine: Array
    """A, `rank x rank`."""
    constant: Array
    """c, `rank`."""
    weights: Array
    """w, `units x rank`."""
    outputs: Array
    """v, `units x rank`."""
    kind: int
    """0 for piecewise-linear units, 1 for tanh, 2 for softplus."""
    knots: Array
    """`units x knots`, increasing along each row."""
    slopes: Array
    """s, `units x (knots + 1)`."""
    intercepts: Array
    """t, `units x (knots + 1)`."""
    error_slope: Array
    """Sums of absolute terms of G per unit of abs(z), `rank x rank`, times the rounding of one operation."""
    error_constant: Array
    """The same for the terms that do not depend on z, `rank`."""

    @property
    def rank(self) -> int:
        """Number of latents."""
        return int(self.constant.shape[0])

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.weights.shape[0])

    @property
    def is_bounded(self) -> bool:
        """Whether every unit's output stays between bounds."""
        if self.kind != PIECEWISE:
            return self.kind == TANH
        return not (self.slopes[:, 0].any() or self.slopes[:, -1].any())

    def rates(self, z: Array) -> tuple[Array, Array, Array]:
        """Return the units' outputs f, the slopes there and the pieces they are on, each `... x units`."""
        x = z @ self.weights.T
        if self.kind == TANH:
            f = np.tanh(x + self.intercepts[:, 0])
            return f, 1 - f * f, np.zeros(x.shape, dtype=np.int64)
        if self.kind == SOFTPLUS:
            x = x + self.intercepts[:, 0]
            return np.logaddexp(0, x), np.exp(-np.logaddexp(0, -x)), np.zeros(x.shape, dtype=np.int64)
        piece = (x[..., None] > self.knots).sum(-1)
        unit = np.arange(self.units)
        slopes = self.slopes[unit, piece]
        return slopes * x + self.intercepts[unit, piece], slopes, piece

    def value(self, z: Array) -> Array:
        """Return G(z), `... x rank`."""
        return z @ self.affine.T + self.constant + self.rates(z)[0] @ self.outputs

    def jacobian(self, z: Array) -> Array:
        """Return the Jacobian of G at one z, `rank x rank`; at a knot, that of the piece to its left."""
        return self.affine + (self.outputs.T * self.rates(z)[1]) @ self.weights

    def error(self, z: Array) -> Array:
        """Return a bound on the rounding error of G(z), `... x rank`."""
        return np.abs(z) @ self.error_slope.T + self.error_constant


def _finite(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Array:
    array = _numbers(name, value)
    if array.ndim != len(shape) or any(w is not None and w != s for w, s in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"`{name}` must have shape {wanted}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` holds NaN or infinite values; weights must be finite.")
    sizes = np.abs(array[array != 0])
    if sizes.max(initial=0) > LARGEST or (name in ("left", "right") and sizes.min(initial=LARGEST) < 1 / LARGEST):
        raise ValueError(
            f"`{name}` holds {sizes.min():.3g} to {sizes.max():.3g} in size, too much or little to multiply; what is "
            f"not zero must lie between {1 / LARGEST:.0g} and {LARGEST:.0g}: change its units."
        )
    return array


def _numbers(name: str, value: ArrayLike) -> Array:
    """Return a copy in double precision."""
    try:
        array = np.asarray(value)
        if np.iscomplexobj(array):
            raise TypeError(f"`{name}` must be an array of real numbers, got {array.dtype}.")
        return array.astype(np.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array of numbers, got {type(value).__name__}: {error}") from error


def build_network(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
) -> Network:
    r"""Check the weights of a low-rank network and return the map :math:`G(z) = F(z) - z` of its fixed points.

    Args:
        decay: a, a number, one per latent, or a matrix `rank x rank`.
        left: M, `units x rank`.
        right: N transposed, `rank x units`.
        bias: h, `units`.
        activation: its name, or its knots and slopes.
        input_current: added to the units' currents, `units`.
        constant: added to the latents, `rank`.

    Raises:
        ValueError: if shapes do not fit, weights are not finite or so large that their products are not, or no
            activation has that name.
        TypeError: if an array is not one of real numbers, or the activation is neither a name nor knots and slopes.

    Example::

        >>> network = build_network(0.5, [[1.0]], [[2.0]], [1.0])
        >>> network.value(np.array([4.0]))
        array([4.])
    """
    left = _finite("left", left, (None, None))
    units, rank = left.shape
    if not rank:
        raise ValueError("`left` must have at least one column, one per latent, got none.")
    right = _finite("right", right, (rank, units))
    bias = _finite("bias", bias, (units,))
    current = np.zeros(units) if input_current is None else _finite("input_current", input_current, (units,))
    constant = np.zeros(rank) if constant is None else _finite("constant", constant, (rank,))
    a = _numbers("decay", decay)
    a = _finite("decay", a, ((), (rank,), (rank, rank))[min(a.ndim, 2)])
    affine = (a if a.ndim == 2 else np.diag(np.broadcast_to(a, rank))) - np.eye(rank)
    if not isinstance(activation, PiecewiseLinear):
        if not isinstance(activation, str):
            raise TypeError(
                "`activation` must be a name or a PiecewiseLinear, whose bounds on an interval are known, got "
                f"{type(activation).__name__} {activation!r}."
            )
        check_choice("activation", activation, _NAMES)
        if activation in _SMOOTH:
            offset = (current - bias)[:, None]
            return from_units(affine, constant, left, right.T, kind=_SMOOTH[activation], intercepts=offset)
        activation = named_piecewise(activation)
    return from_units(affine, constant, left, right.T, **_pieces(activation, bias, current))


def _pieces(shape: PiecewiseLinear, bias: Array, current: Array) -> dict[str, Any]:
    """Knots, slopes and intercepts of phi(x + current; bias) as a function of x."""
    units, count = len(bias), len(shape.hinges)
    changes = np.array([change for change, _, _ in shape.hinges], dtype=float)
    knots = np.stack([knot + gain * bias for _, knot, gain in shape.hinges], 1) if count else np.zeros((units, 0))
    order = np.argsort(knots, axis=1, kind="stable")
    knots = np.take_along_axis(knots, order, 1)
    steps = (
        np.broadcast_to(changes, (units, count))[np.arange(units)[:, None], order] if count else np.zeros_like(knots)
    )
    zero = np.zeros((units, 1))
    slopes = shape.slopes[0] + np.concatenate([zero, steps.cumsum(1)], 1)
    if shape.slopes[-1] == 0:
        # Sums of the changes leave a rest where the declaration says that the function is flat.
        slopes[:, -1] = 0.0
    base = -shape.slopes[0] * bias[:, None]
    intercepts = base - np.concatenate([zero, (steps * knots).cumsum(1)], 1)
    intercepts = intercepts + slopes * current[:, None]
    return {"knots": knots - current[:, None], "slopes": slopes, "intercepts": intercepts}


def from_units(
    affine: Array,
    constant: Array,
    weights: Array,
    outputs: Array,
    *,
    kind: int = PIECEWISE,
    intercepts: Array,
    knots: Array | None = None,
    slopes: Array | None = None,
) -> Network:
    """Return the network of these parts, with the bounds on its rounding errors."""
    units = len(weights)
    knots = np.zeros((units, 0)) if knots is None else knots
    slopes = np.ones((units, 1)) if slopes is None else slopes
    steep = np.abs(slopes).max(1, initial=0)
    gain = np.abs(outputs).T
    # Each term of G passes through at most this many additions and products, each off by half an ulp of its size.
    rounding = (units + 3 * len(constant) + 16) * np.finfo(float).eps
    error_slope = rounding * (np.abs(affine) + (gain * steep) @ np.abs(weights))
    size = np.abs(intercepts).max(1, initial=0) + steep * np.abs(knots).max(1, initial=0) + (kind != PIECEWISE)
    error_constant = rounding * (np.abs(constant) + gain @ size)
    return Network(
        affine=np.ascontiguousarray(affine),
        constant=np.ascontiguousarray(constant),
        weights=np.ascontiguousarray(weights),
        outputs=np.ascontiguousarray(outputs),
        kind=kind,
        knots=np.ascontiguousarray(knots),
        slopes=np.ascontiguousarray(slopes),
        intercepts=np.ascontiguousarray(intercepts),
        error_slope=error_slope,
        error_constant=error_constant,
    )
